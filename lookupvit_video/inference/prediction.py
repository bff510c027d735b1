"""The answer for one video: names with probabilities, and what was decided from them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lookupvit_video.evaluation.calibration import Selection
from lookupvit_video.evaluation.conformal import pseudo_random
from lookupvit_video.inference.views import Views

NONE_OF_THESE = "none of these"


@dataclass(frozen=True)
class Prediction:
    """The answer for one video."""

    path: str
    labels: list[str]
    """Class names, likeliest first."""
    probabilities: list[float]
    """Of those classes; softmax, or of several labels a video sigmoid, averaged over the views."""
    clip: Tensor = field(repr=False)
    """(C, T, H, W) uint8: the middle one of the views."""
    times: list[tuple[float, float]] = field(default_factory=list)
    """Seconds of the first and the last frame of each clip in time."""
    grid: str = ""
    """Compressed grid of the answer, such as 4x7x7; empty for models without."""
    gmacs: float = 0.0
    """10^9 multiply-accumulates of the answer: all views, all passes."""
    note: str = ""
    """A remark on the video, such as that it is shorter than the clip."""
    seconds: Sequence[float] = ()
    """Of each frame of ``clip``; empty: unknown."""
    present: list[str] | None = None
    """Of several labels a video: the classes above their thresholds, likeliest first; None: a video has one label."""
    scores: dict[str, float] = field(default_factory=dict, repr=False)
    """Of several labels a video: the probability of each class."""
    rejected: bool = False
    """Whether the answer is none of the classes, where ``reject`` was asked for."""
    members: list[str] | None = None
    """The classes of the prediction set, likeliest first; None: no ``coverage`` was asked for."""
    error = ""  # as ``Failure`` has it, so that a list of both can be looked through

    @property
    def label(self) -> str:
        """The answer: the likeliest class, or, of several labels a video, all that are present, or "none".

        "none of these" where the answer is rejected.
        """
        if self.rejected:
            return NONE_OF_THESE
        return self.labels[0] if self.present is None else ", ".join(self.present) or "none"

    @property
    def probability(self) -> float:
        """Of the likeliest class."""
        return self.probabilities[0]

    def as_dict(self) -> dict[str, Any]:
        """Return everything but the pixels, ready for JSON."""
        return {
            "path": self.path,
            "classes": self.scores or dict(zip(self.labels, self.probabilities, strict=True)),
            **({} if self.present is None else {"present": self.present}),
            **({"rejected": True} if self.rejected else {}),
            **({} if self.members is None else {"set": self.members}),
            **{name: getattr(self, name) for name in ("times", "grid", "gmacs", "note")},
        }


def prediction_of(
    views: Views,
    share_K: Tensor,
    classes: Sequence[str],
    *,
    topk: int,
    selection: Selection,
    grid: str,
    macs: int,
    thresholds: Sequence[float] | None,
) -> Prediction:
    """Return the answer for a video from its probabilities (K,).

    Args:
        macs: multiply-accumulates of a view.
        thresholds: of several labels a video, from which probability on each class is answered; None: one label.
    """
    best, clip = share_K.topk(min(topk, len(classes))), views.clips[len(views.clips) // 2]
    scores, present, members = dict(zip(classes, share_K.tolist(), strict=True)), None, None
    if thresholds is not None:
        cuts = dict(zip(classes, thresholds, strict=True))
        present = sorted((name for name in classes if scores[name] >= cuts[name]), key=lambda name: -scores[name])
    if selection.kind:
        found = selection.members(share_K.numpy(), pseudo_random(clip.tobytes()))
        members = [classes[label] for label in found]
    return Prediction(
        path=views.name,
        labels=[classes[label] for label in best.indices.tolist()],
        probabilities=best.values.tolist(),
        clip=torch.from_numpy(clip),
        times=views.times,
        grid=grid,
        gmacs=len(views.clips) * macs / 1e9,
        note=views.note,
        seconds=views.seconds[len(views.times) // 2] if views.seconds else (),
        present=present,
        scores=scores if thresholds is not None else {},
        rejected=selection.rejects(share_K.numpy()),
        members=members,
    )
