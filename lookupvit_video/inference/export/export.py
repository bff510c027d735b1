"""A checkpoint as one file for other runtimes: torch.export, ONNX, or a compiled AOTInductor package.

An exported model maps uint8 clips to probabilities, so that nobody forgets normalization or softmax or does them twice;
a JSON file next to it has the way from a video to clips (`description.py`, `reference.py`).
Shape letters: B clips, C channels, T frames, H W pixels, K classes.
"""

import copy
import importlib
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn

from lookupvit_video.data.loader import build_eval_loader
from lookupvit_video.data.manifest import Video
from lookupvit_video.errors import UserError
from lookupvit_video.evaluation.evaluate import CompressedGrid
from lookupvit_video.files import atomic_write
from lookupvit_video.inference.predictor import Predictor
from lookupvit_video.models.attention import set_kernel
from lookupvit_video.models.kernels.int8 import check_quantized, quantize
from lookupvit_video.progress import progress

FILES = {"pt2": "model.pt2", "onnx": "model.onnx", "aoti": "model_aoti.pt2"}
TOLERANCE = 1e-4  # of a probability, between the exported model and the original
INT8_TOLERANCE = 1e-2  # the same in 8 bits, where a sum that is rounded differently may move values to the next integer
FASTER = 1.2  # times as fast, from which on 8 bits are worth more than their size
_EXAMPLE_BATCH = 2  # where any batch size is allowed: torch.export treats 1 as a constant
_NEEDS = {"onnx": ("onnx", "onnxscript", "onnxruntime")}

logger = logging.getLogger(__name__)
Run = Callable[[Tensor], Tensor]
"""uint8 clips (B, C, T, H, W) -> probabilities (B, K), float32."""
CLIPS, PROBABILITIES = ["clips"], ["probabilities"]
Names = tuple[list[str], list[str]]
"""Of the inputs and outputs of an ONNX model."""


class DeployedModel(nn.Module):
    """Pixels in, probabilities out: normalization, a model in float32, softmax.

    Args:
        multi_label: sigmoid in place of the softmax.
        temperature: to divide the logits by: one number, or one a class; empty: 1.
        grid: of the compressed tokens; None: the model's default.
    """

    scale: Tensor
    shift: Tensor
    temperature: Tensor | None

    def __init__(
        self,
        model: nn.Module,
        mean: Sequence[float],
        std: Sequence[float],
        grid: CompressedGrid,
        multi_label: bool = False,
        temperature: Sequence[float] = (),
    ):
        super().__init__()
        self.model, self.grid, self.multi_label = model, grid, multi_label
        shape = (1, -1, 1, 1, 1)
        self.register_buffer("scale", (1 / (255 * torch.tensor(std))).view(shape), persistent=False)
        self.register_buffer("shift", (-torch.tensor(mean) / torch.tensor(std)).view(shape), persistent=False)
        self.register_buffer("temperature", torch.tensor(temperature) if temperature else None, persistent=False)

    def forward(self, clips: Tensor) -> Tensor:
        """Map uint8 clips (B, C, T, H, W) to probabilities (B, K)."""
        inputs = self.inputs(clips)
        return self.probabilities(self.model(inputs) if self.grid is None else self.model(inputs, self.grid))

    def inputs(self, clips: Tensor) -> Tensor:
        """Normalize uint8 clips (B, C, T, H, W)."""
        return clips.to(torch.float32) * self.scale + self.shift

    def probabilities(self, logits: Tensor) -> Tensor:
        """Map logits (B, K) to probabilities (B, K)."""
        if self.temperature is not None:
            logits = logits / self.temperature
        return logits.sigmoid() if self.multi_label else logits.softmax(-1)


def deployed_model(predictor: Predictor, grid: CompressedGrid = None, int8: Tensor | None = None) -> DeployedModel:
    """Return a copy of a model, ready to export.

    Args:
        int8: uint8 clips (B, C, T, H, W) on which to choose the linear layers that compute with 8-bit weights and
            activations, see ``models/kernels/int8.py``; None: all stay in float.

    Raises:
        RunFailure: the 8-bit model answers differently on these clips.
    """
    model = copy.deepcopy(predictor.model).eval().requires_grad_(False)
    set_kernel(model, "eager")  # plain operations, for every runtime
    cfg = predictor.cfg
    if int8 is not None:
        inputs = predictor.inputs(int8)

        def run() -> Tensor:
            with torch.inference_mode():
                logits: Tensor = model(inputs) if grid is None else model(inputs, grid)
            return logits

        expected = run()
        check_quantized(model, quantize(model, run), run, expected)
    return DeployedModel(
        model, cfg.DATA.MEAN, cfg.DATA.STD, grid, predictor.multi_label, predictor.temperature(grid)
    ).to(predictor.device)


def export_model(
    deployed: DeployedModel,
    example: Tensor,
    path: Path,
    kind: str,
    *,
    any_batch: bool = True,
    tolerance: float = TOLERANCE,
) -> dict[str, Any]:
    """Write a model in one format and compare the file's answers with the model's.

    Args:
        example: uint8 clips (B, C, T, H, W) to trace and compare with; two or more where ``any_batch``.
        kind: "pt2", "onnx" or "aoti".
        any_batch: let the exported model take any number of clips; else exactly the example's.
        tolerance: of a probability.

    Returns:
        size of the file and the largest difference of a probability.

    Raises:
        UserError: the format's tools are missing, or the exported model's answers differ.
    """
    check_format(kind)
    shapes = {"clips": {0: torch.export.Dim("batch")}} if any_batch else None
    with torch.no_grad():
        program = torch.export.export(deployed, (example,), dynamic_shapes=shapes)
        with atomic_write(path) as temporary:
            WRITERS[kind](program, temporary)
            run = load_exported(temporary, kind)
            # Other batch sizes too, in case tracing froze the example's.
            batches = [example, example[:1], example.repeat(2, 1, 1, 1, 1)[:3]] if any_batch else [example]
            # Maximum of tensors, since Python's ignores NaN.
            difference = float(torch.stack([(run(x).cpu() - deployed(x).cpu()).abs().max() for x in batches]).max())
            if not difference <= tolerance:
                raise UserError(
                    f"{path}: a probability of the {kind} model differs by {difference:.2g}, more than {tolerance:g}; "
                    "nothing was written"
                )
    return {"format": kind, "bytes": path.stat().st_size, "max_difference": difference}


