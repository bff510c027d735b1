"""What a model's answers without the order of the frames say."""

import itertools
import json

import pytest
import torch

from lookupvit_video.errors import UserError
from lookupvit_video.evaluation.probes import reordered, what_order_means
from tests.small import make_videos, run_net, settings


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ((90, 40, 20), "50.0 points come from the order of the frames"),
        ((90, 89, 60), "their order does not"),
        ((90, 89, 89), "an image model may do as well"),
        ((90, 60, 89), "an image model may do as well"),
        ((90, 88, 88), "2.0 points come from the order of the frames"),  # two points count
        ((90, 88.1, 88), "their order does not"),
        ((90, 60, 88.1), "an image model may do as well"),
    ],
)
def test_in_words(values, words):
    line = what_order_means(dict(zip(("real", "shuffled", "frozen"), values, strict=True)))
    assert words in line
    assert line.startswith(f"{values[0]:.2f} %, shuffled frames {values[1]:.2f} %")


def clips_of(*frames):
    """Two clips (2, 3, T, 1, 2) of which each frame has its own number."""
    return torch.tensor(frames).view(1, 1, -1, 1, 1) + 100 * torch.arange(12).view(2, 3, 1, 1, 2)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5])
def test_the_order_of_frames(count):
    clips = clips_of(*range(count))
    assert torch.equal(reordered(clips, "real"), clips)
    assert torch.equal(reordered(clips, "frozen"), clips_of(*[count // 2] * count))
    for seed in range(20):
        found = reordered(clips, "shuffled", seed)
        order = found[0, 0, :, 0, 0].tolist()
        assert sorted(order) == list(range(count))
        assert (order == list(range(count))) == (count == 1)  # never the real one
        assert torch.equal(found, clips_of(*order))
        assert torch.equal(found, reordered(clips, "shuffled", seed))


def test_a_frame_may_keep_its_place_but_not_all():
    orders = {tuple(reordered(clips_of(0, 1, 2), "shuffled", seed)[0, 0, :, 0, 0].tolist()) for seed in range(40)}
    assert orders == set(itertools.permutations(range(3))) - {(0, 1, 2)}


def test_orders_follow_from_the_seed_which_is_0_where_none_is_given():
    clips = clips_of(*range(8))
    orders = [reordered(clips, "shuffled", seed)[0, 0, :, 0, 0].tolist() for seed in range(6)]
    assert len(set(map(tuple, orders))) > 4
    assert reordered(clips, "shuffled")[0, 0, :, 0, 0].tolist() == orders[0]
    with pytest.raises(UserError, match="order 'reversed': choose one of real, shuffled, frozen"):
        reordered(clips, "reversed")


def test_a_test_reports_the_probes(tmp_path):
    make_videos(tmp_path / "data")
    done = run_net(settings(tmp_path / "data", tmp_path / "run", TEST__PROBES=True))
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "run/test_results.json").read_text())
    assert list(results["probes"]) == ["real", "shuffled", "frozen"]
    assert results["probes"]["real"] == results["top1"]
    assert set(results["probes"].values()) <= {round(100 * right / 9, 2) for right in range(10)}
    assert "one frame repeated" in done.stderr
