"""What a program needs to use an exported model, for `model.json`: numbers, and rules in words.

`reference.py`, the script next to an exported model, takes its numbers from here. A change in how a video becomes clips
(`lookupvit_video.inference.views` and below) must be made there and here too; the reference's test compares answers.
"""

from collections.abc import Sequence
from typing import Any

import av
import torch

from lookupvit_video.decoding.orientation import NEARLY_SQUARE, ODDEST_PIXEL
from lookupvit_video.evaluation.evaluate import CompressedGrid
from lookupvit_video.inference.predictor import Predictor
from lookupvit_video.inference.views import Plan
from lookupvit_video.registry import MODELS

# Constants of the readers and of `read_file`, which the steps below name.
RULES = {
    "time_tolerance_seconds": 1e-6,
    "ascending_share": 0.8,
    "pixel_aspect_tolerance": NEARLY_SQUARE,
    "pixel_aspect_limit": ODDEST_PIXEL,
}

# Names in capitals are entries of `preprocessing`. round: half to even; //: rounded down; int: towards zero.
STEPS = {
    "stream": "The video stream that av_find_best_stream names (PyAV: container.streams.best('video')); an attached "
    "picture is not a video. Damaged and truncated files are outside this description: the package that trained the "
    "model refuses or reports them, the reference warns and uses what can be decoded.",
    "decode": "All frames of the stream from its first packet on, in the order shown; edit lists are obeyed, as libav "
    "does. The frame shown at a time is always that of such a complete decode, never the nearest key frame.",
    "times": "time = (time stamp - time stamp of the first frame) x time base, in seconds, so the first frame is at 0. "
    "Where time stamps do not ascend: if their longest strictly ascending subsequence holds more than ASCENDING_SHARE "
    "of the frames, the other frames are left out; else time = number of the frame / average frame rate. "
    "duration = last time x N / (N - 1) for N frames; 1 / average frame rate for one.",
    "sample": "V = VIEWS_IN_TIME clips of T = NUM_FRAMES frames, k = 0 .. V-1, i = 0 .. T-1, c = (k + 0.5) / V. "
    "SAMPLING 'clip': second = c x max(duration - T x STEP_SECONDS, 0) + i x STEP_SECONDS. SAMPLING 'segments': "
    "second = (i + c) x duration / T. SINGLE_FRAME: the second of i = T // 2 for all i.",
    "frame": "The last frame with time <= second + TIME_TOLERANCE_SECONDS. So past the end the last frame is shown; a "
    "video shorter than the clip repeats it.",
    "pixels": "Pixel aspect r = width of a pixel / height (av_guess_sample_aspect_ratio; 1 where it is missing). If "
    "1/PIXEL_ASPECT_LIMIT <= r <= PIXEL_ASPECT_LIMIT and |r - 1| > PIXEL_ASPECT_TOLERANCE, the picture becomes "
    "max(1, round(width x r)) wide; height stays. Every frame is scaled to that size of the first frame. "
    "Scaling and conversion to 8-bit RGB are one step of libswscale with its bicubic filter (PyAV: frame.reformat); "
    "color matrix and range are those of the frame's header, BT.601 and 16 to 235 where it has none. Nothing is "
    "deinterlaced: an interlaced frame is converted like a progressive one.",
    "upright": "Display matrix (a b u / c d v / x y w) of a frame: a stored pixel (x, y) is shown at (a x + c y, "
    "b x + d y). If |b| + |c| > |a| + |d| (rows of length 1): exchange rows and columns, then a = c, d = b. "
    "Then reverse the rows if d < 0, and the columns if a < 0. So all eight orientations are upright; other angles are "
    "rounded to them. A frame without a matrix: not turned if it is a key frame, else turned as the frame before. "
    "A matrix of zeros: not turned. All upright frames have the size of the first one upright.",
    "crop": "H, W: of the upright picture. side = max(1, round(min(H, W) x SIZE / SHORT_SIDE)); squares of that side. "
    "VIEWS_IN_SPACE 1: top (H - side) // 2, left (W - side) // 2. VIEWS_IN_SPACE 3: along the longer side (along the "
    "width where equal) at 0, (length - side) // 2 and length - side; along the other in the middle.",
    "resize": "Each square to SIZE x SIZE, first its width, then its height, rounded to 8 bits after each; no pass "
    "where the length is right. Antialiased bilinear: scale = old / SIZE, support = max(scale, 1); output n has its "
    "center at (n + 0.5) x scale and takes inputs max(int(center - support + 0.5), 0) up to, without, "
    "min(int(center + support + 0.5), old), with weights max(0, 1 - |input + 0.5 - center| / support) that are divided "
    "by their sum. Weights are integers: w = int(weight x 2^p + 0.5), p the largest (at most 22) for which "
    "int(largest weight x 2^p + 0.5) < 2^15; output = (sum of w x input + 2^(p-1)) >> p, limited to 0 .. 255. Equal to "
    "the bit to torch.nn.functional.interpolate(uint8, mode='bilinear', antialias=True) on processors with AVX2.",
    "layout": "clips[view, channel, frame, row, column], uint8, channels red, green, blue; view = clip in time x "
    "VIEWS_IN_SPACE + crop. Pass them to the model as they are: NORMALIZATION is inside it.",
    "answer": "The mean of the probabilities over the views; class n is CLASSES[n]. "
    "Where there are thresholds next to the classes, a video has each class whose probability is at least its own.",
}