def write_onnx(program: torch.export.ExportedProgram, path: Path, names: Names = (CLIPS, PROBABILITIES)) -> None:
    """Write a program as one ONNX file."""
    for name in ("onnxscript", "onnx_ir"):  # which log every step
        logging.getLogger(name).setLevel(logging.WARNING)
    torch.onnx.export(
        program,
        (),
        str(path),
        dynamo=True,
        external_data=False,  # one file
        verbose=False,
        input_names=names[0],
        output_names=names[1],
        custom_translation_table={torch.ops.aten._int_mm.default: _onnx_int_mm},
    )


def _onnx_int_mm(ints: Any, weight: Any) -> Any:
    """Write the product of the 8-bit layers, which torch's exporter does not know."""
    operators: Any = importlib.import_module("onnxscript").opset18
    return operators.MatMulInteger(ints, weight)


WRITERS: dict[str, Callable[[torch.export.ExportedProgram, Path], Any]] = {
    "pt2": torch.export.save,
    "onnx": write_onnx,
    "aoti": lambda program, path: torch._inductor.aoti_compile_and_package(program, package_path=str(path)),
}


def load_exported(path: str | Path, kind: str) -> Run:
    """Load an exported model; only files that you trust, since those of torch contain code.

    Args:
        kind: "pt2", "onnx" or "aoti".
    """
    if kind == "onnx":
        onnxruntime: Any = importlib.import_module("onnxruntime")
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        return lambda clips: torch.from_numpy(session.run(None, {"clips": clips.cpu().numpy()})[0])
    if kind == "aoti":
        return torch._inductor.aoti_load_package(str(path))
    return torch.export.load(path).module()


def check_format(kind: str) -> None:
    """Raise UserError where a format is unknown, or its tools are missing on this machine."""
    if kind not in FILES:
        raise UserError(f"format {kind!r}: choose from {', '.join(FILES)}")
    if kind == "onnx":
        check_installed(kind)
    if kind == "aoti":
        from torch._inductor.cpp_builder import get_cpp_compiler
        from torch._inductor.exc import InvalidCxxCompiler

        try:
            get_cpp_compiler()
        except InvalidCxxCompiler:
            raise UserError(
                "format aoti needs a C++ compiler: install g++ (apt install g++), or set the environment variable CXX; "
                "pt2 and onnx need none"
            ) from None


def check_installed(need: str) -> None:
    """Raise UserError where a package of the extra ``export`` is missing."""
    for name in _NEEDS[need]:
        try:
            importlib.import_module(name)
        except ImportError:
            raise UserError(f"{need} needs {name}: pip install -e .[export]") from None


def accuracy(run: Run, predictor: Predictor, videos: Sequence[Video], label: str) -> float:
    """Return the top-1 accuracy in percent on each video's center clip; bad videos count as wrong.

    Args:
        label: of the progress line.
    """
    loader = build_eval_loader(predictor.cfg, videos, num_views=1, num_crops=1)
    right = 0
    with torch.no_grad():
        step = predictor.cfg.TEST.BATCH_SIZE
        for batch in progress(loader, total=len(videos), label=label, unit="videos", step=step):
            answers = run(batch.clips.to(predictor.device)).argmax(-1).cpu()
            right += int((answers == batch.labels).sum())  # an unreadable clip's label matches no class
    return 100 * right / len(videos)


def gain_over(plain: DeployedModel, path: Path, kind: str, example: Tensor, rounds: int = 3) -> tuple[float, float]:
    """Return the size of an exported 8-bit model over that of the float weights, and how many times as fast it is.

    The time is that of the float model in this process over the file's, median over some rounds in turns.

    Args:
        plain: the float model.
        example: uint8 clips (B, C, T, H, W) to measure with.
    """
    run, ratios = load_exported(path, kind), []
    with torch.no_grad():
        for _ in range(rounds + 1):  # the first only warms up
            times = [perf_counter()]
            for one in (plain, run):
                one(example).cpu()
                times.append(perf_counter())
            ratios.append((times[1] - times[0]) / (times[2] - times[1]))
    size = sum(value.nbytes for value in plain.state_dict().values())
    return path.stat().st_size / size, median(ratios[1:])


def clips_of(predictor: Predictor, videos: Sequence[Video], count: int = 8) -> Tensor:
    """Return center clips (B, C, T, H, W), uint8, of the first videos; of none random ones, as ``example_clips``."""
    if not videos:
        logger.warning("no videos to choose the 8-bit layers on: random pixels are used; give some with --list")
        return example_clips(predictor)
    loader = build_eval_loader(predictor.cfg, videos[:count], num_views=1, num_crops=1)
    return torch.cat([batch.clips for batch in loader])


def example_clips(predictor: Predictor, batch: int = _EXAMPLE_BATCH, seed: int = 0) -> Tensor:
    """Return random uint8 clips (B, C, T, H, W) of the test's size on the model's device."""
    size, generator = predictor.plan.size, torch.Generator().manual_seed(seed)
    shape = (batch, 3, predictor.plan.times.num_frames, size, size)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator).to(predictor.device)
