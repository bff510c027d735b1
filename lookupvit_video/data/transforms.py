"""Transforms of pixels, by torchvision.transforms.v2; the same for all frames of a clip.

Frames come from the reader as (T, H, W, C) uint8; that memory layout is kept until after the resize (torch resizes
channels-last uint8 fastest) and crops come before it. Clips leave as contiguous (C, T, H, W) uint8; what needs floats
or the complete batch (normalization, mixing, erasing) happens on the device. Torchvision is imported where training
needs it: its import takes longer than the answer to a video.
"""

import math
import platform
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from fvcore.common.config import CfgNode
from torch import Tensor, nn
from torch.nn import functional as F

from lookupvit_video.decoding.reader import Box

FILL = [124.0, 116.0, 104.0]  # ImageNet's mean color, for corners that rotations and shears uncover
IGNORED = -100  # label of a clip that could not be read: it adds nothing to the loss

_ARM = ("aarch64", "arm64")
ClipTransform = Callable[[Tensor], list[Tensor]]

# Names of class folders often have _ for spaces, which \b takes for a letter; "bright" and "leftover" say no side.
_SIDE = re.compile(
    r"(?<![a-z])(left|right|(?:(?:counter|anti)[-_ ]?)?clockwise)(?=(?:wards?|most|side|hand(?:ed)?)?(?![a-z]))"
)
_OTHER_SIDE = {"left": "right", "right": "left", "clockwise": "counter-clockwise", "counter-clockwise": "clockwise"}


def frames_to_clip(frames_TCHW: Tensor) -> Tensor:
    """Look at frames (T, C, H, W) of any memory layout as a clip (C, T, H, W)."""
    return frames_TCHW.permute(1, 0, 2, 3)


def side_by_side(clips: Sequence[Tensor], put: Callable[[list[Tensor]], Tensor] = torch.stack) -> Tensor:
    """Stack clips (..., C, T, H, W) with ``put``; channels that are last in the memory of all of them stay there."""
    last = [clip.movedim(-4, -1) for clip in clips if clip.ndim > 3]
    if len(last) == len(clips) and all(clip.is_contiguous() for clip in last):
        return put(last).movedim(-1, -4)
    return put(list(clips))


def resized(frames_TCHW: Tensor, size: int) -> Tensor:
    """Resize frames (T, C, H, W) uint8 on the CPU to squares: bilinear, antialiased, as ``v2.functional.resize``."""
    if frames_TCHW.shape[-2:] == (size, size):
        return frames_TCHW
    # elsewhere torch's integer code rounds in another way
    is_native = torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512") or platform.machine() in _ARM
    given = frames_TCHW if is_native else frames_TCHW.float()
    out = F.interpolate(given, size=[size, size], mode="bilinear", align_corners=False, antialias=True)
    return out if is_native else out.round_().to(torch.uint8)


@dataclass(frozen=True)
class CropTransform:
    """Square clips (C, T, size, size) uint8 from boxes of the frames: cut out, resized, augmented.

    Called with frames (T, H, W, C) uint8 it does all of that; who decodes asks for the boxes first, and for their
    pixels only.

    Args:
        boxes: height and width of the frames -> the box of each clip; here the place of a crop is drawn.
        size: pixels.
        augment: what follows, frames (T, C, size, size) -> frames of the same shape.
        one_box: all clips of a video have the box of its first one.
    """

    boxes: Callable[[int, int], list[Box]]
    size: int
    augment: nn.Module | None = None
    one_box: bool = False

    def __call__(self, frames_THWC: Tensor) -> list[Tensor]:
        """Turn complete frames into the clip of each box."""
        return [self.clip(box.cut(frames_THWC)) for box in self.boxes(*frames_THWC.shape[1:3])]

    def clip(self, crop_THWC: Tensor) -> Tensor:
        """Turn what lies in a box of the frames into a clip."""
        frames_TCHW = resized(crop_THWC.permute(0, 3, 1, 2), self.size)
        return frames_to_clip(self.augment(frames_TCHW) if self.augment else frames_TCHW)


# Module-level functions, since spawned workers have to pickle them.


