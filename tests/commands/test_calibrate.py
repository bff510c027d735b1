"""lookupvit calibrate on a small model: its figures are those that predict then reaches."""

import csv
import json
import shutil

import pytest
import torch

from lookupvit_video.checkpoints.checkpoint import save_checkpoint
from lookupvit_video.config import load_config
from lookupvit_video.errors import UserError
from lookupvit_video.inference.export.export import deployed_model
from lookupvit_video.inference.predictor import load_model
from lookupvit_video.inference.views import read_views
from lookupvit_video.models.build import build_model
from tests.commands.test_train import assert_one_clear_line
from tests.models.test_models import SMALL
from tests.small import call_tool, make_videos

CLASSES = [f"class {label}" for label in range(5)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Labelled videos and two checkpoints: one with three compressed grids, one with a single one."""
    folder = tmp_path_factory.mktemp("calibrate")
    make_videos(folder, count=10, num_classes=5)
    for name, grids, task in (("model", "[[1,1,1],[1,2,2],[2,4,4]]", "single_label"), ("one", "[]", "single_label"),
                              ("labels", "[]", "multi_label")):  # fmt: skip
        cfg = load_config(None, [*SMALL, "MODEL.COMPRESSED_GRIDS", grids, "DATA.SAMPLING_RATE", "2", "MODEL.TASK", task,
                                 "DATA.PATH_TO_DATA_DIR", str(folder)])  # fmt: skip
        torch.manual_seed(3)
        model = build_model(cfg)
        for parameter in [p for n, p in model.named_parameters() if n.endswith("linear.weight")]:
            parameter.data.normal_(std=0.7)
        save_checkpoint(folder / f"{name}.pt", cfg=cfg, classes=CLASSES, model=model)
    return folder


def calibrate(folder, *arguments, name="model", path=None):
    path = path or folder / f"{name}.pt"
    return call_tool("tools/calibrate.py", "--checkpoint", path, "--workers", 0, *arguments)


def test_what_it_finds_is_what_prediction_then_reaches(folder, tmp_path):
    out = tmp_path / "x.json"
    done = calibrate(folder, "--check-list", folder / "test.csv", "--views", 2, "--drop", 100, "--out", out)
    assert done.returncode == 0, done.stderr
    facts = json.loads(out.read_text())
    assert facts["calibration"] == facts["check"]  # the same videos in both lists
    assert facts["grids"] == [[1, 1, 1]]  # the cheapest, where all may be lost
    assert out.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    best = max(point["top1"] for point in facts["calibration"]["curve"])
    done = calibrate(folder, "--accuracy", best, "--views", 2, "--out", out)
    assert done.returncode == 0, done.stderr
    facts = json.loads(out.read_text())
    assert "10 videos are too few to detect a drop below 30.0 points" in done.stderr
    videos = [str(folder / f"{number}.mp4") for number in range(10)]
    answers = load_model(folder / "model.pt", "cpu").predict(videos, num_views=2, adaptive=out)
    right = sum(answer.label == f"class {number % 5}" for number, answer in enumerate(answers))
    assert facts["calibration"]["top1"] == best == 10 * right
    mean = sum(answer.gmacs for answer in answers) / 20
    assert facts["calibration"]["gmacs_per_view"] == pytest.approx(mean, rel=1e-3)


def test_it_writes_beside_the_checkpoint_and_reads_the_validation_list(folder):
    done = calibrate(folder)
    assert done.returncode == 0, done.stderr
    assert (folder / "model.adaptive.json").is_file()
    assert (folder / "model.adaptive.png").is_file()
    done = call_tool("tools/predict.py", "--checkpoint", folder / "model.pt", "--adaptive", folder, "--workers", 0)
    assert done.returncode == 0, done.stderr
    assert "10 videos: mean" in done.stderr


@pytest.mark.parametrize(("name", "arguments", "parts"), [
    ("one", ["--drop", 1], ["one.pt: it has one compressed grid, 1x2x2", "MODEL.COMPRESSED_GRIDS"]),
    ("labels", ["--drop", 1], ["--drop: for one label a video", "labels.pt gives several"]),
    ("labels", ["--unknown-list", "{}/test.csv"], ["--unknown-list: for one label a video"]),
    ("one", ["--check-unknown-list", "{}/test.csv"], ["--check-unknown-list is for --unknown-list with --check-list"]),
    ("one", ["--unknown-list", "{}/empty.csv"], ["the list for unknown has no videos"]),
    ("one", ["--list", "{}/bad.csv"], ["none of the 1 videos for calibration can be read"]),
    ("model", ["--accuracy", 100, "--list", "{}/few.csv"], ["an accuracy of 100.00 %: the best"]),
    ("model", ["--list", "{}/none.csv"], ["none.csv", "cannot be read"]),
    ("model", ["--list", "{}/wrong.csv"], ["wrong.csv, line 2", "label 7 is out of range"]),
    ("model", ["--drop", -1], ["--drop: must be 0 to 100"]),
    ("missing", [], ["missing.pt", "No such file"]),
])  # fmt: skip
def test_mistakes_give_one_line(folder, name, arguments, parts):
    # The same video under every label: no model is always right.
    (folder / "few.csv").write_text("path,label\n" + "".join(f"0.mp4,{label}\n" for label in range(5)))
    (folder / "wrong.csv").write_text("path,label\n0.mp4,7\n")
    (folder / "bad.csv").write_text("path,label\nbad.bin,1\n")
    (folder / "bad.bin").write_bytes(b"no video")
    (folder / "empty.csv").write_text("path\n")
    done = calibrate(folder, *[str(a).format(folder) for a in arguments], name=name)
    assert_one_clear_line(done, 2, *parts)


# Probabilities, rejected answers and sets -----------------------------------------------------------------------------


def logits(model, video):
    """Return a video's logits of each view (V, K), from the model itself."""
    clips = torch.from_numpy(read_views(video, model.plan).clips)
    with torch.inference_mode():
        return model.model(model.inputs(clips)).float()


@pytest.fixture(scope="module")
def calibrated(folder, tmp_path_factory):
    """Return a copy of the folder's model of one grid, calibrated, and its report."""
    place = tmp_path_factory.mktemp("calibrated")
    shutil.copy(folder / "one.pt", place / "one.pt")
    done = calibrate(folder, "--list", folder / "test.csv", "--check-list", folder / "test.csv", "--unknown-list",
                     folder / "train.csv", "--check-unknown-list", folder / "train.csv",
                     path=place / "one.pt")  # fmt: skip
    assert done.returncode == 0, done.stderr
    return place / "one.pt", json.loads((place / "one.calibration.json").read_text()), done.stderr


def test_a_temperature_is_found_and_divides_the_logits_everywhere(folder, calibrated, tmp_path):
    path, report, _ = calibrated
    before, after = load_model(folder / "one.pt", "cpu"), load_model(path, "cpu")
    (temperature,) = after.temperature()
    assert temperature != 1
    assert not before.temperature()
    assert report["budgets"]["1x2x2"]["temperature"] == [round(temperature, 4)]
    video = folder / "3.mp4"
    expected = (logits(before, video) / temperature).softmax(-1).mean(0)
    answer = after.predict(video, topk=5)
    assert answer.probabilities == pytest.approx(sorted(expected.tolist(), reverse=True), abs=1e-6)
    clips = torch.from_numpy(read_views(video, after.plan).clips)
    torch.testing.assert_close(deployed_model(after)(clips).mean(0), expected, rtol=0, atol=1e-6)
    after.save_pretrained(tmp_path / "folder")
    # not equal to the bit: weights lie where the file has them, and the last digit may depend on their alignment
    again = load_model(tmp_path / "folder", "cpu").predict(video, topk=5)
    assert again.probabilities == pytest.approx(answer.probabilities, abs=1e-6)
    assert load_model(tmp_path / "folder", "cpu").calibration == after.calibration


def test_answers_are_rejected_and_sets_made(folder, calibrated, tmp_path):
    path, report, log = calibrated
    model, videos = load_model(path, "cpu"), [folder / f"{number}.mp4" for number in range(10)]
    found = model.calibration["1x2x2"]
    assert len(found.labels) == 10
    least = sorted(found.unknown)[-3]  # of ten videos floor(0.3 x 11) - 1 = 2 are accepted
    answers = model.predict(videos, reject="unknown=0.3", coverage=0.5)
    cut = sorted(found.scores["lac"])[5]
    for answer in answers:
        assert answer.rejected == (answer.probability <= least + 1e-7)
        assert (answer.label == "none of these") == answer.rejected
        shares = dict(zip(answer.labels, answer.probabilities, strict=True))
        assert answer.members == [name for name in answer.labels if 1 - shares[name] <= cut + 1e-6]
    assert {answer.rejected for answer in answers} == {True, False}
    right = [f"class {number % 5}" in answer.members for number, answer in enumerate(answers)]
    assert sum(right) >= 6  # the same videos: ceil(11 x 0.5)
    json_file, table = tmp_path / "x.jsonl", tmp_path / "x.csv"
    done = call_tool("tools/predict.py", "--checkpoint", path, *videos, "--workers", 0, "--json", json_file, "--csv",
                     table, "--reject", "unknown=0.3", "--coverage", 0.5)  # fmt: skip
    assert done.returncode == 0, done.stderr
    by_path = {answer.path: answer for answer in answers}
    for line in map(json.loads, json_file.read_text().splitlines()):
        answer = by_path[line["path"]]
        assert (line["set"], line.get("rejected", False)) == (answer.members, answer.rejected)
    with table.open() as file:
        rows = {row["path"]: row for row in csv.DictReader(file)}
    assert all(rows[path]["set"] == "|".join(answer.members) for path, answer in by_path.items())
    assert all((rows[path]["rejected"] == "True") == answer.rejected for path, answer in by_path.items())
    assert done.stdout.count("none of these") == sum(answer.rejected for answer in answers)
    assert done.stdout.count("  set: ") == 10
    assert report["budgets"]["1x2x2"]["check"]["sets"].keys() == {"lac", "aps", "class"}
    assert "no confidence surely gives so few errors" in log
    assert (path.parent / "one.calibration.png").read_bytes().startswith(b"\x89PNG")


def test_a_checkpoint_without_calibration_says_so(folder):
    model = load_model(folder / "labels.pt", "cpu")
    with pytest.raises(UserError, match="for one label a video"):
        list(model.answers([], coverage=0.9))
    cfg = load_config(None, [*SMALL])
    save_checkpoint(folder / "new.pt", cfg=cfg, classes=CLASSES, model=build_model(cfg))
    with pytest.raises(UserError, match=r"new\.pt: not calibrated; run lookupvit calibrate first"):
        list(load_model(folder / "new.pt", "cpu").answers([], reject=0.1))


def test_each_class_of_several_has_its_temperature_and_threshold(folder, tmp_path):
    shutil.copy(folder / "labels.pt", tmp_path / "labels.pt")
    before = load_model(tmp_path / "labels.pt", "cpu")
    rows = "".join(f"{number}.mp4,{'|'.join({str(number % 5), str(number % 3)})}\n" for number in range(9))
    (folder / "several.csv").write_text("path,label\n" + rows + "9.mp4,\n")
    lists = ["--list", folder / "several.csv", "--check-list", folder / "several.csv"]
    done = calibrate(folder, *lists, path=tmp_path / "labels.pt")
    assert done.returncode == 0, done.stderr
    after = load_model(tmp_path / "labels.pt", "cpu")
    assert len(set(after.temperature())) > 1
    video = folder / "3.mp4"
    expected = (logits(before, video) / torch.tensor(after.temperature())).sigmoid().mean(0)
    answer = after.predict(video)
    assert list(answer.scores.values()) == pytest.approx(expected.tolist(), abs=1e-6)
    assert answer.present is not None
    assert after.thresholds != before.thresholds


def test_a_damaged_calibration_is_one_line(folder, calibrated, tmp_path):
    path, _, _ = calibrated
    content = torch.load(path, weights_only=True)
    for wrong in ([], {"1x2x2": 5}, {"1x2x2": {**content["calibration"]["1x2x2"], "temperature": [0.0]}}):
        torch.save({**content, "calibration": wrong}, tmp_path / "x.pt")
        if wrong:
            with pytest.raises(UserError, match=r"x\.pt: its calibration is damaged; run lookupvit calibrate again"):
                load_model(tmp_path / "x.pt", "cpu")
    assert load_model(path, "cpu").calibration


def test_a_test_measures_the_calibrated_answers(folder, calibrated, tmp_path):
    path, report, _ = calibrated
    (tmp_path / "test.yaml").write_text(load_model(path, "cpu").cfg.dump())
    done = call_tool("tools/run_net.py", "--cfg", tmp_path / "test.yaml", "TRAIN.ENABLE", "False", "OUTPUT_DIR",
                     tmp_path, "TEST.CHECKPOINT_FILE_PATH", path, "TEST.METRICS", '["top1","nll","calibration_error"]',
                     "DATA_LOADER.NUM_WORKERS", 0)  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    expected = report["budgets"]["1x2x2"]["check"]["after"]
    assert found["nll"] == pytest.approx(expected["nll"], abs=1e-4)
    assert found["calibration_error"] == pytest.approx(expected["calibration_error"], abs=0.01)
