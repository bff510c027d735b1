"""Probabilities that mean something: a temperature, its error, and answers that are held back when unsure.

What ``lookupvit calibrate`` finds on labeled videos is a ``Calibration``, which travels in the checkpoint.
Shape letters: V views, K classes.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from lookupvit_video.errors import UserError
from lookupvit_video.evaluation.conformal import KINDS, class_scores, quantiles
from lookupvit_video.evaluation.metrics import calibration_error, judged

Array = np.ndarray
_LARGEST = math.log(20.0)  # of a temperature, up and down
_ROUNDING = 1e-6  # so that the rounding of a sum does not decide about a video of the calibration list
_ENOUGH = 5 * 10**7  # logits to find a temperature from
REJECT = ("error", "unknown")
SHARES = 20  # of the most confident answers, among which ``reject`` chooses


# Temperature --------------------------------------------------------------------------------------------------------


def probabilities(logits_NVK: Array, temperature: Sequence[float], *, multi_label: bool) -> Array:
    """Return the answers (videos, K): softmax, or sigmoid, of the logits divided by a temperature; mean over the views.

    Args:
        temperature: one number, or one a class; empty: 1.
    """
    scaled = logits_NVK / np.array(temperature or [1.0], dtype=logits_NVK.dtype)
    if multi_label:
        shares = 0.5 * (1 + np.tanh(0.5 * scaled))  # the sigmoid, without overflow
    else:
        shares = np.exp(scaled - scaled.max(-1, keepdims=True))
        shares = shares / shares.sum(-1, keepdims=True)
    mean: Array = shares.mean(1)
    return mean


def fit_temperature(logits_NVK: Array, labels: Array, seed: int = 0) -> list[float]:
    """Return the temperature of least negative log-likelihood (Guo et al., 1706.04599), one for all classes.

    Of several labels a video one for each class. It is 1 where another would raise the calibration error, and for a
    class that all or none of the videos have.

    Args:
        labels: (videos,); of several labels a video (videos, K) bool.
        seed: of the choice of videos where there are too many to take all.
    """
    few = max(1, _ENOUGH // int(np.prod(logits_NVK.shape[1:])))
    if len(labels) > few:
        rows = np.random.default_rng(seed).choice(len(labels), few, replace=False)
        logits_NVK, labels = logits_NVK[rows], labels[rows]
    if labels.ndim == 1:
        return [_best_temperature(logits_NVK, labels, multi_label=False)]
    return [
        _best_temperature(logits_NVK[:, :, [label]], labels[:, [label]], multi_label=True)
        if 0 < labels[:, label].sum() < len(labels) else 1.0
        for label in range(labels.shape[1])
    ]  # fmt: skip


def _best_temperature(logits_NVK: Array, labels: Array, *, multi_label: bool) -> float:
    from scipy.optimize import minimize_scalar

    def answers(log_temperature: float) -> Array:
        return probabilities(logits_NVK, [math.exp(log_temperature)], multi_label=multi_label)

    def loss(log_temperature: float) -> float:
        return _log_loss(answers(log_temperature), labels)

    found = minimize_scalar(loss, bounds=(-_LARGEST, _LARGEST), method="bounded", options={"xatol": 1e-4}).x
    is_better = loss(found) < loss(0.0) and calibration_error(answers(found), labels) <= calibration_error(
        answers(0.0), labels
    )
    return math.exp(found) if is_better else 1.0


def _log_loss(shares: Array, labels: Array) -> float:
    chosen = np.where(labels, shares, 1 - shares) if labels.ndim == 2 else shares[np.arange(len(labels)), labels]
    return float(-np.log(np.clip(chosen.astype(np.float64), 1e-12, None)).mean())


# Answers that are held back, and sets of classes ----------------------------------------------------------------


@dataclass(frozen=True)
class Selection:
    """Which answers are rejected, and which classes are in a prediction set."""

    least_confidence: float = -math.inf
    """An answer whose likeliest class has less is rejected: none of these."""
    kind: str = ""
    """Of the sets, see ``conformal``; empty: none."""
    quantiles_K: Sequence[float] = ()

    def rejects(self, shares_K: Array) -> bool:
        """Whether the answer with these probabilities is held back."""
        return float(shares_K.max()) < self.least_confidence

    def members(self, shares_K: Array, uniform: float) -> list[int]:
        """Return the classes in the set, likeliest first; ``uniform`` as in ``conformal.class_scores``."""
        (scores_K,) = class_scores(shares_K[None], [uniform], self.kind)
        inside = np.flatnonzero(scores_K <= np.asarray(self.quantiles_K) + _ROUNDING)
        return [int(label) for label in inside[np.argsort(-shares_K[inside], kind="stable")]]


@dataclass(frozen=True)
class Calibration:
    """What ``lookupvit calibrate`` found for the answers with one budget; plain lists, as files hold them."""

    temperature: list[float]
    """One number, or one a class where a video may have several labels; empty: 1."""
    views: str = ""
    """Views in time x in space of the answers, such as 1x3."""
    labels: list[int] = field(default_factory=list)
    """Of each calibration video, as the following; all empty where a video may have several labels."""
    confidences: list[float] = field(default_factory=list)
    """Of the likeliest class."""
    right: list[bool] = field(default_factory=list)
    scores: dict[str, list[float]] = field(default_factory=dict)
    """Of the true class, by kind of set, see ``conformal``; "class" has those of "lac"."""
    unknown: list[float] = field(default_factory=list)
    """Confidences for videos of none of the classes, where a list of them was given."""

    def selection(
        self, num_classes: int, reject: "Reject | None" = None, coverage: float | None = None, kind: str = "lac"
    ) -> Selection:
        """Return the rule for a wanted rate of errors and a wanted coverage of sets.

        Raises:
            UserError: they are out of range, or the calibration list does not allow them.
        """
        least = -math.inf if reject is None else self.least_confidence(reject)
        if coverage is None:
            return Selection(least)
        if not 0 < coverage < 1:
            raise UserError(f"coverage {coverage:g}: it must be between 0 and 1, such as 0.9")
        if kind not in KINDS:
            raise UserError(f"there is no set of kind {kind!r}; choose from {', '.join(KINDS)}")
        scores = np.array(self.scores["aps" if kind == "aps" else "lac"])
        cuts_K = quantiles(scores, np.array(self.labels), num_classes, coverage, kind)
        return Selection(least, kind, cuts_K.tolist())

    def least_confidence(self, reject: "Reject") -> float:
        """Return the least confidence with which an answer is accepted.

        The rate of errors holds with 90 % confidence (Geifman and El-Yaniv, 1705.08500): of the shares 5, 10, ... 100 %
        of most confident answers, the largest is accepted whose rate has an upper bound (Clopper and Pearson's) that is
        low enough, at a confidence that allows for looking at all of them. The rate of unknown videos is a mean.

        Raises:
            UserError: no confidence gives the wanted rate, or no list of unknown videos was given.
        """
        from scipy.stats import beta

        confidences, right = np.array(self.confidences), np.array(self.right, dtype=bool)
        if reject.of == "unknown":
            return self._least_for_unknown(reject.rate)
        count = len(right)
        last = np.ceil(np.arange(1, SHARES + 1) / SHARES * count).astype(int) - 1
        cuts = np.unique(np.sort(confidences)[::-1][last])
        accepted = confidences >= cuts[:, None]
        hits, wrong = (accepted & right).sum(1), (accepted & ~right).sum(1)
        bounds = np.where(hits, beta.ppf(1 - 0.1 / SHARES, wrong + 1, np.maximum(hits, 1)), 1.0)
        if not (bounds <= reject.rate).any():
            raise UserError(
                f"reject {reject}: no confidence surely gives so few errors, from {count} calibration videos (the "
                f"least that can be promised is {bounds.min():.3g}); allow more, or calibrate on more videos"
            )
        return float(cuts[np.argmax(bounds <= reject.rate)]) * (1 - _ROUNDING)

    def _least_for_unknown(self, rate: float) -> float:
        if not self.unknown:
            raise UserError(
                "reject unknown=RATE: this checkpoint was calibrated without videos of unknown classes; run lookupvit "
                "calibrate with --unknown-list"
            )
        falling = np.sort(self.unknown)[::-1]
        accepted = math.floor(rate * (len(falling) + 1) + 1e-9) - 1  # of the calibration list's
        if accepted < 0:
            raise UserError(
                f"reject unknown={rate:g}: {len(falling)} videos of unknown classes are too few for this rate; "
                f"calibrate with at least {math.ceil(1 / rate) - 1}"
            )
        if accepted >= len(falling):
            return -math.inf
        return float(falling[accepted]) * (1 + _ROUNDING)  # this one is rejected, as are equal ones

    def as_dict(self) -> dict[str, Any]:
        """Return it as files hold it."""
        return asdict(self)


@dataclass(frozen=True)
class Reject:
    """A wish: at most this rate of accepted answers is wrong, or of videos of unknown classes is accepted."""

    of: str
    """error or unknown."""
    rate: float

    def __str__(self) -> str:
        return f"{self.of}={self.rate:g}"

    @classmethod
    def parse(cls, wish: "str | float | Reject") -> "Reject":
        """Read 0.05, "0.05", "error=0.05" or "unknown=0.05".

        Raises:
            UserError: it is none of these.
        """
        if isinstance(wish, Reject):
            return wish
        *name, number = str(wish).split("=", 1)
        of = name[0].strip() if name else "error"
        try:
            rate = float(number)
        except ValueError:
            rate = math.nan
        if of not in REJECT or not 0 < rate < 1:
            raise UserError(
                f"reject {wish}: give the largest rate of errors, such as 0.05 or error=0.05, or of accepted videos of "
                "unknown classes, such as unknown=0.05"
            )
        return cls(of, rate)


def calibration_of(
    scores: Array,
    labels: Array,
    uniform: Array,
    temperature: Sequence[float],
    views: str,
    unknown: Sequence[float] = (),
) -> Calibration:
    """Return what travels in the checkpoint, from calibrated answers (videos, K) to labeled videos that could be read.

    Args:
        uniform: (videos,), see ``conformal.class_scores``.
        unknown: confidences for videos of none of the classes.
    """
    if labels.ndim == 2:
        return Calibration(list(temperature), views)
    confidence, right = judged(scores, labels)
    of_true = {
        kind: class_scores(scores, uniform, kind)[np.arange(len(labels)), labels].tolist() for kind in ("lac", "aps")
    }
    return Calibration(
        list(temperature), views, labels.tolist(), confidence.tolist(), right.tolist(), of_true, list(unknown)
    )


def read_calibration(content: Any, num_classes: int, *, multi_label: bool) -> Calibration:
    """Return a calibration as a file holds it.

    Raises:
        ValueError, TypeError, KeyError, AttributeError: it is not one, or of another number of classes.
    """
    if not isinstance(content, Mapping):
        raise TypeError("not a calibration")
    found = Calibration(
        temperature=[float(value) for value in content["temperature"]],
        views=str(content["views"]),
        labels=[int(value) for value in content["labels"]],
        confidences=[float(value) for value in content["confidences"]],
        right=[bool(value) for value in content["right"]],
        scores={str(kind): [float(value) for value in values] for kind, values in content["scores"].items()},
        unknown=[float(value) for value in content["unknown"]],
    )
    count = len(found.labels)
    fits = (
        len(found.temperature) in ({0, num_classes} if multi_label else {0, 1})
        and all(0 < value < math.inf for value in found.temperature)
        and all(0 <= label < num_classes for label in found.labels)
        and {len(found.confidences), len(found.right), *map(len, found.scores.values())} <= {count}
        and (not count or found.scores.keys() >= {"lac", "aps"})
    )
    if not fits:
        raise ValueError("not a calibration of this model")
    return found
