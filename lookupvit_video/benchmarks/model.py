"""LookupViT, a dense ViT and other models in one process: time and memory.

All contenders of a setting take turns, round after round, and each round begins with another one: what slows the
machine down for a while slows all of them. Weights are random.
"""

import argparse
import ctypes
import gc
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lookupvit_video.benchmarks.contenders import (
    DENSE,
    DENSE_BY_HEADS,
    MASKED,
    NUM_CLASSES,
    TUBELET,
    VIDEOMAE,
    VIVIT,
    Contender,
    Setting,
    compile_contenders,
    contenders,
)
from lookupvit_video.benchmarks.machine import seconds_per_run, show_versions, wait_for
from lookupvit_video.distributed.precision import autocast_dtype
from lookupvit_video.distributed.utilization import peak_flops
from lookupvit_video.drawing.figures import new_figure, save_figure
from lookupvit_video.errors import UserError
from lookupvit_video.models.complexity import count_parameters
from lookupvit_video.models.kernels.compiler import require_compiler
from lookupvit_video.progress import progress
from lookupvit_video.text import grid_name, markdown_table

LEGEND = """
ms, clips/s: a clip, the median of the rounds (lowest to highest). GMACs: of one clip's forward pass, counted by running
it. TFLOP/s: two for each of them, a training step three times as many; recomputation is not counted. Peak memory
includes the model itself and, in training, its gradients and AdamW's state. Speed-up: over the dense ViT, the
median over the rounds of the ratio. Conversion: speed-up over the ratio of GMACs; at 1 every saved operation is
saved time.
"""


