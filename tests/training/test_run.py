"""Where a run starts, and the videos that it cannot read."""

import csv
import os
from pathlib import Path

import pytest

from lookupvit_video.checkpoints.checkpoint import load_checkpoint
from lookupvit_video.data.manifest import Video, allowed_bad
from lookupvit_video.log import forget_bad_videos, record_bad_videos
from lookupvit_video.training.run import usual_seconds
from tests.small import ROOT, make_videos, run_net, settings

ONE_EPOCH = {"SOLVER__MAX_EPOCH": 1, "SOLVER__WARMUP_EPOCHS": 0, "TEST__ENABLE": False, "TRAIN__EVAL_PERIOD": 0}


def test_a_run_that_resumes_does_not_pass_over_other_weights_to_start_from(data, vit, tmp_path):
    options = {**ONE_EPOCH, "MODEL__ARCH": "vit"}
    model = vit / "model.pt"
    assert run_net(settings(data, tmp_path, **options, MODEL__INIT_FROM=model)).returncode == 0
    for changes, part in (
        ({}, f"was started with MODEL.INIT_FROM '{model}', the config says ''"),
        ({"MODEL__INIT_FROM": vit / "best.pt"}, f"the config says '{vit / 'best.pt'}'"),
        ({"MODEL__INIT_FROM": model, "MODEL__INIT_INFLATE": "average"}, "MODEL.INIT_INFLATE 'central', the config"),
    ):
        done = run_net(settings(data, tmp_path, **{**options, "SOLVER__MAX_EPOCH": 2}, **changes))
        assert done.returncode == 2, done.stderr
        assert part in done.stderr.splitlines()[-1]
        assert "choose another OUTPUT_DIR" in done.stderr.splitlines()[-1]
    same = run_net(settings(data, tmp_path, **options, MODEL__INIT_FROM=os.path.relpath(model, ROOT)))
    assert same.returncode == 0, same.stderr


def test_a_model_of_segments_knows_how_long_its_videos_were(data, tmp_path):
    done = run_net(settings(data, tmp_path, **ONE_EPOCH, DATA__SAMPLING="segments"))
    assert done.returncode == 0, done.stderr
    assert load_checkpoint(tmp_path / "model.pt").config.DATA.VIDEO_SECONDS == 0.5
    videos = [Video("gone.mp4", 0), Video(str(data / "0.mp4"), 0, 0.1, 0.3), Video(str(data / "1.mp4"), 0)]
    assert usual_seconds(videos, "pyav", 60) == 0.35
    assert usual_seconds(videos[:1], "pyav", 60) == 0
    many = [*[Video(str(data / "0.mp4"), 0, 0, 0.2)] * 40, *[Video(str(data / "1.mp4"), 0)] * 24]
    assert usual_seconds(many, "pyav", 60) == 0.2


def test_the_best_model_is_not_chosen_by_what_says_nothing(data, tmp_path):
    done = run_net(settings(data, tmp_path, **ONE_EPOCH, TRAIN__BEST_METRIC="top5"))
    assert done.returncode == 2
    assert "TRAIN.BEST_METRIC top5 says nothing of 3 classes; set top1" in done.stderr


@pytest.mark.parametrize(("count", "fraction", "allowed"), [
    (35, 0.01, 3), (20, 0.01, 2), (10, 0.01, 1), (9, 0.01, 0), (35, 0, 0), (9, 0.2, 1), (1000, 0.01, 10),
])  # fmt: skip
def test_a_few_videos_of_a_short_list_may_be_bad(count, fraction, allowed):
    assert allowed_bad(count, fraction) == allowed


def test_what_stops_a_training_names_the_list_that_lets_it_pass(tmp_path):
    folder, output = tmp_path / "data", tmp_path / "run"
    make_videos(folder, count=20)
    place = Path(os.path.relpath(folder, ROOT))  # relative, as in most configs
    (folder / "4.mp4").write_bytes(b"")
    one = run_net(settings(place, output / "one", **ONE_EPOCH))
    assert one.returncode == 0, one.stderr
    for index in (7, 11):
        (folder / f"{index}.mp4").write_bytes(b"")
    stopped = run_net(settings(place, output, **ONE_EPOCH, TRAIN__CHECKPOINT_STEPS=1))
    assert stopped.returncode == 1, stopped.stderr
    line = stopped.stderr.splitlines()[-1]
    assert "3 of 20 training videos cannot be read" in line
    assert f"to train without them set DATA.SKIP_LIST {output / 'bad_videos.csv'}, or " in line
    skip = {"DATA__SKIP_LIST": output / "bad_videos.csv", "SOLVER__MAX_EPOCH": 2}
    again = run_net(settings(place, output, **{**ONE_EPOCH, **skip}))
    assert again.returncode == 0, again.stderr
    assert "3 of 20 training videos skipped" in again.stderr
    assert (output / "bad_videos.csv").exists()  # a run that is started again reads it again


def test_a_new_run_forgets_the_bad_videos_of_an_old_one(data, tmp_path):
    record_bad_videos(tmp_path, [("train", "/x/old.mp4", "empty"), ("test", "/x/old.mp4", "empty")])
    done = run_net(settings(data, tmp_path, **{**ONE_EPOCH, "TEST__ENABLE": True}))
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "bad_videos.csv").exists()


def test_bad_videos_are_listed_once_by_absolute_path_and_forgotten_when_they_are_read_again(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    listed = tmp_path / "bad_videos.csv"
    record_bad_videos(tmp_path, [])
    assert not listed.exists()
    rows = [("train", "data/1.mp4", "empty"), ("test", "/x/2.mp4", "empty")]
    record_bad_videos(tmp_path, rows)
    record_bad_videos(tmp_path, rows)
    with listed.open(newline="") as file:
        assert list(csv.reader(file)) == [
            ["split", "path", "reason"], ["train", str(tmp_path / "data/1.mp4"), "empty"], ["test", "/x/2.mp4", "empty"]
        ]  # fmt: skip
    forget_bad_videos(tmp_path, ("test",), listed)  # it is the DATA.SKIP_LIST of the run itself
    assert len(listed.read_text().splitlines()) == 3
    forget_bad_videos(tmp_path, ("test",), tmp_path)
    assert len(listed.read_text().splitlines()) == 2
    forget_bad_videos(tmp_path, ("train", "val"), tmp_path)
    assert not listed.exists()
