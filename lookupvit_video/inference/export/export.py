"""A checkpoint as one file for other runtimes, in the formats of `formats.py`.

An exported model maps uint8 clips to probabilities, so that nobody forgets normalization or softmax or does them twice;
a JSON file next to it has the way from a video to clips (`description.py`, `reference.py`).
Shape letters: B clips, C channels, T frames, H W pixels, K classes.
"""

import copy
import logging
from collections.abc import Sequence
from contextlib import ExitStack
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
from lookupvit_video.inference.export.formats import FORMATS, Run, check_format, load_exported, write
from lookupvit_video.inference.predictor import Predictor
from lookupvit_video.models.attention import set_kernel
from lookupvit_video.models.kernels.int8 import check_quantized, quantize
from lookupvit_video.progress import progress

TOLERANCE = 1e-4  # of a probability, between the exported model and the original
INT8_TOLERANCE = 1e-2  # the same in 8 bits, where a sum that is rounded differently may move values to the next integer
FASTER = 1.2  # times as fast, from which on 8 bits are worth more than their size
_EXAMPLE_BATCH = 2  # where any batch size is allowed: torch.export treats 1 as a constant

logger = logging.getLogger(__name__)


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
        kind: one of ``FORMATS``.
        any_batch: let the exported model take any number of clips; else exactly the example's.
        tolerance: of a probability.

    Returns:
        size of the file, the largest difference of a probability, and whether the file was run for it: where no runtime
        here takes the format, the program is that it was made from.

    Raises:
        UserError: the format's tools are missing, or the exported model's answers differ.
    """
    check_format(kind, batch=None if any_batch else len(example))
    chosen = FORMATS[kind]
    shapes = {"clips": {0: torch.export.Dim("batch")}} if any_batch else None
    with torch.no_grad(), ExitStack() as stack:
        program = torch.export.export(deployed, (example.to(chosen.dtype),), dynamic_shapes=shapes)
        temporary, *_ = [stack.enter_context(atomic_write(file)) for file in chosen.files(path)]
        write(program, kind, temporary)
        run = program.module() if chosen.load is None else load_exported(temporary, kind)
        # Other batch sizes too, in case tracing froze the example's.
        batches = [example, example[:1], example.repeat(2, 1, 1, 1, 1)[:3]] if any_batch else [example]
        answers = [run(x if chosen.load else x.to(chosen.dtype)).cpu() - deployed(x).cpu() for x in batches]
        # Maximum of tensors, since Python's ignores NaN.
        difference = float(torch.stack([answer.abs().max() for answer in answers]).max())
        if not difference <= tolerance:
            raise UserError(
                f"{path}: a probability of the {kind} model differs by {difference:.2g}, more than {tolerance:g}; "
                "nothing was written"
            )
    size = sum(file.stat().st_size for file in chosen.files(path))
    return {"format": kind, "bytes": size, "max_difference": difference, "is_run": chosen.load is not None}


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


def gain_over(
    predictor: Predictor, grid: CompressedGrid, path: Path, kind: str, example: Tensor, rounds: int = 3
) -> tuple[float, float]:
    """Return the size of an exported model over that of the float weights, and how many times as fast it is.

    The time is that of the predictor in this process over the file's, median over some rounds in turns.

    Args:
        example: uint8 clips (B, C, T, H, W) to measure with.
    """
    run, ratios = load_exported(path, kind), []
    with torch.no_grad():
        for _ in range(rounds + 1):  # the first only warms up
            times = [perf_counter()]
            for one in (lambda clips: predictor.predict_clips(clips, grid), run):
                one(example).cpu()
                times.append(perf_counter())
            ratios.append((times[1] - times[0]) / (times[2] - times[1]))
    size = sum(value.nbytes for value in predictor.model.state_dict().values())
    return sum(file.stat().st_size for file in FORMATS[kind].files(path)) / size, median(ratios[1:])


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