def benchmark(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure every setting; return "rows", "best" (each model at its best batch) and "goals"."""
    device = arguments.device
    if arguments.compile:
        require_compiler("--compile", device.type, "measure without it")
    settings = [Setting(*values) for values in product(
        arguments.mode, arguments.frames, arguments.size, arguments.batch, arguments.threads)]  # fmt: skip
    peak = peak_flops(device, autocast_dtype(arguments.precision, device))
    rows: list[dict[str, Any]] = []
    for number, setting in enumerate(settings, start=1):
        found = contenders(setting, arguments, device)
        if arguments.compile:
            compile_contenders(found, arguments.compile)
        turns = len(found) * (arguments.rounds + 1)
        done = progress(range(turns), total=turns, label=f"setting {number} of {len(settings)}", unit="turns")
        some = compare(found, setting, arguments, lambda done=done: next(done, None))  # type: ignore[misc]
        add_ratios(some, peak)
        rows += some
    best = best_batches(rows)
    return {"rows": rows, "best": best, "goals": compare_with_goals(best, device.type == "cuda")}


def report(facts: dict[str, Any], machine: dict[str, Any], arguments: argparse.Namespace) -> str:
    """Return what `benchmark` found as Markdown."""
    where = machine["processor"] + ("" if arguments.device.type == "cuda" else f", {machine['cores']} cores")
    how = f"torch.compile ({arguments.compile})" if arguments.compile else "not compiled"
    parts = [f"{where}, {arguments.precision}, {how}\n", table(facts["rows"]) + LEGEND]
    if len(arguments.batch) > 1:
        parts.append(f"Each at its best batch:\n\n{table(facts['best'])}")
    parts.append(growth(facts["best"]))
    parts.append(goal_table(facts["goals"]) if facts["goals"] else "")
    parts.append(f"{show_versions(machine)}\n")
    return "\n".join(filter(None, parts))


def check(arguments: argparse.Namespace) -> None:
    """Raise UserError for sizes that cannot run, before anything runs."""
    if arguments.dim and arguments.dim % 64:
        raise UserError(f"--dim {arguments.dim}: take a multiple of 64, the width of a head")
    for frames, size in product(arguments.frames, arguments.size):
        t, h, w = (whole // part for whole, part in zip((frames, size, size), TUBELET, strict=True))
        if frames % TUBELET[0] or size % TUBELET[1]:
            raise UserError(f"{frames} frames of {size} pixels cannot be cut into tubelets of {TUBELET}")
        for grid in arguments.grids:
            if any(out > whole for out, whole in zip(grid, (t, h, w), strict=True)):
                raise UserError(
                    f"--grids {grid_name(grid)} is larger than the {t}x{h}x{w} tubelets of {frames} frames of {size} "
                    "pixels"
                )


# Measuring --------------------------------------------------------------------------------------------------------


def work(contender: Contender, setting: Setting, device: torch.device, dtype: torch.dtype) -> Callable[[], None]:
    """Return what is measured: a forward pass, or a training step (forward, loss, backward, AdamW)."""
    model = contender.model
    if setting.mode == "inference":
        clips = setting.clips(device, dtype)

        def infer() -> None:
            with torch.inference_mode():
                contender.call(model, clips)

        return infer
    clips = setting.clips(device, torch.float32)
    labels = torch.arange(setting.batch, device=device) % NUM_CLASSES
    optimizer = contender.optimizer
    assert optimizer is not None

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        mixed: AbstractContextManager[Any] = nullcontext()
        if dtype != torch.float32:
            mixed = torch.autocast(device.type, dtype)
        with mixed:
            if contender.loss:
                loss = contender.loss(model, clips)
            else:
                logits = contender.call(model, clips)
                loss = sum((F.cross_entropy(head.float(), labels) for head in logits), torch.zeros((), device=device))
        loss.backward()
        optimizer.step()

    return step


def peak_bytes(run: Callable[[], None], device: torch.device) -> int | None:
    """Return the most memory that a run takes above what is there before; None where the system does not report it."""
    gc.collect()
    if device.type == "cuda":
        wait_for(device)
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        wait_for(device)
        return torch.cuda.max_memory_allocated() - before
    if not Path("/proc/self/clear_refs").exists():
        return None
    ctypes.CDLL(None).malloc_trim(0)  # else memory that earlier runs freed would serve unseen
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again
    except OSError:
        return None
    before = _status_bytes("VmRSS")
    run()
    return max(0, _status_bytes("VmHWM") - before)


def _status_bytes(key: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(f"{key}:")).split()[1])


def resident_bytes(contender: Contender) -> int:
    """Return what the model holds between two runs: weights and, in training, gradients' and AdamW's sums."""
    tensors = [*contender.model.parameters(), *contender.model.buffers()]
    if contender.optimizer is not None:
        states = contender.optimizer.state.values()
        tensors += [value for state in states for value in state.values() if isinstance(value, Tensor)]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def compare(
    found: list[Contender],
    setting: Setting,
    arguments: argparse.Namespace,
    tick: Callable[[], None],
    clock: Callable[[], float] = time.perf_counter,
) -> list[dict[str, Any]]:
    """Return one row for each contender; seconds, by a clock, are lists over the rounds."""
    device = torch.device(arguments.device)
    dtype = autocast_dtype(arguments.precision, device)
    torch.set_num_threads(setting.threads)
    if setting.mode == "train":
        made: dict[int, torch.optim.Optimizer] = {}  # contenders that share a model share its optimizer
        for contender in found:
            key = id(contender.model)
            made[key] = made.get(key) or torch.optim.AdamW(contender.model.parameters(), 1e-5, fused=True)
            contender.optimizer = made[key]
    runs = [work(contender, setting, device, dtype) for contender in found]
    times, rows = [], []
    for contender, run in zip(found, runs, strict=True):
        run()  # compiles, allocates, makes AdamW's state
        once = seconds_per_run(run, 1, device)
        times.append(max(1, round(arguments.seconds / once)))
        peak = peak_bytes(run, device)
        tick()
        rows.append({
            "model": contender.name, "grid": contender.grid, **vars(setting), "macs": contender.macs,
            "parameters": count_parameters(contender.model), "seconds": [],
            "peak_bytes": None if peak is None else peak + resident_bytes(contender),
        })  # fmt: skip
    order = list(range(len(found)))
    for _ in range(arguments.rounds):
        for i in order:
            rows[i]["seconds"].append(seconds_per_run(runs[i], times[i], device, clock))
            tick()
        order = order[1:] + order[:1]
    for contender in found:
        contender.optimizer = None
        contender.model.zero_grad(set_to_none=True)
    return rows


def add_ratios(rows: list[dict[str, Any]], peak: float | None) -> None:
    """Add to the rows of one setting what follows from their figures and from the dense ViT's."""
    dense = next((row for row in rows if row["model"] == DENSE), None)
    for row in rows:
        batch, passes = row["batch"], 3 if row["mode"] == "train" else 1
        row["clips_per_second"] = batch / median(row["seconds"])
        row["flops_per_second"] = 2 * row["macs"] * passes * row["clips_per_second"]
        row["mfu"] = row["flops_per_second"] / peak if peak else None
        if dense is not None:
            row["speed_up"] = median(a / b for a, b in zip(dense["seconds"], row["seconds"], strict=True))
            row["mac_ratio"] = dense["macs"] / row["macs"]
            row["conversion"] = row["speed_up"] / row["mac_ratio"]


# Results --------------------------------------------------------------------------------------------------------------


def table(rows: list[dict[str, Any]]) -> str:
    """Return rows as a Markdown table."""
    titles = ("mode", "frames", "pixels", "batch", "threads", "model", "M params", "GMACs", "ms", "clips/s", "TFLOP/s",
              "MFU, %", "peak MiB", "speed-up", "MAC ratio", "conversion")  # fmt: skip
    lines = []
    for row in rows:
        ms = [1000 * second / row["batch"] for second in row["seconds"]]
        mfu, peak = row["mfu"], row["peak_bytes"]
        lines.append([
            row["mode"], row["frames"], row["size"], row["batch"], row["threads"], row["model"],
            f"{row['parameters'] / 1e6:.1f}", f"{row['macs'] / 1e9:.2f}",
            f"{median(ms):.1f} ({min(ms):.1f} to {max(ms):.1f})", f"{row['clips_per_second']:.3g}",
            f"{row['flops_per_second'] / 1e12:.3g}", "-" if mfu is None else f"{100 * mfu:.0f}",
            "-" if peak is None else f"{peak / 2**20:.0f}",
            *(f"{row[key]:.2f}" if key in row else "-" for key in ("speed_up", "mac_ratio", "conversion")),
        ])  # fmt: skip
    return markdown_table(titles, lines)


def best_batches(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return each model at the batch where it is fastest, compared with the dense ViT at the dense ViT's best."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["mode"], row["frames"], row["size"], row["threads"], row["model"]), []).append(row)
    best = {key: max(group, key=lambda row: row["clips_per_second"]) for key, group in groups.items()}
    found = []
    for key, row in best.items():
        dense = best.get((*key[:-1], DENSE))
        again = dict(row)
        if dense is not None:
            again["speed_up"] = row["clips_per_second"] / dense["clips_per_second"]
            again["conversion"] = again["speed_up"] / again["mac_ratio"]
        found.append(again)
    return found


def compare_with_goals(best: list[dict[str, Any]], on_gpu: bool) -> list[dict[str, Any]]:
    """Compare figures with the goals that the project set itself; rows at their best batch."""
    found: list[dict[str, Any]] = []

    def add(row: dict[str, Any], what: str, value: float, bound: float, at_most: bool = False) -> None:
        place = {key: row[key] for key in ("mode", "frames", "size", "threads", "model")}
        met = value <= bound if at_most else value >= bound
        sign = "at most" if at_most else "at least"
        found.append({**place, "what": what, "value": value, "goal": f"{sign} {bound:g}", "met": met})

    for row in best:
        if row["grid"] is None:
            continue
        same = {other["model"]: other for other in best if all(
            other[key] == row[key] for key in ("mode", "frames", "size", "threads"))}  # fmt: skip
        trains = row["mode"] == "train"
        times = {name: row["clips_per_second"] / other["clips_per_second"] for name, other in same.items()}
        if pretext := same.get(f"{row['model']}, {MASKED}"):
            add(pretext, "GMACs of the supervised step", pretext["macs"] / row["macs"], 0.35, True)
            add(pretext, "time of the supervised step", times[pretext["model"]], 0.35, True)
        if "conversion" in row and (on_gpu or not trains):
            bound = 0.8 if trains else 0.85 if on_gpu and row["frames"] < 32 else 0.95
            add(row, "conversion", row["conversion"], bound)
            if DENSE_BY_HEADS in same:
                add(row, f"conversion over the {DENSE_BY_HEADS}", times[DENSE_BY_HEADS] / row["mac_ratio"], bound)
        for name, frames, bound in ((VIDEOMAE, 16, 2.0), (VIVIT, 32, 3.0)):
            if name in same and not trains and (row["frames"], row["grid"]) == (frames, (4, 7, 7)):
                add(row, f"times {name}", times[name], bound)
        if on_gpu and trains and DENSE in same and row["batch"] == same[DENSE]["batch"]:
            add(row, "peak memory of the dense ViT", row["peak_bytes"] / same[DENSE]["peak_bytes"], 0.6, True)
    return found


def goal_table(found: list[dict[str, Any]]) -> str:
    """Return goals as a Markdown table."""
    keys = ("mode", "frames", "size", "threads", "model", "what")
    return markdown_table(
        ("mode", "frames", "pixels", "threads", "model", "what", "reached", "goal", "met"),
        [[*(goal[key] for key in keys), f"{goal['value']:.2f}", goal["goal"], "yes" if goal["met"] else "no"]
         for goal in found],
    )  # fmt: skip


def lookup_tokens(row: dict[str, Any]) -> int:
    """N: tubelets of a clip."""
    t, h, w = TUBELET
    return int(row["frames"] // t * (row["size"] // h) * (row["size"] // w))


def plot_scaling(rows: list[dict[str, Any]], path: Path) -> None:
    """Draw time and peak memory of a clip over the number of lookup tokens N, a line for each model."""
    figure = new_figure(10, 4)
    axes = figure.subplots(1, 2)
    for name in dict.fromkeys(row["model"] for row in rows):
        own = sorted((row for row in rows if row["model"] == name), key=lookup_tokens)
        tokens = [lookup_tokens(row) for row in own]
        style = {"marker": "o", "label": name, "linestyle": "-" if own[0]["grid"] else "--"}
        axes[0].plot(tokens, [1000 / row["clips_per_second"] for row in own], **style)
        if all(row["peak_bytes"] for row in own):
            axes[1].plot(tokens, [row["peak_bytes"] / 2**20 for row in own], **style)
    axes[0].set(title="time", xlabel="lookup tokens N", ylabel="ms a clip", ylim=(0, None))
    axes[1].set(title="peak memory", xlabel="lookup tokens N", ylabel="MiB", ylim=(0, None))
    for axis in axes:
        axis.grid(alpha=0.3)
        axis.set_xlim(left=0)
    axes[0].legend(fontsize=8)
    save_figure(figure, path)


def growth(rows: list[dict[str, Any]]) -> str:
    """Return how time grows from the shortest to the longest clip, against the growth of N; "" for one length."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["mode"], row["size"], row["threads"], row["model"]), []).append(row)
    lines: list[list[object]] = []
    for key, group in groups.items():
        first, last = (pick(group, key=lookup_tokens) for pick in (min, max))
        n, more = lookup_tokens(first), lookup_tokens(last)
        if n != more:
            times = first["clips_per_second"] / last["clips_per_second"]
            over = [f"{times:.2f}", f"{times * n / more:.2f}", f"{times * first['macs'] / last['macs']:.2f}"]
            lines.append([*key, f"{n} to {more}", *over])
    titles = ("mode", "pixels", "threads", "model", "N", "time grows", "over N", "over GMACs")
    return markdown_table(titles, lines) if lines else ""
