"""Pictures of a prediction: the frames that the model saw, where it looked, and how sure it is."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lookupvit_video.engine.plots import new_figure, save_figure
from lookupvit_video.inference.predictor import Prediction

MAX_COLUMNS = 8


def draw_prediction(prediction: Prediction, attention_thw: Tensor | None, path: Path) -> None:
    """Write a PNG sheet: frames of the clip, the same with attention laid over, bars of the top classes.

    Args:
        attention_thw: (t, h, w) from ``Predictor.attention_maps``, or None to leave that row out.
    """
    frames_THWC = prediction.clip.permute(1, 2, 3, 0).numpy()
    shown = np.linspace(0, len(frames_THWC) - 1, min(MAX_COLUMNS, len(frames_THWC))).round().astype(int)
    rows = 1 if attention_thw is None else 2
    figure = new_figure(1.5 * len(shown) + 3.2, 1.6 * rows + 0.5)
    name = Path(prediction.path).name
    figure.suptitle(f"{name}: {prediction.labels[0]} ({prediction.probabilities[0]:.0%})", fontsize=11)
    panels: Any = figure.subfigures(1, 2, width_ratios=[1.5 * len(shown), 3.2])
    pictures, bars = panels
    axes = pictures.subplots(rows, len(shown), squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    for column, frame in enumerate(shown):
        axes[0, column].imshow(frames_THWC[frame])
        axes[0, column].set_title(f"frame {frame}", fontsize=8)
        if attention_thw is not None:
            axes[1, column].imshow(overlay(frames_THWC[frame], attention_at(attention_thw, frame, len(frames_THWC))))
    if attention_thw is not None:
        axes[1, 0].set_title("attention", fontsize=8, loc="left")
    axis = bars.subplots()
    positions = range(len(prediction.labels))
    axis.barh(positions, prediction.probabilities, color=["tab:green"] + ["0.75"] * (len(prediction.labels) - 1))
    axis.set_yticks(positions, [label if len(label) <= 28 else label[:27] + "…" for label in prediction.labels])
    axis.invert_yaxis()
    axis.set(xlim=(0, 1), xlabel="probability")
    axis.tick_params(labelsize=8)
    save_figure(figure, path)


def attention_at(attention_thw: Tensor, frame: int, num_frames: int) -> Tensor:
    """Return the (h, w) attention of the tubelet that a frame lies in, as a share of the clip's largest value."""
    t = frame * len(attention_thw) // num_frames
    return attention_thw[t] / attention_thw.max()


def overlay(frame_HWC: np.ndarray, attention_hw: Tensor) -> np.ndarray:
    """Darken a uint8 frame (H, W, 3) where little attention (0 to 1) falls and warm it where much does."""
    size = frame_HWC.shape[:2]
    heat = torch.nn.functional.interpolate(attention_hw[None, None], size=size, mode="bilinear")[0, 0].numpy()
    warm = np.array([255.0, 90.0, 0.0])
    blended = frame_HWC * (0.4 + 0.35 * heat[..., None]) + 0.5 * heat[..., None] * warm
    return blended.clip(0, 255).astype(np.uint8)
