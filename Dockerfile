# Serves and trains; docs/serving.md has the commands. For NVIDIA GPUs:
#   docker build -t lookupvit:cuda --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu130 .
# whose torch brings the CUDA libraries; the driver is the host's (NVIDIA Container Toolkit).
FROM python:3.12-slim

ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ARG EXTRAS=serve,export,hub,tensorboard,parquet,remote

ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
ENV PYTHONUNBUFFERED=1 HOME=/home/user

# g++: torch.compile (TRAIN.COMPILE, --compile), Triton's kernels on GPUs and export --format aoti compile what they run
RUN apt-get update && apt-get install -y --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*

# torch first: it is large, and changes less often than this package
RUN python -m pip install torch torchvision --index-url "${TORCH_INDEX}"

COPY setup.py setup.cfg pyproject.toml README.md LICENSE /source/
COPY lookupvit_video /source/lookupvit_video
COPY configs /source/configs
RUN python -m pip install "/source[${EXTRAS}]" && rm -rf /source && lookupvit --version

# others may take this place by --user; caches are written below its home, and results below /work
RUN useradd --uid 10001 --create-home --home-dir /home/user user && mkdir -p /work && chmod 777 /home/user /work
USER user
WORKDIR /work

EXPOSE 8000
STOPSIGNAL SIGTERM
ENTRYPOINT ["lookupvit"]
CMD ["--help"]
