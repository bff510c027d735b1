"""One multi-resolution checkpoint, many budgets: which compressed grid to use, and when a small one is enough.

``grid_costs``, ``grid_within_macs`` and ``grid_within_latency`` pick one grid for all videos. A ``Cascade`` starts each
video on a small grid and goes on to larger ones only while the answer is not confident; ``calibrate`` finds its
thresholds on labelled videos. Shape letters: B clips, G grids, V videos, N lookup tokens, D width, K classes.
"""

import copy
import hashlib
import logging
import math
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import simplejson
import torch
from fvcore.common.config import CfgNode
from torch import Tensor, nn

from lookupvit_video.data.transforms import normalize
from lookupvit_video.distributed.parallel import autocast_dtype
from lookupvit_video.errors import UserError
from lookupvit_video.files import write_json
from lookupvit_video.models.build import model_spec
from lookupvit_video.models.complexity import measured_macs
from lookupvit_video.models.lookupvit import LookupViT, grid_name

logger = logging.getLogger(__name__)
Grid = tuple[int, ...]
FORMAT = "lookupvit_video/cascade/1"


# One grid for all videos ------------------------------------------------------------------------------------------


def parse_grid(text: str) -> Grid:
    """Read "4x7x7".

    Raises:
        UserError: it is no grid.
    """
    parts = text.split("x")
    if len(parts) not in (2, 3) or not all(part.isascii() and part.isdecimal() and len(part) < 6 for part in parts):
        raise UserError(f"grid {text!r}: write t x h x w as 4x7x7, or h x w as 7x7 for a factorised encoder")
    return tuple(map(int, parts))


def grid_costs(cfg: CfgNode) -> dict[Grid, int]:
    """Return the closed-form MACs of one view on each compressed grid of a checkpoint, the cheapest first.

    Raises:
        UserError: not a LookupViT, which alone has compressed grids.
    """
    spec = model_spec(cfg)
    if not spec.grids:
        raise UserError(f"MODEL.ARCH {cfg.MODEL.ARCH} has no compressed grids, hence one budget only")
    costs = {grid: sum(spec.macs(compressed_grid=grid).values()) for grid in spec.grids}
    return dict(sorted(costs.items(), key=lambda item: item[1]))


def macs_a_view(model: nn.Module, cfg: CfgNode, grid: Grid | None = None) -> int:
    """Return the MACs of one view: in closed form, or counted for models that have none."""
    size, device = cfg.DATA.TEST_CROP_SIZE, next(model.parameters()).device
    parts = model_spec(cfg).macs(**({"compressed_grid": grid} if grid else {}))
    if parts:
        return sum(parts.values())
    return measured_macs(model, torch.zeros(1, 3, cfg.DATA.NUM_FRAMES, size, size, device=device))


def check_grid(cfg: CfgNode, grid: Grid) -> None:
    """Raise ValueError where a checkpoint has no such compressed grid."""
    costs = grid_costs(cfg)
    if grid not in costs:
        raise UserError(f"grid {grid_name(grid)}: this checkpoint has {', '.join(map(grid_name, costs))}")


def grid_within_macs(cfg: CfgNode, gmacs: float) -> Grid:
    """Return the grid that costs most within a budget of 10^9 multiply-accumulates a view.

    Raises:
        UserError: even the cheapest costs more.
    """
    costs = {grid: macs / 1e9 for grid, macs in grid_costs(cfg).items()}
    return _dearest_within(costs, gmacs, "GMACs a view")


def grid_within_latency(costs: dict[Grid, float], milliseconds: float) -> Grid:
    """Return the slowest grid within a budget, of those that ``measured_latencies`` timed.

    Raises:
        UserError: even the fastest is slower.
    """
    return _dearest_within(costs, milliseconds, "ms a view on this device")


def check_budget(budget: float) -> None:
    """Raise ValueError where a budget is none."""
    if not budget > 0:  # also catches nan
        raise UserError(f"a budget of {budget:g}: it must be above 0")


