"""Pictures of answers: sheets of the frames that the model saw and where it looked; timelines."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unicodedata import east_asian_width

import matplotlib
import numpy as np
import torch
from matplotlib.colors import ListedColormap
from matplotlib.patches import Patch
from torch import Tensor

from lookupvit_video.drawing.figures import class_color, ink_on, new_figure, plain, save_figure
from lookupvit_video.drawing.fonts import class_label, drawable
from lookupvit_video.inference.prediction import Prediction
from lookupvit_video.inference.timeline import Segment, Timeline, leading_classes
from lookupvit_video.text import shortened

MAX_COLUMNS = 8
_SMALL = 9.5  # points: readable where a sheet is shown at half its size
_OPACITY = 0.75  # of the heat at its maximum
# Perceptually uniform, without its dark end; more opaque where there is more attention.
_HEAT = matplotlib.colormaps["plasma"](np.linspace(0.35, 1, 256))
_HEAT[:, 3] = _OPACITY * np.linspace(0, 1, 256) ** 1.5


def draw_prediction(
    prediction: Prediction, heat_maps: Sequence[tuple[str, Tensor]], path: Path, classes: Sequence[str]
) -> None:
    """Write a PNG sheet: frames of the clip and bars of the top classes; for each heat map the frames under it.

    A ring marks the maximum of each frame, a square that of the clip; to the right of a row are the maxima over time.

    Args:
        heat_maps: (name, map (t, h, w)), see ``overlay``.
        classes: all, in order; a class has its color by its place.
    """
    frames_THWC = prediction.clip.permute(1, 2, 3, 0).numpy()
    shown = np.linspace(0, len(frames_THWC) - 1, min(MAX_COLUMNS, len(frames_THWC))).round().astype(int).tolist()
    seconds, unit = (prediction.seconds, "s") if prediction.seconds else (list(range(len(frames_THWC))), "frames")
    rows = 1 + len(heat_maps)
    figure = new_figure(1.5 * len(shown) + 3.2, 1.75 * rows + 0.4 + 0.5 * bool(heat_maps))
    answer = [prediction.labels[0]] if prediction.present is None else prediction.present
    label = ", ".join(class_label(name, classes.index(name), 60) for name in answer) or "none of the classes"
    share = f" ({prediction.probability:.0%})" if prediction.present is None else ""
    title = f"{drawable(Path(prediction.path).name)}: {shortened(label, 80)}{share}"
    figure.suptitle(title, fontsize=12, parse_math=False)
    axes = figure.subplots(rows, len(shown) + 1, squeeze=False, width_ratios=[1.5] * len(shown) + [2.6])
    for axis in axes[:, :-1].flat:
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
    for axis, frame in zip(axes[0], shown, strict=False):
        axis.imshow(frames_THWC[frame])
        axis.set_title(f"{seconds[frame]:.2f} s" if unit == "s" else f"frame {frame}", fontsize=_SMALL)
    _draw_bars(axes[0, -1], prediction, classes)
    for row, (name, heat_thw) in zip(axes[1:], heat_maps, strict=True):
        share = f"100 %: {heat_thw.max() / heat_thw.sum():.1%} of the clip's attention"
        title = row[0].text(
            0, 1.04, f"{name}  ({share})", fontsize=_SMALL, transform=row[0].transAxes, parse_math=False
        )
        title.set_in_layout(False)  # it is wider than its frame
        peaks = _draw_heat(row[:-1], heat_thw, frames_THWC, shown)
        row[-1].bar(seconds, peaks, 0.9 * (seconds[-1] - seconds[0]) / max(len(seconds) - 1, 1) or 0.9, color="0.45")
        row[-1].set(ylim=(0, 1.05), yticks=[0, 0.5, 1], yticklabels=["0", "50", "100 %"])
        row[-1].set_title("maximum of each frame", fontsize=_SMALL)
        row[-1].tick_params(labelsize=8)
        row[-1].spines[["top", "right"]].set_visible(False)
    if heat_maps:
        scale = matplotlib.cm.ScalarMappable(matplotlib.colors.Normalize(0, 100), ListedColormap(_HEAT))
        bar = figure.colorbar(scale, ax=axes[:, :-1], location="bottom", aspect=60, shrink=0.5, pad=0.01)
        bar.set_label("attention, % of the clip's maximum in the row", fontsize=_SMALL)
        bar.ax.tick_params(labelsize=8)
    save_figure(figure, path)


def _draw_bars(axis: Any, prediction: Prediction, classes: Sequence[str]) -> None:
    """Draw a bar for each class of an answer, with its name and probability above."""
    count = len(prediction.labels)
    for row, (label, share) in enumerate(zip(prediction.labels, prediction.probabilities, strict=True)):
        number = classes.index(label)
        axis.barh(row + 0.25, share, 0.3, color=class_color(number))
        for x, text, side in ((0, class_label(label, number, 26), "left"), (1, f"{share:.0%}", "right")):
            axis.text(x, row - 0.2, text, ha=side, va="center", fontsize=min(_SMALL, 60 / count), parse_math=False)
    axis.set(xlim=(0, 1), ylim=(count - 0.4, -0.6))
    axis.set_title("probability", fontsize=_SMALL)
    axis.set_axis_off()


def _draw_heat(axes: Any, heat_thw: Tensor, frames_THWC: np.ndarray, shown: Sequence[int]) -> list[float]:
    """Draw frames under a heat map, each with its maximum; return that of every frame, as a share of the clip's."""
    count, (height, width) = len(frames_THWC), frames_THWC.shape[1:3]
    peaks = [float(attention_at(heat_thw, frame, count).max()) for frame in range(count)]
    for axis, frame in zip(axes, shown, strict=False):
        heat_hw = attention_at(heat_thw, frame, count)
        y, x = divmod(int(heat_hw.argmax()), heat_hw.shape[1])
        place = (x + 0.5) * width / heat_hw.shape[1] - 0.5, (y + 0.5) * height / heat_hw.shape[0] - 0.5
        is_peak = peaks[frame] == 1
        axis.imshow(overlay(frames_THWC[frame], heat_hw))
        for color, thickness in (("black", 2.2), ("white", 1.0)):  # on any frame
            axis.plot(*place, "s" if is_peak else "o", ms=9, mfc="none", mec=color, mew=thickness)
        axis.set_xlabel(f"{peaks[frame]:.0%}", fontsize=_SMALL, labelpad=1, weight="bold" if is_peak else "normal")
    return peaks


