"""Pictures of answers: sheets of the frames that the model saw and where it looked; timelines."""

import colorsys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.patches import Patch
from torch import Tensor

from lookupvit_video.figures import new_figure, plain, save_figure
from lookupvit_video.inference.predictor import Prediction
from lookupvit_video.inference.timeline import Segment, Timeline, leading_classes
from lookupvit_video.text import printable, shortened

MAX_COLUMNS = 8


def draw_prediction(prediction: Prediction, heat_maps: Sequence[tuple[str, Tensor]], path: Path) -> None:
    """Write a PNG sheet: frames of the clip, a row for each heat map laid over them, bars of the top classes.

    Args:
        heat_maps: (name, map (t, h, w)), see ``overlay``.
    """
    frames_THWC, labels = prediction.clip.permute(1, 2, 3, 0).numpy(), prediction.labels
    shown = np.linspace(0, len(frames_THWC) - 1, min(MAX_COLUMNS, len(frames_THWC))).round().astype(int).tolist()
    rows = 1 + len(heat_maps)
    figure = new_figure(1.5 * len(shown) + 3.2, 1.6 * rows + 0.5)
    title = printable(f"{Path(prediction.path).name}: {prediction.label} ({prediction.probability:.0%})")
    figure.suptitle(title, fontsize=11, parse_math=False)
    panels: Any = figure.subfigures(1, 2, width_ratios=[1.5 * len(shown), 3.2])
    pictures, right = panels
    bars: Any = right.subfigures(2, 1, height_ratios=[2, rows - 2])[0] if rows > 2 else right
    axes = pictures.subplots(rows, len(shown), squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    for column, frame in enumerate(shown):
        axes[0, column].imshow(frames_THWC[frame])
        axes[0, column].set_title(f"frame {frame}", fontsize=8)
        for row, (_, heat_thw) in enumerate(heat_maps, start=1):
            heat_hw = attention_at(heat_thw, frame, len(frames_THWC))
            axes[row, column].imshow(overlay(frames_THWC[frame], heat_hw))
    for row, (name, _) in enumerate(heat_maps, start=1):
        axes[row, 0].set_title(name, fontsize=8, loc="left", parse_math=False)
    axis = bars.subplots()
    axis.barh(range(len(labels)), prediction.probabilities, color=["tab:green"] + ["0.75"] * (len(labels) - 1))
    axis.set_yticks(range(len(labels)), list(map(_plain, labels)))
    axis.invert_yaxis()
    axis.set(xlim=(0, 1), xlabel="probability")
    axis.tick_params(labelsize=8)
    save_figure(figure, path)


def _plain(label: str) -> str:
    """Return a label that matplotlib draws as it is: it hides one that starts with an underscore."""
    text = plain(shortened(label, 28))
    return " " + text if text.startswith("_") else text


def attention_at(attention_thw: Tensor, frame: int, num_frames: int) -> Tensor:
    """Return the (h, w) attention at the time of a frame, as a share of the clip's largest value."""
    t = frame * len(attention_thw) // num_frames
    return attention_thw[t] / attention_thw.max()


def overlay(frame_HWC: np.ndarray, attention_hw: Tensor) -> np.ndarray:
    """Return a uint8 frame (H, W, 3), darker where attention (0 to 1) is low and warmer where it is high."""
    size = frame_HWC.shape[:2]
    heat = torch.nn.functional.interpolate(attention_hw[None, None], size=size, mode="bilinear")[0, 0].numpy()
    warm = np.array([255.0, 90.0, 0.0])
    blended: np.ndarray = frame_HWC * (0.4 + 0.35 * heat[..., None]) + 0.5 * heat[..., None] * warm
    return blended.clip(0, 255).astype(np.uint8)


# Timelines -------------------------------------------------------------------------------------------------------


def class_colors(timeline: Timeline, segments: Sequence[Segment]) -> dict[str, tuple[float, float, float]]:
    """Return a color (RGB, 0 to 1) for the leading classes and every segment's label, in that order."""
    names = [timeline.classes[label] for label in leading_classes(timeline, 10)]
    names = list(dict.fromkeys([*names, *(segment.label for segment in segments)]))
    # Steps of the golden ratio around the hues: any number of colors, neighbors far apart.
    return {
        name: colorsys.hls_to_rgb((0.58 + 0.618034 * i) % 1, 0.55 if i % 2 else 0.45, 0.75)
        for i, name in enumerate(names)
    }


def draw_timeline(timeline: Timeline, segments: Sequence[Segment], path: Path, topk: int = 5) -> None:
    """Write a PNG: the probability of the leading classes over time, and the segments below."""
    colors = class_colors(timeline, segments)
    shown = leading_classes(timeline, topk)
    figure = new_figure(14, 4.8)
    figure.suptitle(shortened(Path(timeline.path).name, 100), fontsize=11, parse_math=False)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[4, 1])
    unit, letter = (60.0, "min") if timeline.duration >= 180 else (1.0, "s")
    # At most as many bins as the picture has columns, each with its maximum: a short peak in hours stays visible.
    centers = timeline.centers / unit
    groups = np.array_split(np.arange(len(centers)), min(len(centers), 1500))
    places = [float(centers[group].mean()) for group in groups]
    for label in shown:
        name = timeline.classes[label]
        peaks = [float(timeline.probabilities[group, label].max()) for group in groups]
        marker = "o" if len(places) == 1 else None
        upper.plot(places, peaks, color=colors[name], linewidth=1.2, marker=marker)
    upper.set(ylim=(-0.02, 1.02), ylabel="probability")
    upper.grid(alpha=0.3)
    for segment in segments:
        width = (segment.end - segment.start) / unit
        lower.barh(0, width, left=segment.start / unit, color=colors[segment.label], edgecolor="white", linewidth=0.5)
        if width * unit > 0.012 * timeline.duration * len(segment.label):  # else the label has no room
            middle = (segment.start + segment.end) / 2 / unit
            ink = "white" if np.dot(colors[segment.label], (0.3, 0.59, 0.11)) < 0.6 else "black"  # by brightness
            lower.text(middle, 0, _plain(segment.label), ha="center", va="center", fontsize=8, color=ink)
    _add_legend(figure, colors)
    lower.set(xlim=(0, timeline.duration / unit), ylim=(-0.4, 0.4), yticks=[], ylabel="segments")
    lower.set_xlabel(f"time, {letter}")
    save_figure(figure, path)


def _add_legend(figure: Any, colors: dict[str, tuple[float, float, float]]) -> None:
    """Add a legend to the right of a figure, with as many colors as fit."""
    names = list(colors)[:16]
    patches = [Patch(color=colors[name], label=_plain(name)) for name in names]
    if len(colors) > len(names):
        patches.append(Patch(color="white", label=f"and {len(colors) - len(names)} more"))
    figure.legend(handles=patches, loc="outside right center", fontsize=8, frameon=False)
