"""One checkpoint, many budgets: which compressed grid, depth and lookup tokens to use, and when a small one is enough.

``best_within`` picks one budget for all videos. A ``Cascade`` starts each video on a small one and continues on
larger ones only while the answer is not confident; ``lookupvit calibrate`` finds its thresholds on labeled videos.
A bare grid is the budget with all blocks and tokens.
Shape letters: B clips, V videos, N lookup tokens, D width, K classes.
"""

import hashlib
import logging
import math
import platform
import statistics
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import simplejson
import torch
from torch import Tensor, nn

from lookupvit_video.checkpoints.checkpoint import fingerprint
from lookupvit_video.distributed.precision import autocast
from lookupvit_video.errors import UserError
from lookupvit_video.files import cache_folder, write_json
from lookupvit_video.models.budget import (
    Budget,
    TokenState,
    as_budget,
    continues,
    join_states,
    parse_budget,
    split_state,
)
from lookupvit_video.models.complexity import READING
from lookupvit_video.models.lookupvit import LookupViT

logger = logging.getLogger(__name__)
Grid = Budget | tuple[int, ...]
FORMAT = "lookupvit_video/cascade/1"


class Costs(dict[Grid, Mapping[str, int]]):
    """Multiply-accumulates of one view by part of the model, within each budget, the cheapest first.

    Args:
        num_tokens, depth: lookup tokens that a block sees, and blocks.
    """

    def __init__(self, costs: Mapping[Grid, Mapping[str, int]], num_tokens: int, depth: int):
        super().__init__(sorted(costs.items(), key=lambda item: sum(item[1].values())))
        self.num_tokens, self.depth = num_tokens, depth


def budget_name(budget: Grid) -> str:
    """Return a budget as text, such as "4x7x7,b8"."""
    return as_budget(budget).name


# One grid for all videos ------------------------------------------------------------------------------------------


def check_grid(grids: Collection[Grid], grid: Grid | None = None) -> None:
    """Raise UserError where the model has no compressed grids, or not this one."""
    if not grids:
        raise UserError("this checkpoint's model has no compressed grids, hence a single budget")
    if grid is not None and grid not in grids:
        raise UserError(f"grid {budget_name(grid)}: this checkpoint has {', '.join(map(budget_name, grids))}")


def known_budget(costs: Collection[Grid], name: str | None) -> Grid | None:
    """Return the budget that a text such as "4x7x7,b8" names; None: the model's own.

    Raises:
        UserError: it names none, or none of this model.
    """
    if name is None:
        return None
    budget = parse_budget(name).bare
    check_grid(costs, budget)
    return budget


def check_budget(budget: float) -> None:
    """Raise UserError where a budget is not above 0."""
    if not budget > 0:  # also catches nan
        raise UserError(f"a budget of {budget:g}: it must be above 0")


def best_within(costs: Mapping[str, float], limit: float, unit: str, top1: Mapping[str, float]) -> str:
    """Return the name of the most accurate budget within a limit, and of equals the cheapest.

    Args:
        costs: by the budget's name, in the unit of the limit.
        top1: accuracy of each, in percent, on held-out videos; where one is missing, the dearest is returned.

    Raises:
        UserError: even the cheapest costs more.
    """
    check_budget(limit)
    within = [name for name, cost in costs.items() if cost <= limit]
    if not within:
        cheapest = min(costs, key=lambda name: costs[name])
        raise UserError(f"a budget of {limit:g} {unit}: the cheapest grid, {cheapest}, takes {costs[cheapest]:.4g}")
    if not costs.keys() <= top1.keys():
        logger.info("no accuracies (lookupvit calibrate measures them): taking the dearest budget within the limit")
        return max(within, key=lambda name: costs[name])
    return max(within, key=lambda name: (top1[name], -costs[name]))


# Latency, measured once on each device ----------------------------------------------------------------------------