def attention_at(attention_thw: Tensor, frame: int, num_frames: int) -> Tensor:
    """Return the (h, w) attention at the time of a frame, as a share of the clip's largest value."""
    t = frame * len(attention_thw) // num_frames
    return attention_thw[t] / attention_thw.max()


def overlay(frame_HWC: np.ndarray, attention_hw: Tensor) -> np.ndarray:
    """Return a uint8 frame (H, W, 3) under a color for attention (0 to 1): opaque where high; where 0, the frame."""
    size = frame_HWC.shape[:2]
    heat = torch.nn.functional.interpolate(attention_hw[None, None], size=size, mode="bilinear")[0, 0].numpy()
    colors = _HEAT[(255 * heat).round().astype(int).clip(0, 255)]
    opacity = colors[..., 3:]
    blended: np.ndarray = frame_HWC * (1 - opacity) + 255 * colors[..., :3] * opacity
    return blended.round().astype(np.uint8)


# Timelines -------------------------------------------------------------------------------------------------------


def draw_timeline(timeline: Timeline, segments: Sequence[Segment], path: Path, topk: int = 5) -> None:
    """Write a PNG: the probability of the leading classes over time, and the segments below with their mean."""
    shown, numbers = leading_classes(timeline, topk), [timeline.classes.index(segment.label) for segment in segments]
    # of several labels at a time, each has a row
    levels = {number: level * bool(timeline.thresholds) for level, number in enumerate(dict.fromkeys(numbers))}
    figure = new_figure(14, 4.8)
    figure.suptitle(shortened(drawable(Path(timeline.path).name), 100), fontsize=12, parse_math=False)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[4, 1])
    unit, letter = (60.0, "min") if timeline.duration >= 180 else (1.0, "s")
    # At most as many bins as the picture has columns, each with its maximum: a short peak in hours stays visible.
    centers = timeline.centers / unit
    groups = np.array_split(np.arange(len(centers)), min(len(centers), 1500))
    places = [float(centers[group].mean()) for group in groups]
    for number in shown:
        peaks = [float(timeline.probabilities[group, number].max()) for group in groups]
        marker = "o" if len(places) == 1 else None
        upper.plot(places, peaks, color=class_color(number), linewidth=1.8, marker=marker)
    upper.set(ylim=(-0.02, 1.02), ylabel="probability")
    upper.grid(alpha=0.3)
    for segment, number in zip(segments, numbers, strict=True):
        width, color = (segment.end - segment.start) / unit, class_color(number)
        place = levels[number]
        lower.barh(place, width, left=segment.start / unit, color=color, edgecolor="white", linewidth=0.5)
        text = f"{plain(class_label(segment.label, number))} {segment.probability:.0%}"
        columns = sum(1 + (east_asian_width(letter) in "WF") for letter in text)
        if width * unit > 0.008 * timeline.duration * columns:  # else it has no room
            middle = (segment.start + segment.end) / 2 / unit
            lower.text(middle, place, text, ha="center", va="center", fontsize=_SMALL, color=ink_on(color))
    _add_legend(figure, {number: timeline.classes[number] for number in [*shown, *numbers]})
    lower.set(
        xlim=(0, timeline.duration / unit),
        ylim=(-0.4, 0.4 + max(levels.values(), default=0)),
        yticks=[],
        ylabel="segments",
    )
    lower.set_xlabel(f"time, {letter}")
    save_figure(figure, path)


def _add_legend(figure: Any, names: dict[int, str]) -> None:
    """Add a legend of classes to the right of a figure, with as many as fit."""
    listed = list(names)[:16]
    patches = [Patch(color=class_color(number), label=plain(class_label(names[number], number))) for number in listed]
    if len(names) > len(listed):
        patches.append(Patch(color="white", label=f"and {len(names) - len(listed)} more"))
    figure.legend(handles=patches, loc="outside right center", fontsize=_SMALL, frameon=False)
