"""Several labels a video, from a list to predictions."""

import csv
import json

import numpy as np
import pytest
import torch

from lookupvit_video import load_model
from lookupvit_video.checkpoints.checkpoint import load_checkpoint
from lookupvit_video.errors import UserError
from lookupvit_video.inference.export.description import description
from lookupvit_video.inference.export.export import deployed_model
from tests.small import call_tool, make_videos, run_net, settings

LABELS = [
    "class 0|class 2",
    "class 1",
    "",
    "class 0|class 1|class 2",
    "class 2",
    "class 0",
    "",
    "class 1|class 2",
    "class 0",
]


@pytest.fixture(scope="module")
def several(tmp_path_factory):
    """A data set of nine videos with none to three of three labels each, and a finished run on it."""
    folder = tmp_path_factory.mktemp("several")
    make_videos(folder / "data")
    rows = "".join(f"{number}.mp4,{label}\n" for number, label in enumerate(LABELS))
    for split in ("train", "val", "test"):
        (folder / "data" / f"{split}.csv").write_text("path,label\n" + rows)
    done = run_net(
        settings(folder / "data", folder / "run", MODEL__TASK="multi_label", SOLVER__CLASS_WEIGHTS="balanced")
    )
    assert done.returncode == 0, done.stderr
    return folder


def test_a_run_measures_what_fits_and_stores_thresholds(several):
    results = json.loads((several / "run/test_results.json").read_text())
    assert "top1" not in results
    assert {"mean_average_precision", "macro_f1", "macro_f1_with_thresholds"} <= results.keys()
    low, high = results["intervals_95"]["mean_average_precision"]
    assert low <= results["mean_average_precision"] <= high
    # the test list is the validation list, on which the thresholds are the best ones
    assert results["macro_f1_with_thresholds"] >= results["macro_f1"]
    thresholds = load_checkpoint(several / "run/model.pt").thresholds
    assert len(thresholds) == 3
    assert thresholds == load_model(several / "run").thresholds != [0.5] * 3
    rows = list(csv.DictReader((several / "run/test_predictions.csv").open()))
    assert [row["label"] for row in rows] == LABELS
    table = list(csv.DictReader((several / "run/test_per_class.csv").open()))
    assert [row["videos"] for row in table] == ["4", "3", "4"]
    assert not (several / "run/confusion_matrix.png").exists()


def test_answers_are_the_same_from_test_and_command_and_api(several, tmp_path):
    rows = list(csv.DictReader((several / "run/test_predictions.csv").open()))
    model = load_model(several / "run")
    files = [str(several / "data" / f"{number}.mp4") for number in range(9)]
    answers = model.predict(files)
    call_tool("tools/predict.py", "--checkpoint", several / "run/model.pt", *files, "--json", tmp_path / "a.jsonl",
              "--csv", tmp_path / "a.csv", "--draw", tmp_path / "sheets")  # fmt: skip
    lines = {line["path"]: line for line in map(json.loads, (tmp_path / "a.jsonl").read_text().splitlines())}
    table = {row["path"]: row for row in csv.DictReader((tmp_path / "a.csv").open())}
    assert len(list((tmp_path / "sheets").iterdir())) == 9
    for row, answer, file in zip(rows, answers, files, strict=True):
        assert set(filter(None, row["prediction"].split("|"))) == set(answer.present)
        assert lines[file]["present"] == answer.present
        assert table[file]["present"] == "|".join(answer.present)
        assert lines[file]["classes"] == pytest.approx(answer.scores, abs=1e-6)
        assert answer.label == (", ".join(answer.present) or "none")
        for name, score in answer.scores.items():
            assert (name in answer.present) == (score >= model.thresholds[model.classes.index(name)])
    assert 0 < sum(len(answer.present) for answer in answers) < 27


def test_what_makes_no_sense_is_refused(several):
    model, file = load_model(several / "run"), str(several / "data/0.mp4")
    with pytest.raises(UserError, match="several labels a video"):
        model.predict(file, adaptive=several / "none.json")
    data = several / "data"
    for changes, reason in (
        ({"TEST__METRICS": "['top1']", "TRAIN__BEST_METRIC": "top1"}, "no metric 'top1' for MODEL.TASK multi_label"),
        ({"SOLVER__LOSS": "logit_adjusted"}, "only for MODEL.TASK single_label"),
        ({"DATA__SAMPLER": "balanced"}, "only for MODEL.TASK single_label"),
    ):
        done = run_net(settings(data, several / "other", MODEL__TASK="multi_label", **changes))
        assert done.returncode == 2
        assert reason in done.stderr
    done = run_net(settings(data, several / "other"))
    assert "for several labels a video, or none, set MODEL.TASK multi_label" in done.stderr
    (data / "one.csv").write_text("path,label\n0.mp4,0\n")
    done = run_net(settings(data, several / "run", TRAIN__ENABLE=False, DATA__TEST_LIST="one.csv"))
    assert "trained for MODEL.TASK multi_label, the config says single_label" in done.stderr


def test_scores_are_sigmoids(several):
    model = load_model(several / "run")
    clips = torch.randint(0, 256, (2, 3, *model.predict(str(several / "data/0.mp4")).clip.shape[1:]), dtype=torch.uint8)
    with torch.inference_mode():
        expected = model.model(model.inputs(clips)).sigmoid()
    torch.testing.assert_close(model.predict_clips(clips), expected)
    torch.testing.assert_close(deployed_model(model)(clips), expected, rtol=0, atol=1e-6)
    assert description(model, batch=None, grid=None, int8=False, device=model.device)["thresholds"] == model.thresholds
    assert not np.allclose(expected.sum(1), 1)


def test_thresholds_travel_with_a_saved_model(several, tmp_path):
    model = load_model(several / "run")
    model.save_pretrained(tmp_path / "hub")
    assert load_model(tmp_path / "hub").thresholds == model.thresholds


def test_segments_of_a_timeline_may_overlap(several, tmp_path):
    call_tool("tools/timeline.py", several / "data/0.mp4", "--checkpoint", several / "run/model.pt",
              "--json", tmp_path / "t.json", "--png", tmp_path / "t.png")  # fmt: skip
    model, found = load_model(several / "run"), json.loads((tmp_path / "t.json").read_text())
    cuts = dict(zip(model.classes, model.thresholds, strict=True))
    shares = [item for window in found["windows"] for item in window["classes"].items()]
    assert {segment["label"] for segment in found["segments"]} == {name for name, x in shares if x >= cuts[name]}
    done = call_tool("tools/timeline.py", several / "data/0.mp4", "--checkpoint", several / "run/model.pt",
                     "--annotate", tmp_path / "t.mp4")  # fmt: skip
    assert "--annotate shows one label at a time" in done.stderr


def test_the_comparison_without_time_is_by_map(several, tmp_path):
    done = call_tool("tools/explain.py", "--checkpoint", several / "run/model.pt", "--list", several / "data/test.csv",
                     "--out", tmp_path)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "mAP" in done.stdout
    assert "one frame repeated" in done.stdout


def test_a_checkpoint_with_too_few_thresholds_is_refused(several, tmp_path):
    content = torch.load(several / "run/model.pt", weights_only=True)
    content["thresholds"] = content["thresholds"][:2]
    torch.save(content, tmp_path / "model.pt")
    with pytest.raises(UserError, match="names 3 classes, but has 2 thresholds"):
        load_model(tmp_path / "model.pt")