def _dearest_within(costs: dict[Grid, float], budget: float, unit: str) -> Grid:
    check_budget(budget)
    within = [grid for grid, cost in costs.items() if cost <= budget]
    if not within:
        cheapest = min(costs, key=lambda grid: costs[grid])
        raise UserError(
            f"a budget of {budget:g} {unit}: the cheapest grid, {grid_name(cheapest)}, takes {costs[cheapest]:.4g}"
        )
    return max(within, key=lambda grid: costs[grid])


# Latency, measured once on each device ----------------------------------------------------------------------------


def cache_folder() -> Path:
    """Return where this user's measurements are kept: LOOKUPVIT_CACHE, or the usual place of caches."""
    own = os.environ.get("LOOKUPVIT_CACHE")
    return Path(own) if own else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "lookupvit_video")


def measured_latencies(
    answer: Callable[[Tensor, Grid], Tensor], cfg: CfgNode, device: torch.device, folder: Path | None = None
) -> dict[Grid, float]:
    """Return the milliseconds of one view (batch 1, without decoding) on each grid, the median of at least 10.

    Args:
        answer: uint8 clips (1, C, T, H, W), grid -> probabilities, such as ``Predictor.predict_clips``.
        folder: where earlier measurements lie; None: ``cache_folder()``. One that cannot be written to is done without.
    """
    facts = {
        "device": _device_name(device),
        "threads": torch.get_num_threads() if device.type == "cpu" else 0,
        "torch": torch.__version__,
        "precision": str(autocast_dtype(cfg.TRAIN.PRECISION, device)),
        "model": cfg.MODEL.dump(),
        "clip": [cfg.DATA.NUM_FRAMES, cfg.DATA.TEST_CROP_SIZE],
    }
    name = hashlib.sha256(simplejson.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]
    path = (folder or cache_folder()) / "latency" / f"{name}.json"
    grids = list(grid_costs(cfg))
    known = _read_latencies(path)
    if known.keys() < set(map(grid_name, grids)):
        clip = torch.zeros(1, 3, cfg.DATA.NUM_FRAMES, *[cfg.DATA.TEST_CROP_SIZE] * 2, dtype=torch.uint8)
        known = {grid_name(grid): _milliseconds(lambda grid=grid: answer(clip, grid)) for grid in grids}  # type: ignore[misc]
        try:
            write_json(path, {**facts, "milliseconds": known})
        except OSError as error:
            logger.warning("%s: these measurements cannot be kept (%s)", path, error.strerror)
    listed = ", ".join(f"{name} {known[name]:.3g} ms" for name in map(grid_name, grids))
    logger.info("one view on %s: %s (kept in %s)", facts["device"], listed, path)
    return {grid: known[grid_name(grid)] for grid in grids}


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.node()} {platform.machine()} {device.type}"