def measured_latencies(
    answer: Callable[[Tensor, Grid], Tensor],
    clip: Tensor,
    grids: Iterable[Grid],
    model: dict[str, str],
    device: torch.device,
    folder: Path | None = None,
) -> dict[str, float]:
    """Return the milliseconds of one view (batch 1, without decoding) on each grid, the median of at least 10.

    Args:
        answer: uint8 clips (1, C, T, H, W), grid -> probabilities, such as ``Predictor.predict_clips``.
        clip: a view to measure with.
        model: the model's settings and precision, for which a measurement holds.
        folder: of earlier measurements; None: ``cache_folder()``. They are not kept where it cannot be written to.
    """
    facts = {
        "device": _device_name(device),
        "threads": torch.get_num_threads() if device.type == "cpu" else 0,
        "torch": torch.__version__,
        **model,
        "clip": [clip.shape[2], clip.shape[3]],
    }
    name = hashlib.sha256(simplejson.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]
    path = (folder or cache_folder()) / "latency" / f"{name}.json"
    by_name, known = {budget_name(grid): grid for grid in grids}, _read_latencies(path)
    if not by_name.keys() <= known.keys():
        known = {name: _milliseconds(partial(answer, clip, grid)) for name, grid in by_name.items()}
        try:
            write_json(path, {**facts, "milliseconds": known})
        except OSError as error:
            logger.warning("%s: cannot write these measurements (%s)", path, error.strerror)
    found = {name: known[name] for name in by_name}
    listed = ", ".join(f"{name} {ms:.3g} ms" for name, ms in found.items())
    logger.info("one view on %s: %s (kept in %s)", facts["device"], listed, path)
    return found


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.node()} {platform.machine()} {device.type}"


