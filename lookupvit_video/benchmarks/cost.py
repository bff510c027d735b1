"""What a model costs: multiply-accumulates (MACs) of one view, by part, and parameters.

The closed form is compared with what torch counts in a forward pass, which is run without memory; attention is counted,
norms and activations are not.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from fvcore.common.config import CfgNode

from lookupvit_video.models.budget import Budget
from lookupvit_video.models.build import build_model, model_spec
from lookupvit_video.models.complexity import Shape, count_parameters, measured_macs, tokens_within, vit_macs
from lookupvit_video.registry import MODELS
from lookupvit_video.text import aligned_table, grid_name

TOTALS = {
    "total, closed form": "macs",
    "total, measured": "measured_macs",
    "floor (M -> 0)": "floor_macs",
    "dense ViT": "dense_macs",
}
CONTROLS = """
alone: cost of a dense ViT on the M resized tokens and nothing else (MODEL.TOKENS resize)
keeps: tokens that random dropping keeps for the cost of the row (MODEL.TOKENS random, MODEL.KEEP_TOKENS)
merges: tokens that each block must merge away for that cost (MODEL.TOKENS merge, MODEL.MERGE_TOKENS); -: it cannot
"""


def usual_grids(token_grid: Sequence[int], all_times: bool) -> list[tuple[int, ...]]:
    """Return grids with a fifth to seven tenths of each side, of all, half and a quarter of the times."""
    t, h, w = token_grid
    sides = [(round(part * h) or 1, round(part * w) or 1) for part in (0.2, 0.35, 0.5, 0.7)]
    times = [(t // part,) for part in (1, 2, 4) if t >= part] if all_times else [()]
    return [time + side for time in times for side in sides]


def describe(cfg: CfgNode, measure: bool, sweep: bool) -> dict[str, Any]:
    """Return what a config costs, in MACs and parameters, and what those figures belong to."""
    if not MODELS[cfg.MODEL.ARCH].tubelets:  # PyTorchVideo reads rates from a tensor; on meta there are no values
        model = build_model(cfg).to("meta")
    else:
        with torch.device("meta"):
            model = build_model(cfg)
    clip = torch.zeros(1, 3, cfg.DATA.NUM_FRAMES, cfg.DATA.TEST_CROP_SIZE, cfg.DATA.TEST_CROP_SIZE, device="meta")
    spec = model_spec(cfg)
    parts = spec.macs()
    facts: dict[str, Any] = {
        "arch": cfg.MODEL.ARCH,
        "clip": list(clip.shape[2:]),
        "parameters": count_parameters(model),
        "parameters_in_blocks": count_parameters(model.get_submodule("blocks")),
        "macs": sum(parts.values()) if parts else None,
        "measured_macs": measured_macs(model, clip) if measure else None,
    }
    if not parts:
        return facts
    shape = spec.shape
    dense = sum(vit_macs(shape).values())
    facts |= {
        "encoder": shape.encoder,
        "tubelet": list(shape.tubelet),
        "lookup_grid": list(shape.grid),
        "lookup_tokens": math.prod(shape.grid),
        "dim": shape.dim,
        "depth": shape.depth,
        "macs_by_part": parts,
        "dense_macs": dense,
        "dense_ratio": dense / facts["macs"],
    }
    if spec.grids:
        facts |= {
            "compressed_grid": list(cfg.MODEL.COMPRESSED_GRID),
            "compressed_tokens": shape.times * math.prod(cfg.MODEL.COMPRESSED_GRID),
            "floor_macs": sum(spec.macs(compressed_grid=(0, 0, 0)).values()),
        }
    if sweep:
        rows = []
        swept = set(map(tuple, cfg.TEST.GRIDS))
        for budget in (known for known in spec.budgets if known.grid in swept):
            macs = sum(spec.budget_macs(budget).values())
            rows.append(budget_row(shape, budget, macs, measured_macs(model, clip, budget) if measure else None))
        facts["sweep"] = sorted(rows, key=lambda row: row["macs"])
    return facts


def budget_row(shape: Shape, budget: Budget, macs: int, measured: int | None) -> dict[str, Any]:
    """Return what one budget costs, and what a dense ViT on fewer tokens can do for as much."""
    grid = budget.grid
    row = {
        "budget": budget.name,
        "compressed_grid": list(grid),
        "compressed_tokens": shape.times * math.prod(grid),
        "macs": macs,
        "measured_macs": measured,
        "dense_ratio": sum(vit_macs(shape).values()) / macs,
    }
    if shape.encoder == "joint":
        row |= {
            "resize_macs": sum(vit_macs(shape, "resize", grid).values()),
            "keep_tokens": tokens_within(macs, shape, "random") or None,
            "merge_tokens": tokens_within(macs, shape, "merge") or None,
        }
    return row


def show(facts: dict[str, Any]) -> None:
    """Print what `describe` found."""
    t, h, w = facts["clip"]
    print(f"{facts['config']}: {facts['arch']}, one clip of {t} frames of {h} x {w} pixels")
    if facts["macs"] is not None:
        tokens = f"N = {facts['lookup_tokens']} lookup tokens ({grid_name(facts['lookup_grid'])})"
        if "compressed_grid" in facts:
            n, m = facts["lookup_tokens"], facts["compressed_tokens"]
            at_each = f" at each of {facts['lookup_grid'][0]} times" if facts["encoder"] != "joint" else ""
            tokens += f", M = {m} compressed ({grid_name(facts['compressed_grid'])}{at_each}), N / M = {n / m:.1f}"
        print(f"tubelet {grid_name(facts['tubelet'])}, {tokens}")
        print(f"{facts['encoder']} encoder, D = {facts['dim']}, {facts['depth']} blocks")
    print()
    largest = facts["macs"] or facts["measured_macs"] or 0
    unit, name = (1e9, "GMACs") if largest >= 1e9 else (1e6, "MMACs")

    def number(macs: int | None) -> str:
        return "-" if macs is None else f"{macs / unit:.2f}"

    def row(title: str, macs: int) -> list[str]:
        return [title, number(macs), f"{100 * macs / largest:.1f}"]

    rows = [row(part.replace("_", " "), macs) for part, macs in facts.get("macs_by_part", {}).items() if macs]
    for title, key in TOTALS.items():
        if facts.get(key) is not None:
            rows.append(row(title, facts[key]))
    if rows:
        print(aligned_table([["", name, "%"], *rows]))
    print(
        f"parameters: {facts['parameters'] / 1e6:.2f} M, {facts['parameters_in_blocks'] / 1e6:.2f} M of them in blocks"
    )
    if "dense_ratio" in facts:
        print(f"a dense ViT with the same ({facts['encoder']}) encoder costs {facts['dense_ratio']:.2f} times as much")
    if "sweep" in facts:
        print()
        show_sweep(facts, name, number)


def show_sweep(facts: dict[str, Any], name: str, number: Callable[[int | None], str]) -> None:
    """Print a row for each compressed grid; ``number`` writes MACs in the unit ``name``."""
    floor, dense = facts["floor_macs"], facts["dense_macs"]
    table = [["grid", "M", "N / M", name, "measured", "dense / this", "alone", "keeps", "merges"]]
    table.append(["floor", "0", "", number(floor), "", f"{dense / floor:.2f}", "", "", ""])
    for row in facts["sweep"]:
        m = row["compressed_tokens"]
        cells = [row["budget"], str(m), f"{facts['lookup_tokens'] / m:.1f}", number(row["macs"])]
        cells += [number(row["measured_macs"]), f"{row['dense_ratio']:.2f}", number(row.get("resize_macs"))]
        table.append(cells + [str(row.get(key) or "-") for key in ("keep_tokens", "merge_tokens")])
    table.append(["dense ViT", "", "", number(dense), "", "1.00", "", "", ""])
    joint = facts["encoder"] == "joint"
    print(aligned_table(table if joint else [cells[:-3] for cells in table]), end=CONTROLS if joint else "")
