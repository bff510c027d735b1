"""The loss of a clip's class scores, and what each class weighs in it. Shape letters: B batch, K classes."""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from lookupvit_video.data.tables import read_list
from lookupvit_video.errors import UserError

# For the effective number of videos: the middle one of the values that Cui et al. (1901.05555) try.
_EFFECTIVE_BETA = 0.999


@dataclass(frozen=True)
class ClassificationLoss:
    """The loss of one head's logits (B, K) against targets (B, K): one value for each clip.

    Rows of targets sum to 1, or, with several labels a video, have values of 0 to 1.

    * cross_entropy;
    * focal (Lin et al., 1708.02002): each class's term times (1 - its probability) ^ gamma;
    * logit_adjusted (Menon et al., 2007.07314): cross-entropy of logits + strength x log(share of the class).
    """

    kind: str = "cross_entropy"
    smoothing: float = 0.0
    """SOLVER.LABEL_SMOOTHING."""
    focal_gamma: float = 2.0
    adjustment_K: Tensor | None = None
    """logit_adjusted: what is added to the logits."""
    weights_K: Tensor | None = None
    """Factor of each class's term; None: all 1. multi_label: of the term of a class that is there."""
    multi_label: bool = False
    """Each class by its own sigmoid; the loss is the mean over the classes."""

    def __call__(self, logits_BK: Tensor, targets_BK: Tensor) -> Tensor:
        """Return the loss (B,) of float32 logits."""
        if self.multi_label:
            return self._binary(logits_BK, targets_BK)
        if self.adjustment_K is not None:
            logits_BK = logits_BK + self.adjustment_K
        if self.kind != "focal":
            return F.cross_entropy(
                logits_BK, targets_BK, self.weights_K, reduction="none", label_smoothing=self.smoothing
            )
        targets_BK = targets_BK * (1 - self.smoothing) + self.smoothing / targets_BK.shape[-1]
        logs_BK = logits_BK.log_softmax(-1)
        terms_BK = targets_BK * (1 - logs_BK.exp()) ** self.focal_gamma * -logs_BK
        return (terms_BK if self.weights_K is None else terms_BK * self.weights_K).sum(-1)

    def _binary(self, logits_BK: Tensor, targets_BK: Tensor) -> Tensor:
        targets_BK = targets_BK * (1 - self.smoothing) + self.smoothing / 2
        if self.kind != "focal":
            return F.binary_cross_entropy_with_logits(
                logits_BK, targets_BK, reduction="none", pos_weight=self.weights_K
            ).mean(-1)
        present_BK, absent_BK = logits_BK.sigmoid(), (-logits_BK).sigmoid()
        there_BK = targets_BK * absent_BK**self.focal_gamma * -F.logsigmoid(logits_BK)
        away_BK = (1 - targets_BK) * present_BK**self.focal_gamma * -F.logsigmoid(-logits_BK)
        return ((there_BK if self.weights_K is None else there_BK * self.weights_K) + away_BK).mean(-1)


def videos_per_class(
    labels: Sequence[int] | np.ndarray, num_classes: int, mirror: Sequence[int] | None = None
) -> np.ndarray:
    """Return how many videos (K,) each class has in training.

    Args:
        mirror: the label of each class's mirror image, where half of the clips are mirrored.
    """
    counts = np.bincount(labels, minlength=num_classes).astype(np.float64)
    return counts if mirror is None else (counts + counts[list(mirror)]) / 2


def class_weights(
    rule: str, counts_K: np.ndarray, classes: Sequence[str], num_videos: int | None = None
) -> np.ndarray | None:
    """Return the weight (K,) of each class; their mean over the training videos is 1, so learning rates keep theirs.

    A class without a training video gets the largest weight of the others. Of several labels a video: by rule, the
    weight of a class that is there is that of the videos without it over that of the videos with it.

    Args:
        num_videos: where a video may have several labels.
        rule: SOLVER.CLASS_WEIGHTS: none; balanced: 1 / videos; effective_number: 1 / effective number of videos (Cui et
            al., 1901.05555); or a CSV file with the header ``class,weight``, whose weights are taken as they are.
        counts_K: videos of each class.

    Raises:
        UserError: the file cannot be read, or does not give each class one weight.
    """
    if rule == "none":
        return None
    if rule not in ("balanced", "effective_number"):
        return _weights_of_file(rule, classes)
    counts_K = np.where(counts_K > 0, counts_K, counts_K.max())
    if num_videos is not None:
        ratio_K: np.ndarray = _effective(rule, np.maximum(num_videos - counts_K, 1)) / _effective(rule, counts_K)
        return ratio_K
    weights_K = 1 / _effective(rule, counts_K)
    scaled_K: np.ndarray = weights_K * counts_K.sum() / (weights_K * counts_K).sum()
    return scaled_K


def _effective(rule: str, counts_K: np.ndarray) -> np.ndarray:
    """How many videos (K,) count: all of them, or the effective number."""
    return counts_K if rule == "balanced" else (1 - _EFFECTIVE_BETA**counts_K) / (1 - _EFFECTIVE_BETA)


def _weights_of_file(path: str, classes: Sequence[str]) -> np.ndarray:
    text = read_list(
        path, "the class weights", "set SOLVER.CLASS_WEIGHTS to none, balanced, effective_number or a file"
    )
    rows = list(csv.reader(io.StringIO(text)))
    if not rows or [cell.strip().lower() for cell in rows[0]] != ["class", "weight"]:
        raise UserError(f"{path}, line 1: the header of class weights is class,weight")
    found: dict[str, float] = {}
    for line, row in enumerate(rows[1:], start=2):
        if not any(cell.strip() for cell in row):
            continue
        name = row[0].strip()
        if name not in classes:
            raise UserError(f"{path}, line {line}: {name!r} is not a class of this data set")
        if name in found:
            raise UserError(f"{path}, line {line}: class {name!r} has a weight already")
        try:
            found[name] = float(row[1])
        except (ValueError, IndexError):
            found[name] = -1.0
        if not 0 <= found[name] < float("inf"):
            raise UserError(f"{path}, line {line}: the weight of {name!r} must be a number of at least 0")
    missing = [name for name in classes if name not in found]
    if missing:
        raise UserError(f"{path}: class {missing[0]!r} has no weight; give each of the {len(classes)} classes one")
    return np.array([found[name] for name in classes])


def build_loss(
    kind: str,
    counts_K: np.ndarray,
    weights_K: np.ndarray | None,
    *,
    smoothing: float,
    focal_gamma: float,
    adjustment: float,
    device: torch.device,
    multi_label: bool = False,
) -> ClassificationLoss:
    """Return the loss that SOLVER.LOSS names, its tensors on a device.

    Args:
        counts_K: training videos of each class; one without counts as one video.
        weights_K: see ``class_weights``.
        smoothing, focal_gamma, adjustment: SOLVER.LABEL_SMOOTHING, FOCAL_GAMMA and LOGIT_ADJUSTMENT.
    """

    def on_device(values_K: np.ndarray) -> Tensor:
        return torch.tensor(values_K, dtype=torch.float32, device=device)

    shares_K = np.maximum(counts_K, 1) / np.maximum(counts_K, 1).sum()
    return ClassificationLoss(
        kind,
        smoothing,
        focal_gamma,
        on_device(adjustment * np.log(shares_K)) if kind == "logit_adjusted" else None,
        None if weights_K is None else on_device(weights_K),
        multi_label,
    )
