"""Does a model need video at all? Its answers with the order of the frames taken away."""

from collections.abc import Mapping

import numpy as np
from torch import Tensor

from lookupvit_video.corruptions.tubelets import frozen_frames, shuffled_frames
from lookupvit_video.errors import UserError
from lookupvit_video.seeding import mix_seed

ORDERS = ("real", "shuffled", "frozen")
CLEAR = 2.0  # points of accuracy that count as a difference; TEST intervals of small lists are wider


def reordered(clips_BCTHW: Tensor, order: str, seed: int = 0) -> Tensor:
    """Return clips with their frames as they are ("real"), in another order ("shuffled") or all the same ("frozen").

    Args:
        order: "shuffled" draws an order from the seed, never the real one; "frozen" repeats the middle frame.

    Raises:
        UserError: an unknown order.
    """
    if order not in ORDERS:
        raise UserError(f"order {order!r}: choose one of {', '.join(ORDERS)}")
    if order == "real":
        return clips_BCTHW
    numbers, rng = np.arange(clips_BCTHW.shape[2]), np.random.default_rng(mix_seed(seed))
    chosen = frozen_frames(numbers, 0.5, rng) if order == "frozen" else shuffled_frames(numbers, 1, rng)
    return clips_BCTHW[:, :, chosen.tolist()]


def what_order_means(accuracy: Mapping[str, float]) -> str:
    """Return in words what the accuracies, in percent, with the frames real, shuffled and frozen say."""
    real, shuffled, frozen = (accuracy[order] for order in ORDERS)
    figures = f"{real:.2f} %, shuffled frames {shuffled:.2f} %, one frame repeated {frozen:.2f} %"
    if real - frozen < CLEAR:
        meaning = "this model answers from single frames: an image model may do as well on such videos"
    elif real - shuffled < CLEAR:
        meaning = "several frames help this model, but their order does not: it sees more, not motion"
    else:
        meaning = f"{real - shuffled:.1f} points come from the order of the frames: these videos need a video model"
    return f"{figures}; {meaning}"