def _area_box(area: Sequence[float], aspect: Sequence[float], height: int, width: int) -> list[Box]:
    """A box of a random share of the picture and a random ratio of width to height.

    As torchvision's RandomResizedCrop, but for who draws: torch takes a quarter of a millisecond for five numbers, 2 %
    of the time of a clip.
    """
    for _ in range(10):
        pixels = height * width * random.uniform(*area)
        ratio = math.exp(random.uniform(math.log(aspect[0]), math.log(aspect[1])))
        wide, high = round(math.sqrt(pixels * ratio)), round(math.sqrt(pixels / ratio))
        if 0 < wide <= width and 0 < high <= height:
            return [Box(random.randint(0, height - high), random.randint(0, width - wide), high, wide)]
    # none fits: the largest in the middle whose ratio is allowed
    ratio = min(max(width / height, aspect[0]), aspect[1])
    wide, high = min(width, round(height * ratio)), min(height, round(width / ratio))
    return [Box((height - high) // 2, (width - wide) // 2, high, wide)]


def _short_side_box(size: int, low: int, high: int, height: int, width: int) -> list[Box]:
    """A square that measures ``size`` if the short side measures ``low`` to ``high``.

    The same picture as SlowFast's short-side jitter and crop, with the crop first: fewer pixels are resized.
    """
    side = max(1, round(min(height, width) * size / random.randint(low, high)))
    return [Box(random.randint(0, height - side), random.randint(0, width - side), side, side)]


def _fixed_boxes(size: int, short_side: int, num_crops: int, height: int, width: int) -> list[Box]:
    side = max(1, round(min(height, width) * size / short_side))
    top, left = height - side, width - side
    if num_crops == 1:
        corners = [(top // 2, left // 2)]
    elif height > width:
        corners = [(0, left // 2), (top // 2, left // 2), (top, left // 2)]
    else:
        corners = [(top // 2, 0), (top // 2, left // 2), (top // 2, left)]
    return [Box(y, x, side, side) for y, x in corners]


class ClipRandAugment(nn.Module):
    """RandAugment (arXiv 1909.13719) on a scale of 0 to 10, with a magnitude drawn for each clip."""

    def __init__(self, num_ops: int, magnitude: float, std: float):
        super().__init__()
        self.num_ops, self.magnitude, self.std = num_ops, magnitude, std

    def forward(self, frames_TCHW: Tensor) -> Tensor:
        """Apply the same ``num_ops`` random operations to all frames of (T, C, H, W) uint8."""
        from torchvision.transforms import v2

        strength = min(max(random.gauss(self.magnitude, self.std), 0.0), 10.0)
        augment: Callable[[Tensor], Tensor] = v2.RandAugment(
            self.num_ops,
            round(strength * 3),
            num_magnitude_bins=31,
            interpolation=v2.InterpolationMode.BILINEAR,
            fill=FILL,
        )
        return augment(frames_TCHW)


def train_transform(cfg: CfgNode) -> CropTransform:
    """Return the random transform of the config: frames (T, H, W, C) uint8 -> one clip (C, T, size, size) uint8.

    Mirroring comes after it (``mirror_half``), since it may change the label.
    """
    size = cfg.DATA.TRAIN_CROP_SIZE
    area = cfg.DATA.TRAIN_JITTER_SCALES_RELATIVE
    boxes: Callable[[int, int], list[Box]] = partial(_short_side_box, size, *cfg.DATA.TRAIN_JITTER_SCALES)
    if area:
        boxes = partial(_area_box, tuple(area), tuple(cfg.DATA.TRAIN_JITTER_ASPECT_RELATIVE))
    steps: list[nn.Module] = []
    strength, hue = cfg.AUG.COLOR_JITTER, cfg.AUG.HUE_JITTER
    if cfg.AUG.RAND_AUGMENT_OPS or strength or hue:
        # not above: its import takes a second, which nothing else needs; here, so that workers have it of this process
        from torchvision.transforms import v2
    if cfg.AUG.RAND_AUGMENT_OPS:
        steps.append(
            ClipRandAugment(cfg.AUG.RAND_AUGMENT_OPS, cfg.AUG.RAND_AUGMENT_MAGNITUDE, cfg.AUG.RAND_AUGMENT_STD)
        )
    if strength or hue:
        jitter = v2.ColorJitter(brightness=strength, contrast=strength, saturation=strength, hue=hue)
        steps.append(v2.RandomApply([jitter], cfg.AUG.COLOR_JITTER_PROB))
    if cfg.AUG.CORRUPTIONS:
        from lookupvit_video.corruptions.augment import RandomCorruption

        steps.append(RandomCorruption(cfg.AUG.CORRUPTIONS, cfg.AUG.CORRUPTION_PROB))
    return CropTransform(boxes, size, nn.Sequential(*steps) if steps else None, cfg.TRAIN.TASK == "moving")


def eval_transform(size: int, short_side: int, num_crops: int) -> CropTransform:
    """Return the fixed transform: frames (T, H, W, C) uint8 -> ``num_crops`` clips (C, T, size, size) uint8.

    The crops are squares that measure ``size`` if the short side measures ``short_side``: one in the center, or three
    spread over the longer side.
    """
    return CropTransform(partial(_fixed_boxes, size, short_side, num_crops), size)


def mirrored_labels(classes: Sequence[str]) -> tuple[list[int] | None, str]:
    """Find the class that the mirror image of each class shows, by its name.

    Left and right, clockwise and counter-clockwise (anticlockwise) are exchanged; other names stay.

    Returns:
        the label of the mirror image for each label, or None where some class has no mirror image in the list, so that
        mirrored clips would be wrong ones; and the decision in words.
    """
    labels = {_named_sides(name, mirrored=False): label for label, name in enumerate(classes)}
    mirror = list(range(len(classes)))
    for label, name in enumerate(classes):
        if _SIDE.search(name.lower()):
            mirror[label] = labels.get(_named_sides(name, mirrored=True), -1)
            if mirror[label] < 0:
                return None, f"off, since no class is the mirror image of {name!r}"
    if any(mirror[other] != label for label, other in enumerate(mirror)):
        return None, "off, since two class names name the same side in different words"
    swapped = [label for label, other in enumerate(mirror) if label != other]
    if swapped:
        one, other = classes[swapped[0]], classes[mirror[swapped[0]]]
        return mirror, f"on; {len(swapped)} classes change sides: {one!r} mirrored is {other!r}"
    return mirror, "on; no class name says left, right or clockwise"


def _named_sides(name: str, *, mirrored: bool) -> str:
    """A class name in lower case with one spelling of each side, or with the other side instead."""

    def word(match: re.Match[str]) -> str:
        side = match[1] if match[1] in _OTHER_SIDE else "counter-clockwise"
        return _OTHER_SIDE[side] if mirrored else side

    return _SIDE.sub(word, name.lower())


def mirror_half(clips: Sequence[Tensor], label: Any, mirrored: Any) -> tuple[list[Tensor], list[Any]]:
    """Mirror each clip (..., W) with a chance of one half; return the clips and the label of each.

    Args:
        mirrored: the label of a mirrored clip.
    """
    flips = [random.random() < 0.5 for _ in clips]
    return (
        # frames first: torch has a fast way for pictures with channels last
        [
            clip.transpose(0, 1).flip(-1).transpose(0, 1) if flip else clip
            for clip, flip in zip(clips, flips, strict=True)
        ],
        [mirrored if flip else label for flip in flips],
    )


def normalize(clips_BCTHW: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Turn uint8 clips (B, C, T, H, W) into float32 ones of the given channel mean and deviation (of 0 to 1)."""
    floats = clips_BCTHW.to(torch.float32, copy=True, memory_format=torch.contiguous_format)
    for channel_BTHW, middle, deviation in zip(floats.unbind(1), mean, std, strict=True):
        torch.add(torch.tensor(-middle / deviation), channel_BTHW, alpha=1 / (255 * deviation), out=channel_BTHW)
    return floats


def is_valid(labels: Tensor) -> Tensor:
    """Return which clips (B,) could be read, by their labels (B,) or, of several each, (B, K)."""
    return labels != IGNORED if labels.dim() == 1 else labels[:, 0] != IGNORED


def soft_targets(labels_B: Tensor, num_classes: int) -> Tensor:
    """Turn labels (B,) into one-hot rows (B, K); the row of an ignored clip is all zeros.

    Rows of several labels, (B, K) of zeros and ones, stay as they are.
    """
    if labels_B.dim() == 2:
        return labels_B.clamp(min=0)
    targets_BK = torch.zeros(len(labels_B), num_classes, device=labels_B.device)
    valid_B = labels_B != IGNORED
    return targets_BK.scatter_(1, labels_B.clamp(min=0)[:, None], valid_B[:, None].float())


class BatchAugment:
    """Random erasing per clip, then mixup or cutmix over the batch, on the device; random numbers from torch's CPU.

    Args:
        erase: chance that a part of a clip is erased.
        mix: chance that a batch is mixed; None: mixing is off.
        alphas: of the Beta distributions of mixup and cutmix; 0: this one is off.
        cutmix_share: chance of cutmix where both are on.
    """

    def __init__(self, erase: float, mix: float | None, alphas: tuple[float, float], cutmix_share: float):
        from torchvision.transforms import v2

        self.erase = v2.RandomErasing(p=erase, value="random", inplace=True) if erase else None
        self.mixers: list[tuple[float, nn.Module]] = []  # (chance, mixer); the rest to 1: no mixing
        cut = cutmix_share if min(alphas) > 0 else float(alphas[1] > 0)
        if mix is not None and cut < 1:
            self.mixers.append((mix * (1 - cut), v2.MixUp(alpha=alphas[0])))
        if mix is not None and cut > 0:
            self.mixers.append((mix * cut, v2.CutMix(alpha=alphas[1])))

    def __call__(self, clips_BCTHW: Tensor, targets_BK: Tensor) -> tuple[Tensor, Tensor]:
        """Augment normalized clips (B, C, T, H, W), erasing in place, and targets (B, K); shapes stay."""
        if self.erase is not None:
            for clip in clips_BCTHW:
                self.erase(clip.transpose(0, 1))  # v2 takes videos as (T, C, H, W): one place for all frames
        if self.mixers:
            draw = torch.rand(()).item()
            for chance, mixer in self.mixers:
                if draw < chance:
                    from torchvision import tv_tensors

                    clips, targets_BK = mixer(tv_tensors.Video(clips_BCTHW), targets_BK)
                    return clips.as_subclass(torch.Tensor), targets_BK
                draw -= chance
        return clips_BCTHW, targets_BK
