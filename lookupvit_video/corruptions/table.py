"""Every corruption once: what it is called, which suites have it, its published strengths, and how to apply it.

Suites: Mini Kinetics-C and Mini SSv2-C (Yi et al., NeurIPS 2021 data sets track), Kinetics400-P (Schiappa et al., CVPR
2023), "more", of this project, and "probes", which depend on a model's tubelets. Two corruptions of one name in two
suites have different strengths; the one with "_p" is Kinetics400-P's.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import PurePath
from typing import Any

import numpy as np

from lookupvit_video.corruptions import blur, codec, pixels, timing, tubelets
from lookupvit_video.errors import UserError
from lookupvit_video.seeding import mix_seed

YI_KINETICS, YI_SSV2, SCHIAPPA, MORE, PROBES = SUITES = ("minikinetics-c", "minissv2-c", "schiappa-p", "more", "probes")
BOTH_YI = (YI_KINETICS, YI_SSV2)
SEVERITIES = (1, 2, 3, 4, 5)
CLIP, VIDEO, ORDER = "clip", "video", "order"


@dataclass(frozen=True)
class Corruption:
    """One way to corrupt a video, at five severities."""

    name: str
    function: Callable[[np.ndarray, Any, np.random.Generator], np.ndarray]
    strengths: tuple[Any, ...]
    """The published parameter at severity 1 to 5."""
    suites: tuple[str, ...]
    stage: str = CLIP
    """What it applies to: "clip", frames (T, H, W, 3) as the model sees them; "video", all frames of the file;
    "order", the numbers (N,) of the frames of the file."""
    nested: bool = False
    """Whether all severities share their random draws, so that what is lost at one is lost at the next."""

    def __call__(self, data: np.ndarray, severity: int, seed: int) -> np.ndarray:
        """Return corrupted frames, or another order; severity 0 returns what came in.

        Args:
            data: see ``stage``; not changed.
            seed: with the severity it decides everything random; see ``seed_of``.

        Raises:
            UserError: there is no such severity.
        """
        if not 0 <= severity <= len(self.strengths):
            raise UserError(f"severity {severity}: choose 0 (unchanged) to {len(self.strengths)}")
        if not severity:
            return data
        rng = np.random.default_rng(mix_seed(seed, 0 if self.nested else severity))
        return self.function(data, self.strengths[severity - 1], rng)


def seed_of(path: str, name: str, view: int = 0) -> int:
    """Return the seed of a video and a corruption: the same wherever the file is, whatever the list or the batch.

    Args:
        view: of several clips of a video.
    """
    text = f"{PurePath(path).name}\0{name}".encode("utf-8", "surrogateescape")
    return mix_seed(int.from_bytes(hashlib.sha256(text).digest()[:6], "big"), view)


def _all() -> list[Corruption]:
    return [
        # Mini Kinetics-C and Mini SSv2-C
        Corruption("shot_noise", pixels.shot_noise, (60, 25, 12, 5, 3), BOTH_YI),
        Corruption("motion_blur", blur.frame_blur, (3, 5, 7, 9, 11), (YI_KINETICS,), VIDEO),
        Corruption("motion_blur_ssv2", blur.frame_blur, (1, 2, 3, 4, 6), (YI_SSV2,), VIDEO),
        Corruption("fog", pixels.fog, ((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4)), BOTH_YI, CLIP, True),
        Corruption("rain", pixels.rain,
                   ((10, 770, 0.8), (30, 770, 0.8), (60, 770, 0.7), (60, 500, 0.6), (80, 400, 0.5)), BOTH_YI),
        Corruption("contrast", pixels.contrast, (0.5, 0.4, 0.3, 0.2, 0.1), BOTH_YI),
        Corruption("brightness", pixels.brightness, (0.1, 0.2, 0.3, 0.4, 0.5), BOTH_YI),
        Corruption("saturate", pixels.saturate, ((0.3, 0), (0.1, 0), (2, 0), (5, 0.1), (20, 0.2)), BOTH_YI),
        Corruption("h264_crf", codec.h264_crf, (23, 30, 37, 44, 51), BOTH_YI, VIDEO),
        Corruption("h265_crf", codec.h265_crf, (27, 33, 39, 45, 51), BOTH_YI, VIDEO),
        Corruption("bit_error", codec.bit_error, (100_000, 50_000, 30_000, 20_000, 10_000), BOTH_YI, VIDEO, True),
        Corruption("packet_loss", codec.packet_loss, (1, 2, 3, 4, 6), BOTH_YI, VIDEO, True),
        Corruption("frame_rate", timing.frame_rate, tuple((rate, 30) for rate in (20, 16, 12, 9, 6)), (YI_KINETICS,),
                   ORDER),
        Corruption("frame_rate_ssv2", timing.frame_rate, tuple((rate, 12) for rate in (10, 8, 6, 4, 2)), (YI_SSV2,),
                   ORDER),
        # Kinetics400-P
        Corruption("gaussian_noise", pixels.gaussian_noise, (0.08, 0.12, 0.18, 0.26, 0.38), (SCHIAPPA,)),
        Corruption("shot_noise_p", pixels.shot_noise, (250, 100, 50, 30, 15), (SCHIAPPA,)),
        Corruption("impulse_noise", pixels.impulse_noise, (0.03, 0.06, 0.09, 0.17, 0.27), (SCHIAPPA,)),
        Corruption("speckle_noise", pixels.speckle_noise, (0.15, 0.2, 0.25, 0.3, 0.35), (SCHIAPPA,)),
        Corruption("motion_blur_p", blur.motion_blur, ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15)), (SCHIAPPA,)),
        Corruption("defocus_blur", blur.defocus_blur, ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)),
                   (SCHIAPPA,)),
        Corruption("zoom_blur", blur.zoom_blur,
                   ((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03)), (SCHIAPPA,)),
        Corruption("jpeg", pixels.jpeg, (25, 18, 15, 10, 7), (SCHIAPPA,)),
        # The published qualities saturate: the scale of the quantizer up to its largest value instead.
        Corruption("mpeg2", codec.mpeg2, (4, 8, 14, 22, 31), (SCHIAPPA,), VIDEO),
        Corruption("mpeg4", codec.mpeg4, (4, 8, 14, 22, 31), (SCHIAPPA,), VIDEO),
        Corruption("sampling", timing.sampling, (2, 4, 8, 16, 32), (SCHIAPPA,), ORDER),
        Corruption("reverse_sampling", timing.reverse_sampling, (2, 4, 8, 16, 32), (SCHIAPPA,), ORDER),
        # Published in the opposite order, from the strongest to the weakest.
        Corruption("jumble", timing.jumble, (2, 4, 8, 16, 32), (SCHIAPPA,), ORDER),
        Corruption("box_jumble", timing.box_jumble, (36, 25, 16, 9, 4), (SCHIAPPA,), ORDER),
        Corruption("freeze", timing.freeze, ((0.4, 1), (0.2, 1), (0.1, 1), (0.05, 2), (0, 1)), (SCHIAPPA,), ORDER),
        Corruption("static_rotate", pixels.static_rotate, (7.5, 15, 30, 45, 90), (SCHIAPPA,)),
        Corruption("rotate", pixels.rotate, (7, 13, 19, 25, 31), (SCHIAPPA,)),
        Corruption("translate", pixels.translate, (8, 16, 24, 32, 40), (SCHIAPPA,), CLIP, True),
        # This project's
        Corruption("h264_abr", codec.h264_abr, (2, 4, 8, 16, 32), (MORE,), VIDEO),
        Corruption("h265_abr", codec.h265_abr, (2, 4, 8, 16, 32), (MORE,), VIDEO),
        Corruption("drop_frames", timing.drop_frames, (0.1, 0.2, 0.4, 0.6, 0.8), (MORE,), ORDER, True),
        Corruption("shake", pixels.shake, (4, 8, 16, 24, 32), (MORE,), CLIP, True),
    ]  # fmt: skip


CORRUPTIONS = {corruption.name: corruption for corruption in _all()}


def probes(tubelet: tubelets.Tubelet) -> list[Corruption]:
    """Return the probes for a model with tubelets of some size.

    The severities of shuffled and frozen frames are five draws of the same strength.
    """
    shares = (0.01, 0.02, 0.05, 0.1, 0.2)
    noisy, shuffled = (partial(one, tubelet=tubelet) for one in (tubelets.noisy_tubelets, tubelets.shuffled_blocks))
    return [
        Corruption("tubelets_on_grid", partial(noisy, shifted=False), shares, (PROBES,)),
        Corruption("tubelets_off_grid", partial(noisy, shifted=True), shares, (PROBES,)),
        Corruption("shuffled_blocks", shuffled, (2, 3, 4, 6, 1000), (PROBES,)),
        Corruption("shuffled_frames", tubelets.shuffled_frames, (1, 1, 1, 1, 1), (PROBES,)),
        Corruption("frozen_frames", tubelets.frozen_frames, (0.1, 0.3, 0.5, 0.7, 0.9), (PROBES,)),
    ]


def suite(*names: str, tubelet: tubelets.Tubelet = (2, 16, 16)) -> list[Corruption]:
    """Return the corruptions of some suites, or of those names themselves; "all" has each once.

    Args:
        tubelet: of the model, for the probes.

    Raises:
        UserError: there is no suite and no corruption of a name.
    """
    chosen: dict[str, Corruption] = {}
    every = {**CORRUPTIONS, **{probe.name: probe for probe in probes(tubelet)}}
    for name in names:
        if name not in (*SUITES, "all", *every):
            raise UserError(f"suite {name!r}: choose all, {', '.join(SUITES)}, or from {', '.join(every)}")
        chosen |= {one.name: one for one in every.values() if name in (*one.suites, one.name, "all")}
    return list(chosen.values())
