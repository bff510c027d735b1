"""The contact sheet shows what the loaders give the model, with its label."""

from pathlib import Path

import av
import numpy as np
import pytest
import torch

from lookupvit_video.config import load_config
from lookupvit_video.data.check import Facts, Problem, Row
from lookupvit_video.data.loader import build_eval_loader
from lookupvit_video.data.manifest import Video
from lookupvit_video.data.sheet import (
    FRAMES,
    draw_sheet,
    model_views,
    pick_rows,
    strip_as_seen,
    strip_of_file,
)
from lookupvit_video.text import printable
from tests.small import settings
from tests.videos import read_number, write_video


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    return Video(write_video(tmp_path_factory.mktemp("sheet") / "a.mp4", frames=48), 1)


def config(**changes):
    return load_config(None, settings(Path("data"), Path("out"), **changes))


def test_rows_are_picked_from_all_splits_alike_and_again_the_same():
    rows = [Row("train", Video(f"{n}", 0), "a") for n in range(50)] + [
        Row("val", Video(f"v{n}", 0), "a") for n in (1, 2)
    ]
    rows += [Row("test", Video("bad", 0), "a", Facts(problems=[Problem("empty", "")]))]
    picked = pick_rows(rows, 8, seed=0)
    assert [row.split for row in picked] == ["train"] * 6 + ["val"] * 2
    assert len({row.video.path for row in picked}) == 8
    assert picked == pick_rows(rows, 8, seed=0) != pick_rows(rows, 8, seed=1)
    assert len(pick_rows(rows, 100, seed=0)) == 52
    assert pick_rows(rows, 0, seed=0) == []


def test_validation_rows_show_the_eval_loaders_clip(video):
    cfg = config()
    rows = [Row("val", video, "b")]
    strip = strip_as_seen(0, rows, model_views(cfg, [video], None, seed=0))
    (batch,) = build_eval_loader(cfg, [video], num_views=1, num_crops=1)
    clip_THWC = batch.clips[0].permute(1, 2, 3, 0).numpy()
    assert len(clip_THWC) == FRAMES
    assert strip.picture.shape == (32, 32 * FRAMES + FRAMES - 1, 3)
    for number, frame in enumerate(clip_THWC):
        assert (strip.picture[:, 33 * number : 33 * number + 32] == frame).all()
    assert strip.label == 1


def test_training_rows_show_random_and_mirrored_clips_with_their_label(video):
    views = model_views(config(AUG__NUM_SAMPLE=2), [video] * 12, [0, 2, 1], seed=0)
    rows = [Row("train", video, "b")] * 12
    strips = [strip_as_seen(index, rows, views) for index in range(12)]
    assert len({strip.picture.tobytes() for strip in strips}) > 6
    assert {strip.label for strip in strips} == {1, 2}
    again = strip_as_seen(3, rows, views)
    assert (again.picture == strips[3].picture).all()


def test_a_clip_that_cannot_be_read_gives_no_strip(tmp_path):
    gone = Video(str(tmp_path / "gone.mp4"), 0)
    assert strip_as_seen(0, [Row("val", gone, "a")], model_views(config(), [gone], None, seed=0)) is None


@pytest.mark.parametrize(("span", "numbers"), [((None, None), [0, 15, 31, 47]), ((1.0, 1.5), [24, 28, 32, 36])])
def test_without_a_config_the_strip_runs_from_the_first_to_the_last_frame(video, span, numbers):
    strip = strip_of_file(0, [Row("", Video(video.path, 0, *span), "")])
    assert strip.picture.shape[0] == 128
    width = (strip.picture.shape[1] + 3) // FRAMES
    shown = [read_number(strip.picture[:, width * n : width * n + width - 3]) for n in range(FRAMES)]
    assert shown == numbers


def test_sheet_takes_any_label_name_and_shape(tmp_path):
    rng = np.random.default_rng(0)
    odd = ["$x^2$ {a}", "a very long label " * 9, "", "line\nbreak", "byte \udcff", "跳"]
    shown = [
        (Row("train", Video(f"/v/{label}.mp4", 0), label), label,
         rng.integers(0, 255, (30 + 40 * (number == 2), 120, 3), dtype=np.uint8))
        for number, label in enumerate([*odd, *"abc"])
    ]  # fmt: skip
    draw_sheet(shown, tmp_path / "sheet.png", "title \udcff $")
    with av.open(str(tmp_path / "sheet.png")) as container:
        picture = next(container.decode(video=0)).to_ndarray(format="rgb24")
    assert picture.shape[0] > 300
    dark = (picture < 100).all(-1).any(1)  # rows of pixels with text or frames in them
    assert dark.mean() > 0.3
    assert torch.from_numpy(picture).float().std() > 20


def test_printable():
    assert printable("a\nb\udcff\x1b[2J ü 跳") == "a?b??[2J ü 跳"