def _read_latencies(path: Path) -> dict[str, float]:
    try:
        content = simplejson.loads(path.read_text(encoding="utf-8"))
        return {str(name): float(value) for name, value in content["milliseconds"].items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return {}  # none, or damaged: it is measured anew


def _milliseconds(work: Callable[[], Tensor]) -> float:
    """Time work that ends with its result on the CPU; its first calls set things up and do not count."""
    for _ in range(3):
        work()
    taken: list[float] = []
    end = time.perf_counter() + 0.5
    while len(taken) < 10 or time.perf_counter() < end:
        began = time.perf_counter()
        work()
        taken.append(time.perf_counter() - began)
    return 1000 * statistics.median(taken)


# A cascade: small grids first ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cascade:
    """Grids from cheap to dear, and how confident an answer must be for the next one not to be asked."""

    grids: tuple[Grid, ...]
    thresholds: tuple[float, ...]
    """Of all grids but the last: the probability of the likeliest class, averaged over the views, that is enough."""

    def __post_init__(self) -> None:
        if len(self.thresholds) != len(self.grids) - 1:
            raise UserError(
                f"{len(self.grids)} grids take {len(self.grids) - 1} thresholds, got {len(self.thresholds)}"
            )

    @property
    def name(self) -> str:
        """As people write it: "1x2x2 (0.93) 2x4x4"."""
        steps = [f"{grid_name(g)} ({t:.3g})" for g, t in zip(self.grids, self.thresholds, strict=False)]
        return " ".join([*steps, grid_name(self.grids[-1])])


def cascade_macs(cascade: Cascade, cfg: CfgNode) -> list[int]:
    """Return what a view costs that ends at each grid, all passes before it included, its tokens made once."""
    spec = model_spec(cfg)
    passes = [spec.macs(compressed_grid=grid) for grid in cascade.grids]
    first = passes[0]["tokenizer"]
    return [first + sum(sum(p.values()) - p["tokenizer"] for p in passes[: i + 1]) for i in range(len(passes))]


def after_tokenizer(model: LookupViT) -> LookupViT:
    """Return the same model, with the same weights, that takes lookup tokens (B, N, D) for clips."""
    rest = copy.copy(model)
    rest._modules = {**model._modules, "tokenizer": _Tokens(model.tokenizer.grid)}
    return rest


class _Tokens(nn.Module):
    """Stands where the tokenizer stood, for tokens that are made already."""

    def __init__(self, grid: tuple[int, int, int]):
        super().__init__()
        self.grid = grid

    def forward(self, tokens_BND: Tensor) -> Tensor:
        return tokens_BND


@torch.inference_mode()
def run_cascade(
    model: LookupViT,
    cfg: CfgNode,
    device: torch.device,
    cascade: Cascade,
    clips: Tensor,
    counts: Sequence[int],
    batch_size: int,
) -> Iterator[tuple[Tensor, int]]:
    """Yield the probabilities (K,) of each video and the step of the cascade that gave them.

    Args:
        clips: uint8 (B, C, T, H, W) of all videos, one after the other; their lookup tokens are made once.
        counts: clips of each video; it is the mean over them that must be confident.
        batch_size: clips in one pass of the model.
    """
    dtype = autocast_dtype(cfg.TRAIN.PRECISION, device)
    precision = torch.autocast(device.type, dtype, enabled=dtype != torch.float32)
    with precision:
        inputs = (normalize(part.to(device), cfg.DATA.MEAN, cfg.DATA.STD) for part in clips.split(batch_size))
        tokens_BND = torch.cat([model.tokenizer(part) for part in inputs])
    rest, by_video = after_tokenizer(model), tokens_BND.split(list(counts))
    answers: dict[int, tuple[Tensor, int]] = {}
    undecided = list(range(len(counts)))
    for step, grid in enumerate(cascade.grids):
        if not undecided:
            break
        tokens = torch.cat([by_video[video] for video in undecided])
        with precision:
            logits = torch.cat([rest(part, grid).float() for part in tokens.split(batch_size)])
        shares = logits.softmax(-1).cpu().split([counts[video] for video in undecided])
        answers |= {video: (share.mean(0), step) for video, share in zip(undecided, shares, strict=True)}
        enough = cascade.thresholds[step] if step < len(cascade.thresholds) else -math.inf
        undecided = [video for video in undecided if not answers[video][0].max() >= enough]
    return (answers[video] for video in range(len(counts)))


# Calibration --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Point:
    """A cascade (or a single grid) on labelled videos."""

    cascade: Cascade
    top1: float
    """Percent."""
    macs: float
    """Mean over the videos, of a view, all passes included."""
    ended: list[float]
    """Share of the videos, in percent, that each grid gave the answer to."""


def measure(cascade: Cascade, cfg: CfgNode, tables: dict[Grid, np.ndarray], labels: np.ndarray) -> Point:
    """Return what a cascade would reach, from each grid's probabilities (V, K) of labelled videos.

    A video that could not be read has a row of zeros: it counts as wrong.
    """
    step_V = np.full(len(labels), len(cascade.grids) - 1)
    for step, (grid, enough) in reversed(list(enumerate(zip(cascade.grids, cascade.thresholds, strict=False)))):
        step_V[tables[grid].max(1) >= enough] = step
    answers_VK = np.stack([tables[grid] for grid in cascade.grids])[step_V, np.arange(len(labels))]
    right = (answers_VK.argmax(1) == labels) & (answers_VK.max(1) > 0)
    ended = np.bincount(step_V, minlength=len(cascade.grids)) / len(labels)
    macs = float(np.dot(ended, cascade_macs(cascade, cfg)))
    return Point(cascade, 100 * float(right.mean()), macs, (100 * ended).tolist())


def candidates(cfg: CfgNode, tables: dict[Grid, np.ndarray], steps: int = 200) -> Iterator[Cascade]:
    """Yield every chain of grids from cheap to dear, each with thresholds from "never enough" to "always enough".

    All steps of a chain share one threshold: few videos cannot tell several apart. Those tried lie at quantiles of the
    confidences themselves.
    """
    grids = list(grid_costs(cfg))
    for length in range(1, len(grids) + 1):
        for chain in combinations(grids, length):
            if length == 1:
                yield Cascade(chain, ())
                continue
            confidences = np.concatenate([tables[grid].max(1) for grid in chain[:-1]])
            for enough in np.unique(np.quantile(confidences, np.linspace(0, 1, steps))).tolist():
                yield Cascade(chain, (enough,) * (length - 1))


def frontier(points: Sequence[Point]) -> list[Point]:
    """Return the points that no other one beats in both accuracy and cost, the cheapest first."""
    best: list[Point] = []
    for point in sorted(points, key=lambda p: (p.macs, -p.top1)):
        if not best or point.top1 > best[-1].top1:
            best.append(point)
    return best


def choose(points: Sequence[Point], wanted: float) -> Point:
    """Return the cheapest point of at least a wanted accuracy, in percent.

    Raises:
        UserError: no cascade reaches it.
    """
    enough = [point for point in points if point.top1 >= wanted - 1e-9]
    if not enough:
        raise UserError(
            f"an accuracy of {wanted:.2f} %: the best of this checkpoint here is {max(p.top1 for p in points):.2f} %"
        )
    return min(enough, key=lambda point: (point.macs, -point.top1))


# Kept in a file -----------------------------------------------------------------------------------------------------


def fingerprint(model: nn.Module) -> str:
    """Return a hash of a model's weights: thresholds hold for the weights that they were found with."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:32]


def save_cascade(path: Path, cascade: Cascade, model: nn.Module, facts: dict[str, Any]) -> None:
    """Write a cascade, the model it is for, and what was measured, as JSON."""
    content = {"format": FORMAT, "model": fingerprint(model), **asdict(cascade), **facts}
    write_json(path, content)


def load_cascade(path: str | Path, model: nn.Module, cfg: CfgNode) -> Cascade:
    """Read a cascade that ``tools/calibrate.py`` wrote for this very model.

    Raises:
        UserError: the file is missing or damaged, or belongs to other weights.
    """
    if not Path(path).is_file():
        raise UserError(f"{path}: no such file; make it with tools/calibrate.py")
    try:
        content = simplejson.loads(Path(path).read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            raise ValueError
        grids = tuple(tuple(int(side) for side in grid) for grid in content["grids"])
        cascade = Cascade(grids, tuple(float(value) for value in content["thresholds"]))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; make it with tools/calibrate.py") from None
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise UserError(f"{path}: these are no thresholds; make them with tools/calibrate.py") from None
    for grid in grids:
        check_grid(cfg, grid)
    if content.get("model") != fingerprint(model):
        raise UserError(f"{path}: these thresholds are of other weights; calibrate this checkpoint anew")
    return cascade
