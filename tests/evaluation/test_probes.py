"""What a model's answers without the order of the frames say."""

import json

import pytest

from lookupvit_video.evaluation.probes import what_order_means
from tests.small import make_videos, run_net, settings


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ((90, 40, 20), "50.0 points come from the order of the frames"),
        ((90, 89, 60), "their order does not"),
        ((90, 89, 89), "an image model may do as well"),
        ((90, 60, 89), "an image model may do as well"),
    ],
)
def test_in_words(values, words):
    line = what_order_means(dict(zip(("real", "shuffled", "frozen"), values, strict=True)))
    assert words in line
    assert line.startswith(f"{values[0]:.2f} %, shuffled frames {values[1]:.2f} %")


def test_a_test_reports_the_probes(tmp_path):
    make_videos(tmp_path / "data")
    done = run_net(settings(tmp_path / "data", tmp_path / "run", TEST__PROBES=True))
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "run/test_results.json").read_text())
    assert list(results["probes"]) == ["real", "shuffled", "frozen"]
    assert results["probes"]["real"] == results["top1"]
    assert "one frame repeated" in done.stderr
