import numpy as np
import pytest

from lookupvit_video.corruptions.table import probes
from lookupvit_video.corruptions.tubelets import noisy_tubelets, shuffled_blocks, shuffled_frames
from tests.corruptions.clips import varied_clips

TUBELET = (2, 8, 8)


def rng(seed=0):
    return np.random.default_rng(seed)


def changed_tokens(before, after):
    """The tokens (t, h, w) of the grid in which a pixel is another."""
    differs = (before != after).any(-1)
    t, h, w = (length // side for length, side in zip(differs.shape, TUBELET, strict=True))
    return differs.reshape(t, 2, h, 8, w, 8).any((1, 3, 5))


@pytest.mark.parametrize(("share", "count"), [(0.001, 1), (0.1, 22)])
def test_tubelets_on_the_grid_are_tokens_and_those_off_it_lie_in_eight(share, count):
    (clip,) = varied_clips(1)  # 6 x 6 x 6 tokens
    on = noisy_tubelets(clip, share, rng(), tubelet=TUBELET, shifted=False)
    off = noisy_tubelets(clip, share, rng(), tubelet=TUBELET, shifted=True)
    assert changed_tokens(clip, on).sum() == count
    assert changed_tokens(clip, off).sum() > count
    if count == 1:
        assert changed_tokens(clip, off).sum() == 8
        assert (clip != on).any(-1).sum() == pytest.approx(2 * 8 * 8, abs=2)  # the same area
        assert (clip != off).any(-1).sum() == pytest.approx(2 * 8 * 8, abs=2)


@pytest.mark.parametrize(("blocks", "side"), [(2, 24), (3, 16), (1000, 8)])
def test_blocks_are_moved_as_they_are_in_all_frames_alike(blocks, side):
    (clip,) = varied_clips(1)

    def parts(frames):
        count = 48 // side
        cut = frames.reshape(12, count, side, count, side, 3).transpose(1, 3, 0, 2, 4, 5)
        return sorted(part.tobytes() for row in cut for part in row)

    found = shuffled_blocks(clip, blocks, rng(), tubelet=TUBELET)
    assert parts(found) == parts(clip)
    assert (found != clip).any()


def test_shuffled_frames_are_never_in_the_real_order():
    (clip,) = varied_clips(1, frames=2)
    assert all((shuffled_frames(clip, 1, rng(seed))[0] == clip[1]).all() for seed in range(8))


def test_probes_hold_severity_0_and_freeze_at_five_places():
    (clip,) = varied_clips(1, frames=10)
    for probe in probes(TUBELET):
        assert probe(clip, 0, 1) is clip
    frozen, places = probes(TUBELET)[-1], (1, 3, 5, 7, 9)
    for severity, at in enumerate(places, start=1):
        assert (frozen(clip, severity, 1) == clip[at]).all()
