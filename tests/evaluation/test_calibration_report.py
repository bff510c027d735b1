"""Figures and the picture of a calibration."""

import numpy as np
import pytest
from PIL import Image

from lookupvit_video.evaluation.calibration import calibration_of
from lookupvit_video.evaluation.calibration_report import draw_calibration, log_facts, reject_reached, sets_reached
from tests.evaluation.test_conformal import answers


@pytest.fixture
def found():
    shares, labels, uniform = answers(sharpness=8.0, videos=1000)
    return calibration_of(shares, labels, uniform, [], "1x1", np.linspace(0, 1, 100).tolist()), shares, labels, uniform


def test_what_sets_and_rejection_reach(found):
    calibration, shares, labels, uniform = found
    sets = sets_reached(calibration, shares, labels, uniform)
    for reached in sets.values():
        assert 0.9 <= reached["coverage"] < 0.92
        assert abs(reached["over_200_splits"] - 0.9) < 0.01
    unknown = np.linspace(0, 1, 50)
    reached = reject_reached(calibration, shares, labels, unknown)
    least = reached["unknown"]["least_confidence"]
    assert least == pytest.approx(95 / 99, abs=1e-5)
    assert reached["unknown"]["accepted"] == pytest.approx((shares.max(1) >= least).mean(), abs=1e-4)
    assert reached["unknown"]["unknown_accepted"] == 0.04  # 2 of 50
    assert reached["unknown"]["auroc"] == pytest.approx(
        np.mean([(row > unknown).mean() + (row == unknown).mean() / 2 for row in shares.max(1)]), abs=1e-4
    )
    assert reached["error"]["error_of_accepted"] < 0.05


def test_an_error_rate_that_cannot_be_reached_is_said(found, caplog):
    caplog.set_level("INFO")
    _, shares, labels, uniform = found
    few = calibration_of(shares[:20], labels[:20], uniform[:20], [], "1x1")
    reached = reject_reached(few, shares, labels, ())
    assert reached.keys() == {"error"}
    quality = {"calibration_error": 1.0, "brier_score": 0.1}
    log_facts("4x7x7", {"check": {"videos": 20, "before": quality, "after": quality, "reject": reached}})
    assert "no confidence surely gives so few errors, from 20 calibration videos" in caplog.text


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("videos", [1, 300])
def test_the_picture(found, tmp_path, several, videos):
    _, shares, labels, _ = found
    labels = np.eye(6, dtype=bool)[labels] if several else labels
    draw_calibration(shares[:videos] ** 2, shares[:videos], labels[:videos], "held out", tmp_path / "x.png")
    with Image.open(tmp_path / "x.png") as picture:
        assert picture.width > (1200 if not several else 600)