def description(
    predictor: Predictor, *, batch: int | None, grid: CompressedGrid, int8: bool, device: torch.device
) -> dict[str, Any]:
    """Return the description of an exported model, without its files and test vectors.

    Args:
        batch: clips per call; None: any number.
    """
    cfg = predictor.cfg
    size = cfg.DATA.TEST_CROP_SIZE
    of_lookupvit = {"compressed_grid": predictor.budget_name(grid)}
    return {
        "arch": cfg.MODEL.ARCH,
        **(of_lookupvit if MODELS[cfg.MODEL.ARCH].compressed_grids else {}),
        "weights": "int8" if int8 else "float32",
        "device": device.type,
        "torch": torch.__version__,
        "av": av.__version__,
        "input": {
            "name": "clips",
            "dtype": "uint8",
            "layout": "BCTHW",
            "shape": [batch or "any", 3, cfg.DATA.NUM_FRAMES, size, size],
            "colors": "RGB, 0 to 255",
        },
        "output": {
            "name": "probabilities",
            "dtype": "float32",
            "shape": [batch or "any", len(predictor.classes)],
            "meaning": "sigmoid of the class scores of each clip: each class by itself, in the order of classes"
            if predictor.multi_label
            else "softmax of the class scores of each clip: sums to 1, in the order of classes",
            # The model divides the class scores by it; one for all classes, or one for each.
            **({"temperature": list(temperature)} if (temperature := predictor.temperature(grid)) else {}),
        },
        **({"thresholds": predictor.thresholds} if predictor.multi_label else {}),
        "preprocessing": preprocessing(predictor.plan, cfg.DATA.MEAN, cfg.DATA.STD),
        "classes": predictor.classes,
    }


def preprocessing(plan: Plan, mean: Sequence[float], std: Sequence[float]) -> dict[str, Any]:
    """Return how a video becomes clips: `STEPS`, and the numbers and names in them."""
    return {
        "steps": STEPS,
        "sampling": plan.times.mode,
        "num_frames": plan.times.num_frames,
        **({"step_seconds": plan.times.step} if plan.times.mode == "clip" else {}),
        "single_frame": plan.times.single_frame,
        **RULES,
        "short_side": plan.short_side,
        "size": plan.size,
        "views_in_time": plan.times.num_clips,
        "views_in_space": plan.num_crops,
        "normalization": {"done": "inside the model", "mean": list(mean), "std": list(std)},
    }
