"""What a decision of a streaming model costs, next to that of a window of frames: operations and processor time."""

import time
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any

import torch
from fvcore.common.config import CfgNode

from lookupvit_video.config import Section, load_config
from lookupvit_video.models.build import build_model, model_spec
from lookupvit_video.models.streaming.model import StreamingLookupViT
from lookupvit_video.text import aligned_table, grid_name


def both_configs(cfg: str | None, settings: Sequence[str], frames: int, grid: Sequence[int]) -> tuple[CfgNode, CfgNode]:
    """Return the configs of a model of windows and of a streaming one that differ in nothing else.

    Args:
        cfg: of either; None: the defaults.
        frames: of a window.
        grid: t x h x w of a window's compressed tokens; a step has h x w of them.
    """
    common = [*settings, "MODEL.HEADS", "['compressed']", "MODEL.INFERENCE_HEAD", "compressed", "DATA.SAMPLING", "clip"]
    own = (("False", frames, list(grid)), ("True", frames, [1, *grid[1:]]))
    window, stream = (
        load_config(cfg, [*common, "MODEL.STREAMING", streaming, "DATA.NUM_FRAMES", str(count),
                          "MODEL.COMPRESSED_GRID", str(tokens)])
        for streaming, count, tokens in own
    )  # fmt: skip
    return window, stream


@torch.inference_mode()
def measure(window: Section, stream: Section, rounds: int) -> dict[str, Any]:
    """Return multiply-accumulates and milliseconds of processor time of one decision of each, and their ratios.

    Weights and pixels are random; both take turns, and times are medians over the rounds.
    """
    torch.manual_seed(0)
    windows, steps = build_model(window).eval(), build_model(stream).eval()
    assert isinstance(steps, StreamingLookupViT)
    clip = torch.randn(1, 3, window.DATA.NUM_FRAMES, window.DATA.TEST_CROP_SIZE, window.DATA.TEST_CROP_SIZE)
    tubelet, state = clip[:, :, : stream.MODEL.TUBELET[0]].contiguous(), steps.start_state()
    runs: Mapping[str, Callable[[], object]] = {
        "window": lambda: windows(clip), "step": lambda: steps.step(tubelet, state),
    }  # fmt: skip
    times: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds + 1):  # the first only warms up
        for name, run in runs.items():
            start = time.process_time()
            run()
            if number:
                times[name].append(1000 * (time.process_time() - start))
    macs = {"window": sum(model_spec(window).macs().values()), "step": sum(model_spec(stream).step_macs().values())}
    rows = {
        name: {"macs": macs[name], "ms": median(times[name]), "lowest_ms": min(times[name]),
               "highest_ms": max(times[name])}
        for name in runs
    }  # fmt: skip
    ratios = [a / b for a, b in zip(times["window"], times["step"], strict=True)]
    return {**rows, "frames": window.DATA.NUM_FRAMES, "grid": list(window.MODEL.COMPRESSED_GRID),
            "macs_ratio": macs["window"] / macs["step"], "time_ratio": median(ratios)}  # fmt: skip


def table_of(found: Mapping[str, Any]) -> str:
    """Return what ``measure`` found as lines for a reader."""
    grid = found["grid"]
    names = {
        "window": f"window of {found['frames']} frames, {grid_name(grid)}",
        "step": f"step, {grid_name([1, *grid[1:]])}",
    }  # fmt: skip
    rows = [["a decision of", "GMACs", "CPU ms", "lowest to highest"]]
    for key, name in names.items():
        row = found[key]
        rows.append([name, f"{row['macs'] / 1e9:.3g}", f"{row['ms']:.1f}",
                     f"{row['lowest_ms']:.1f} to {row['highest_ms']:.1f}"])  # fmt: skip
    rows.append(["window / step", f"{found['macs_ratio']:.2f}", f"{found['time_ratio']:.2f}", ""])
    return aligned_table(rows)
