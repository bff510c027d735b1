"""What the budgets of a model cost in time, against what they cost in operations, and how accurate they are.

All budgets of a setting take turns, as in ``benchmarks/model.py``. *Conversion* of a budget: its share of the largest
budget's multiply-accumulates over its share of the largest budget's time; at 1 every saved operation is saved time.
"""

import argparse
import copy
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import torch
from fvcore.common.config import CfgNode
from torch import nn

from lookupvit_video.benchmarks.contenders import Contender, Setting, heads_of
from lookupvit_video.benchmarks.machine import show_versions
from lookupvit_video.benchmarks.model import compare
from lookupvit_video.config import load_config, with_settings
from lookupvit_video.drawing.budgets import Drawn, plot_budgets
from lookupvit_video.errors import UserError
from lookupvit_video.evaluation.metrics import main_metric
from lookupvit_video.files import model_file
from lookupvit_video.inference.hub import test_results
from lookupvit_video.inference.predictor import Predictor, load_model
from lookupvit_video.models.budget import Budget, parse_budget
from lookupvit_video.models.build import build_model, model_spec
from lookupvit_video.models.complexity import measured_macs
from lookupvit_video.models.kernels.int8 import quantize
from lookupvit_video.progress import progress
from lookupvit_video.text import markdown_table

ENOUGH = 0.8  # of a conversion
LEGEND = """
ms: a clip, the median of the rounds (lowest to highest). Shares: of the largest budget's; that of time is the median
over the rounds of the ratio. Conversion: share of MACs over share of time; at 1 every saved operation is saved time.
"""


@dataclass
class Model:
    """A model whose budgets are measured."""

    name: str
    module: nn.Module
    cfg: CfgNode
    budgets: Sequence[Budget]
    """Empty: the model has a single one."""
    top1: Mapping[str, float] = field(default_factory=dict)
    """Accuracy in percent by the budget's name ("" for a model with a single one), where a test has measured it."""

    @property
    def frames(self) -> int:
        """T of its clips."""
        return int(self.cfg.DATA.NUM_FRAMES)

    @property
    def size(self) -> int:
        """H and W of its clips in pixels."""
        return int(self.cfg.DATA.TEST_CROP_SIZE)


def config_with(path: str, settings: Sequence[str], budgets: Sequence[Budget], frames: int | None) -> CfgNode:
    """Return a config whose model has some budgets, and takes some number of frames (None: its own)."""
    cfg = load_config(path, settings)
    changes: dict[str, Any] = {"DATA.NUM_FRAMES": frames} if frames else {}
    if budgets:
        exits = {budget.blocks for budget in budgets if budget.blocks} | set(cfg.MODEL.EXITS)
        changes |= {"MODEL.EXITS": sorted(exits - {cfg.MODEL.DEPTH}), "TEST.GRIDS": [list(b.grid) for b in budgets]}
    return with_settings(cfg, changes)


def trained_model(checkpoint: str, budgets: Sequence[Budget], device: torch.device) -> Model:
    """Return the model of a checkpoint with some of its budgets, or all, and with what its test measured.

    Raises:
        UserError: it cannot be read, or does not have a budget.
    """
    predictor: Predictor = load_model(checkpoint, str(device))
    known = model_spec(predictor.cfg).budgets
    for budget in budgets:
        if budget not in known:
            raise UserError(
                f"{checkpoint}: no budget {budget.name}; it has {', '.join(b.name for b in known) or 'one'}"
            )
    found = test_results(Path(model_file(checkpoint))) or {}
    metric = main_metric(found) if found else ""
    top1 = {row["grid"]: row[metric] for row in found.get("grids", [])}
    if found and not top1:
        top1 = {predictor.budget_name(None): found[metric]}
    return Model(str(checkpoint), predictor.model, predictor.cfg, budgets or known, top1)


def eight_bit(model: Model) -> Model:
    """Return a copy of a model with 8-bit layers, chosen on noise, to be measured next to it; it has no accuracy."""
    module = copy.deepcopy(model.module)
    clip = torch.randn(1, 3, model.frames, model.size, model.size, generator=torch.Generator().manual_seed(0))

    def run() -> torch.Tensor:
        with torch.inference_mode():
            logits: torch.Tensor = module(clip)
        return logits

    quantize(module, run)
    return Model(f"{model.name}, int8", module, model.cfg, model.budgets)


def contenders_of(model: Model) -> Iterator[Contender]:
    """Yield each budget of a model as what a benchmark compares; its name is the budget's."""
    spec = model_spec(model.cfg)
    budgets: Sequence[Budget | None] = model.budgets or [None]
    for budget in budgets:
        parts = spec.budget_macs(budget) if budget else spec.macs()
        clip = torch.empty(1, 3, model.frames, model.size, model.size, device="meta")
        macs = sum(parts.values()) or measured_macs(build_model(model.cfg).to("meta"), clip)

        def call(module: nn.Module, clips: torch.Tensor, budget: Budget | None = budget) -> tuple[torch.Tensor, ...]:
            return heads_of(module(clips) if budget is None else module(clips, budget))

        yield Contender(budget.name if budget else "", model.module, call, macs=macs)


