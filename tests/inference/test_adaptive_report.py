"""The choice of a cascade holds for other videos than those it was chosen on."""

import numpy as np
import pytest

from lookupvit_video.inference.adaptive_report import calibrate_cascade, most_lost
from lookupvit_video.inference.budget import Cascade, Costs, measure

SMALL, LARGE = (1, 1, 1), (1, 2, 2)


def one_hot(answers):
    return 0.9 * np.eye(2)[answers.astype(int)] + 0.05


def test_the_bound_is_of_the_videos_that_one_alone_answers():
    labels = np.zeros(100, int)
    tables = {SMALL: one_hot(np.arange(100) < 3), LARGE: one_hot(np.arange(100) == 99)}  # 97 and 99 right
    costs = Costs({SMALL: {"tokenizer": 0, "blocks": 1}, LARGE: {"tokenizer": 0, "blocks": 2}}, 4, 1)
    small, large = (measure(Cascade((grid,), ()), costs, tables, labels) for grid in (SMALL, LARGE))
    deviation = np.sqrt((3 + 1) / 100 - 0.02**2)  # of -1, 0 and 1
    assert most_lost(small, large, tables, labels) == pytest.approx(2 + 1.645 * 100 * deviation / 10)
    assert most_lost(large, large, tables, labels) == 0


@pytest.mark.parametrize(("videos", "chosen"), [(100, "1x2x2"), (4000, "1x1x1")])
def test_few_videos_do_not_promise_a_small_loss(tmp_path, videos, chosen):
    labels = np.zeros(videos, int)
    wrong = np.arange(videos) % 100
    tables = {SMALL: one_hot(wrong == 0), LARGE: one_hot(np.zeros(videos, int))}  # 1 point apart
    costs = Costs({SMALL: {"tokenizer": 0, "blocks": 1}, LARGE: {"tokenizer": 0, "blocks": 2}}, 4, 1)
    found, facts = calibrate_cascade(costs, {"calibration": (tables, labels)}, 2.0, None, tmp_path / "curve.png")
    assert found.name == chosen
    assert facts["wanted_top1"] == 98
    wanted, _ = calibrate_cascade(costs, {"calibration": (tables, labels)}, 0.5, 98.0, tmp_path / "curve.png")
    assert wanted.name == "1x1x1"  # asked for as it is