def _read_latencies(path: Path) -> dict[str, float]:
    try:
        content = simplejson.loads(path.read_text(encoding="utf-8"))
        return {str(name): float(value) for name, value in content["milliseconds"].items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return {}  # missing or damaged: measure again


def _milliseconds(work: Callable[[], Tensor]) -> float:
    """Return the median time of work that ends with its result on the CPU; its first calls only warm up."""
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
    """Grids from cheap to expensive, and the confidence at which the answer of each is accepted."""

    grids: tuple[Grid, ...]
    thresholds: tuple[float, ...]
    """Of all grids but the last: the least probability of the likeliest class, averaged over the views."""

    def __post_init__(self) -> None:
        if len(self.thresholds) != len(self.grids) - 1:
            raise UserError(
                f"{len(self.grids)} grids take {len(self.grids) - 1} thresholds, got {len(self.thresholds)}"
            )

    @property
    def name(self) -> str:
        """Grids with their thresholds, such as "1x2x2 (0.93) 2x4x4"."""
        steps = [f"{budget_name(g)} ({t:.3g})" for g, t in zip(self.grids, self.thresholds, strict=False)]
        return " ".join([*steps, budget_name(self.grids[-1])])

    def sources(self, num_tokens: int, depth: int) -> list[int | None]:
        """Return which earlier step's pass each step continues, the deepest that it can; None: it starts afresh."""
        found: list[int | None] = []
        for step, grid in enumerate(self.grids):
            earlier = [
                i for i in range(step)
                if continues(as_budget(self.grids[i]), as_budget(grid), num_tokens, depth)
            ]  # fmt: skip
            found.append(max(earlier, key=lambda i: as_budget(self.grids[i]).blocks, default=None))
        return found


def cascade_macs(cascade: Cascade, costs: Costs) -> list[int]:
    """Return the MACs of a view that ends at each budget: all that ran up to there, no block twice."""
    tokenizer = spent = costs[cascade.grids[0]]["tokenizer"]
    totals = []
    for grid, source in zip(cascade.grids, cascade.sources(costs.num_tokens, costs.depth), strict=True):
        spent += sum(costs[grid].values()) - tokenizer
        if source is not None:  # all of that pass but its answer is part of this one
            spent -= sum(macs for part, macs in costs[cascade.grids[source]].items() if part not in READING) - tokenizer
        totals.append(spent)
    return totals


@torch.inference_mode()
def run_cascade(
    model: nn.Module,
    cascade: Cascade,
    clips: Iterable[Tensor],
    counts: Sequence[int],
    batch_size: int,
    dtype: torch.dtype = torch.float32,
    temperatures: Sequence[Sequence[float]] = (),
) -> Iterator[tuple[Tensor, int]]:
    """Return the probabilities (K,) of each video and the step of the cascade that gave them.

    Args:
        clips: batches (B, C, T, H, W), normalized, of all videos in turn; their lookup tokens are made once.
        counts: clips of each video; the mean over them must be confident.
        batch_size: clips in one pass of the model.
        dtype: that the model computes in.
        temperatures: of each grid's logits, one number or empty (1); none: 1 for all.
    """
    passes = CascadePasses(model, cascade, clips, batch_size, autocast(next(model.parameters()).device, dtype))
    rows = torch.split(torch.arange(sum(counts)), list(counts))
    answers: dict[int, tuple[Tensor, int]] = {}
    undecided = list(range(len(counts)))
    for step in range(len(cascade.grids)):
        if not undecided:
            break
        logits = passes.logits(step, [row for video in undecided for row in rows[video].tolist()])
        for temperature in temperatures[step] if temperatures else ():
            logits = logits / temperature
        shares = torch.split(logits.softmax(-1).cpu(), [counts[video] for video in undecided])
        answers |= {video: (share.mean(0), step) for video, share in zip(undecided, shares, strict=True)}
        enough = cascade.thresholds[step] if step < len(cascade.thresholds) else -math.inf
        undecided = [video for video in undecided if not answers[video][0].max() >= enough]
    return (answers[video] for video in range(len(counts)))


class CascadePasses:
    """The passes of a cascade over some clips: the tokenizer runs once, and so does each block on each grid.

    Args: see ``run_cascade``.
    """

    def __init__(
        self, model: nn.Module, cascade: Cascade, clips: Iterable[Tensor], batch_size: int, precision: torch.autocast
    ):
        assert isinstance(model, LookupViT)
        self.model, self.batch_size, self.precision = model, batch_size, precision
        self.budgets = [model.check_budget(grid) for grid in cascade.grids]
        self.sources = cascade.sources(math.prod(model.block_grid), len(model.blocks))
        with precision:
            parts = [(model.tokenizer(part), model.pixel_order(part, self.budgets)) for part in clips]
        self.tokens_BND = torch.cat([tokens for tokens, _ in parts])
        orders = [order for _, order in parts if order is not None]
        self.order_BN = torch.cat(orders) if orders else None
        self.states: dict[int, dict[int, TokenState]] = {step: {} for step in self.sources if step is not None}
        """Of each step that a later one continues: the state in which it left each clip."""

    def logits(self, step: int, rows: Sequence[int]) -> Tensor:
        """Return the logits (len(rows), K), float32, of some of the clips at a step."""
        model, budget, source, found = self.model, self.budgets[step], self.sources[step], []
        for start in range(0, len(rows), self.batch_size):
            part = rows[start : start + self.batch_size]
            with self.precision:
                if source is None:
                    order_BN = None if self.order_BN is None else self.order_BN[list(part)]
                    state = model.start(self.tokens_BND[list(part)], budget, order_BN)
                else:
                    state = join_states([self.states[source][row] for row in part])
                state = model.advance(
                    state, budget, budget.blocks, writes_back="lookup" in model.inference_heads,
                    continues=step in self.states,
                )  # fmt: skip
                logits_BK = model.forward_head(model.features(state, budget))
            assert isinstance(logits_BK, Tensor)
            found.append(logits_BK.float())
            if step in self.states:
                self.states[step] |= zip(part, split_state(state, len(part)), strict=True)
        return torch.cat(found)


# Calibration --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Point:
    """What a cascade (or a single grid) reaches on labeled videos."""

    cascade: Cascade
    top1: float
    """Percent."""
    macs: float
    """Of a view, all passes included; mean over the videos."""
    ended: list[float]
    """Share of the videos, in percent, that each grid answered."""


def measure(cascade: Cascade, costs: Costs, tables: Mapping[Grid, np.ndarray], labels: np.ndarray) -> Point:
    """Return what a cascade reaches, from each grid's probabilities (V, K) of labeled videos.

    A video that could not be read has a row of zeros and counts as wrong.
    """
    step_V, answers_VK = _ends(cascade, tables)
    right = (answers_VK.argmax(1) == labels) & (answers_VK.max(1) > 0)
    ended = np.bincount(step_V, minlength=len(cascade.grids)) / len(labels)
    macs = float(np.dot(ended, cascade_macs(cascade, costs)))
    return Point(cascade, 100 * float(right.mean()), macs, (100 * ended).tolist())


def cascade_answers(cascade: Cascade, tables: Mapping[Grid, np.ndarray]) -> np.ndarray:
    """Return the probabilities (V, K) with which a cascade ends, from those of each grid."""
    return _ends(cascade, tables)[1]


def _ends(cascade: Cascade, tables: Mapping[Grid, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Return the step (V,) at which each video ends, and its answers (V, K)."""
    count = len(tables[cascade.grids[0]])
    step_V = np.full(count, len(cascade.grids) - 1)
    for step, (grid, enough) in reversed(list(enumerate(zip(cascade.grids, cascade.thresholds, strict=False)))):
        step_V[tables[grid].max(1) >= enough] = step
    return step_V, np.stack([tables[grid] for grid in cascade.grids])[step_V, np.arange(count)]


def candidates(
    tables: Mapping[Grid, np.ndarray], longest: int, steps: int = 200
) -> Iterator[tuple[tuple[Grid, ...], np.ndarray]]:
    """Yield every chain of grids from cheap to expensive, with thresholds (S,) from "never" to "always enough".

    All steps of a chain share one threshold, since a few hundred videos do not separate several. The thresholds are
    quantiles of the confidences.

    Args:
        tables: each grid's probabilities (V, K), the cheapest grid first.
        longest: grids in a chain at most.
    """
    for length in range(1, longest + 1):
        for chain in combinations(tables, length):
            unused = [np.zeros(1)]  # by a single grid
            confidences = [tables[grid].max(1) for grid in chain[:-1]] or unused
            yield chain, np.unique(np.quantile(np.concatenate(confidences), np.linspace(0, 1, steps)))


def measure_chain(
    chain: tuple[Grid, ...],
    enough_S: np.ndarray,
    costs: Costs,
    tables: Mapping[Grid, np.ndarray],
    labels: np.ndarray,
) -> list[Point]:
    """Return what ``measure`` does for each of the thresholds that all steps of a chain may share, at once."""
    before_V, ended_sS, right_S = np.full(len(labels), -math.inf), [], np.zeros(len(enough_S))
    for step, grid in enumerate(chain):
        sure_V = tables[grid].max(1)
        after_V = np.maximum(before_V, sure_V if step < len(chain) - 1 else math.inf)
        ends_SV = (after_V >= enough_S[:, None]) & (before_V < enough_S[:, None])
        right_S += ends_SV @ ((tables[grid].argmax(1) == labels) & (sure_V > 0)).astype(float)
        ended_sS.append(ends_SV.mean(1))
        before_V = after_V
    cascades = [Cascade(chain, (enough,) * (len(chain) - 1)) for enough in enough_S.tolist()]
    macs_S = np.dot(cascade_macs(cascades[0], costs), ended_sS)
    top1_S, ended_Ss = 100 * right_S / len(labels), 100 * np.stack(ended_sS, axis=1)
    return list(map(Point, cascades, top1_S.tolist(), macs_S.tolist(), ended_Ss.tolist()))


def best_cascades(costs: Costs, tables: Mapping[Grid, np.ndarray], labels: np.ndarray, longest: int) -> list[Point]:
    """Return the ``frontier`` of all ``candidates``."""
    best: list[Point] = []
    for chain, enough_S in candidates(tables, longest):
        best = frontier([*best, *measure_chain(chain, enough_S, costs, tables, labels)])
    return best


def frontier(points: Sequence[Point]) -> list[Point]:
    """Return the points that no other one beats in accuracy and cost, the cheapest first."""
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


def save_cascade(path: Path, cascade: Cascade, model: nn.Module, facts: dict[str, Any]) -> None:
    """Write a cascade, the model it is for, and what was measured, as JSON."""
    write_json(path, {"format": FORMAT, "model": fingerprint(model), **asdict(cascade), **facts})


def _read_budget(content: Any) -> Grid:
    if isinstance(content, dict):
        keep = tuple(float(share) for share in content["keep"])
        return Budget(tuple(int(side) for side in content["grid"]), int(content["blocks"]), keep).bare
    return tuple(int(side) for side in content)


def load_cascade(path: str | Path, model: nn.Module, known: Collection[Grid]) -> Cascade:
    """Read a cascade that ``lookupvit calibrate`` wrote for these weights.

    Args:
        known: the model's compressed grids.

    Raises:
        UserError: the file is missing or damaged, or belongs to other weights.
    """
    if not Path(path).is_file():  # a pipe would never end
        raise UserError(f"{path}: no such file; make it with lookupvit calibrate")
    try:
        content = simplejson.loads(Path(path).read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            raise ValueError
        grids = tuple(map(_read_budget, content["grids"]))
        cascade = Cascade(grids, tuple(float(value) for value in content["thresholds"]))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; make it with lookupvit calibrate") from None
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise UserError(f"{path}: not a file of thresholds; make one with lookupvit calibrate") from None
    for grid in grids:
        check_grid(known, grid)
    if content.get("model") != fingerprint(model):
        raise UserError(f"{path}: thresholds of other weights; calibrate this checkpoint again")
    return cascade