def benchmark(models: Sequence[Model], arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure all budgets of some models in turns; return a row for each, model after model, in each setting.

    Args:
        arguments: ``batch`` and ``threads`` (lists), ``rounds``, ``seconds``, ``process_time``, ``precision`` and
            ``device``.

    Raises:
        UserError: the models take different clips.
    """
    first = models[0]
    for model in models:
        if (model.frames, model.size) != (first.frames, first.size):
            raise UserError(
                f"{model.name}: takes {model.frames} frames of {model.size} pixels, {first.name} {first.frames} of "
                f"{first.size}; compare models of equal clips"
            )
    for model in models:
        model.module.to(arguments.device, getattr(torch, arguments.precision))
    entries = [(model, contender) for model in models for contender in contenders_of(model)]
    rows: list[dict[str, Any]] = []
    for batch, threads in product(arguments.batch, arguments.threads):
        setting = Setting("inference", first.frames, first.size, batch, threads)
        found = [contender for _, contender in entries]
        turns = len(found) * (arguments.rounds + 1)
        label = f"{first.frames} frames, batch {batch}, threads {threads}"
        done = progress(range(turns), total=turns, label=label, unit="turns")
        clock = time.process_time if arguments.process_time else time.perf_counter
        some = compare(found, setting, arguments, lambda done=done: next(done, None), clock)  # type: ignore[misc]
        for row, (model, contender) in zip(some, entries, strict=True):
            row |= {"model": model.name, "budget": contender.name, "top1": model.top1.get(contender.name)}
        add_shares(some, first.name)
        rows += some
    return rows


def add_shares(rows: list[dict[str, Any]], name: str) -> None:
    """Add to the rows of one setting their shares of the largest budget of a model, and their conversion."""
    full = max((row for row in rows if row["model"] == name), key=lambda row: row["macs"])
    for row in rows:
        row["share_of_macs"] = row["macs"] / full["macs"]
        row["share_of_time"] = median(own / of for own, of in zip(row["seconds"], full["seconds"], strict=True))
        row["conversion"] = row["share_of_macs"] / row["share_of_time"]
        row["ms"] = 1000 * median(row["seconds"]) / row["batch"]


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Return the rows as a Markdown table; models are named where there are several, accuracies where there are any."""
    several, known = len({row["model"] for row in rows}) > 1, any(row["top1"] is not None for row in rows)
    titles = ["frames", "batch", "threads", *["model"] * several, "budget", "GMACs", "share of MACs", "ms",
              "share of time", "conversion", *["top-1, %"] * known]  # fmt: skip
    lines = []
    for row in rows:
        ms = [1000 * second / row["batch"] for second in row["seconds"]]
        lines.append([
            row["frames"], row["batch"], row["threads"], *[row["model"]] * several, row["budget"] or "-",
            f"{row['macs'] / 1e9:.4g}", f"{row['share_of_macs']:.3f}",
            f"{row['ms']:.4g} ({min(ms):.4g} to {max(ms):.4g})", f"{row['share_of_time']:.3f}",
            f"{row['conversion']:.2f}", *["-" if row["top1"] is None else f"{row['top1']:.2f}"] * known,
        ])  # fmt: skip
    return markdown_table(titles, lines)


def lowest(rows: Sequence[dict[str, Any]]) -> str:
    """Return a table of the lowest conversion in each setting, and whether it is enough."""
    settings = dict.fromkeys((row["frames"], row["batch"], row["threads"]) for row in rows)
    lines = []
    for setting in settings:
        some = [row for row in rows if (row["frames"], row["batch"], row["threads"]) == setting]
        worst = min(some, key=lambda row: row["conversion"])
        met = "yes" if worst["conversion"] >= ENOUGH else "no"
        lines.append([*setting, f"{worst['conversion']:.2f}", worst["budget"] or worst["model"], met])
    return markdown_table(["frames", "batch", "threads", "lowest conversion", "of", f"at least {ENOUGH:g}"], lines)


def drawn(rows: Sequence[dict[str, Any]]) -> dict[str, list[Drawn]]:
    """Return what a plot shows of the first setting, by model.

    Raises:
        UserError: no accuracy is known.
    """
    first = [row for row in rows if all(row[key] == rows[0][key] for key in ("frames", "batch", "threads"))]
    found: dict[str, list[Drawn]] = {}
    for row in first:
        if row["top1"] is not None:
            found.setdefault(row["model"], []).append(Drawn(row["budget"], row["macs"] / 1e9, row["ms"], row["top1"]))
    if not found:
        raise UserError("--plot: no accuracies; test the checkpoints (TRAIN.ENABLE False), which writes "
                        "test_results.json next to them")  # fmt: skip
    return found


def budget_report(arguments: argparse.Namespace, machine: dict[str, Any]) -> tuple[list[dict[str, Any]], str]:
    """Measure what a command line asks for, and draw it; return all rows, and the tables as Markdown."""
    chosen, device = list(dict.fromkeys(map(parse_budget, arguments.budgets))), torch.device(arguments.device)
    rows: list[dict[str, Any]] = []
    if arguments.checkpoint:
        first, *others = arguments.checkpoint
        models = [trained_model(first, chosen, device), *(trained_model(path, [], device) for path in others)]
        models[1:1] = map(eight_bit, models[: int(arguments.int8)])
        rows = benchmark(models, arguments)
    for frames in arguments.frames if arguments.cfg else ():
        cfg = config_with(arguments.cfg, arguments.overrides, chosen, frames)
        model = Model(arguments.cfg, build_model(cfg).eval(), cfg, chosen or model_spec(cfg).budgets)
        rows += benchmark([model, *map(eight_bit, [model][: int(arguments.int8)])], arguments)
    if arguments.plot:
        shown = rows[0]
        how = f"{machine['processor']}, threads {shown['threads']}, batch {shown['batch']}, {arguments.precision}"
        plot_budgets(drawn(rows), arguments.plot, how)
    clock = ", CPU time of the process" if arguments.process_time else ""
    where = f"{machine['processor']}, {machine['cores']} cores, {arguments.precision}{clock}\n"
    return rows, "\n".join([where, table(rows) + LEGEND, lowest(rows), show_versions(machine)])
