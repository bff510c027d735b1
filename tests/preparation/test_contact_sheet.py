"""The contact sheet shows what the loaders give the model, with its label."""

from pathlib import Path

import av
import numpy as np
import pytest
import torch

from lookupvit_video.config import load_config
from lookupvit_video.data.loader import build_eval_loader
from lookupvit_video.data.manifest import Video
from lookupvit_video.preparation import contact_sheet as sheet
from lookupvit_video.preparation.check import ListedVideo
from lookupvit_video.preparation.contact_sheet import (
    FRAMES,
    draw_contact_sheet,
    model_views,
    pick_rows,
    strip_as_seen,
    strip_of_file,
)
from lookupvit_video.preparation.inspect_file import FileReport, Problem
from lookupvit_video.text import printable
from tests.small import settings
from tests.videos import read_number, write_video


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    return Video(write_video(tmp_path_factory.mktemp("sheet") / "a.mp4", frames=48), 1)


def config(**changes):
    return load_config(None, settings(Path("data"), Path("out"), **changes))


def test_rows_are_picked_from_all_splits_alike_and_again_the_same():
    rows = [ListedVideo("train", Video(f"{n}", 0), "a") for n in range(50)] + [
        ListedVideo("val", Video(f"v{n}", 0), "a") for n in (1, 2)
    ]
    rows += [ListedVideo("test", Video("bad", 0), "a", FileReport(problems=[Problem("empty", "")]))]
    picked = pick_rows(rows, 8, seed=0)
    assert [row.split for row in picked] == ["train"] * 6 + ["val"] * 2
    assert len({row.video.path for row in picked}) == 8
    assert picked == pick_rows(rows, 8, seed=0) != pick_rows(rows, 8, seed=1)
    assert len(pick_rows(rows, 100, seed=0)) == 52
    assert pick_rows(rows, 0, seed=0) == []


def test_validation_rows_show_the_eval_loaders_clip(video):
    cfg = config()
    rows = [ListedVideo("val", video, "b")]
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
    rows = [ListedVideo("train", video, "b")] * 12
    strips = [strip_as_seen(index, rows, views) for index in range(12)]
    assert len({strip.picture.tobytes() for strip in strips}) > 6
    assert {strip.label for strip in strips} == {1, 2}
    again = strip_as_seen(3, rows, views)
    assert (again.picture == strips[3].picture).all()


def test_a_clip_that_cannot_be_read_gives_no_strip(tmp_path):
    gone = Video(str(tmp_path / "gone.mp4"), 0)
    assert strip_as_seen(0, [ListedVideo("val", gone, "a")], model_views(config(), [gone], None, seed=0)) is None


@pytest.mark.parametrize(("span", "numbers"), [((None, None), [0, 15, 31, 47]), ((1.0, 1.5), [24, 28, 32, 36])])
def test_without_a_config_the_strip_runs_from_the_first_to_the_last_frame(video, span, numbers):
    strip = strip_of_file(0, [ListedVideo("", Video(video.path, 0, *span), "")])
    assert strip.picture.shape[0] == 128
    width = (strip.picture.shape[1] + 3) // FRAMES
    shown = [read_number(strip.picture[:, width * n : width * n + width - 3]) for n in range(FRAMES)]
    assert shown == numbers


def test_sheet_takes_any_label_name_and_shape(tmp_path):
    rng = np.random.default_rng(0)
    odd = ["$x^2$ {a}", "a very long label " * 9, "", "line\nbreak", "byte \udcff", "跳"]
    shown = [
        (ListedVideo("train", Video(f"/v/{label}.mp4", 0), label), label,
         rng.integers(0, 255, (30 + 40 * (number == 2), 120, 3), dtype=np.uint8))
        for number, label in enumerate([*odd, *"abc"])
    ]  # fmt: skip
    draw_contact_sheet(shown, tmp_path / "sheet.png", "title \udcff $")
    with av.open(str(tmp_path / "sheet.png")) as container:
        picture = next(container.decode(video=0)).to_ndarray(format="rgb24")
    assert picture.shape[0] > 300
    dark = (picture < 100).all(-1).any(1)  # rows of pixels with text or frames in them
    assert dark.mean() > 0.3
    assert torch.from_numpy(picture).float().std() > 20


def test_printable():
    assert printable("a\nb\udcff\x1b[2J ü 跳") == "a?b??[2J ü 跳"


# Parts of a sheet -------------------------------------------------------------------------------------------------


def test_rows_with_a_wrong_span_are_left_out_and_others_with_remarks_are_not():
    rows = [
        ListedVideo("val", Video(kind, 0), "a", problems=[Problem(kind, "")]) for kind in ("span", "empty", "other")
    ]
    assert {row.video.path for row in pick_rows(rows, 9, seed=0)} == {"empty", "other"}
    rows = [
        ListedVideo("val", Video("a", 0), "a", FileReport(problems=[Problem("empty", "")])),
        ListedVideo("val", Video("b", 0), "a"),
    ]
    assert [row.video.path for row in pick_rows(rows, 9, seed=0)] == ["b"]


def test_splits_come_in_the_order_of_the_list_and_each_has_its_turn():
    rows = [ListedVideo(split, Video(f"{split}{n}", 0), "") for split in ("val", "train", "test") for n in range(3)]
    assert [row.split for row in pick_rows(rows, 4, seed=0)] == ["val", "val", "train", "test"]
    assert [row.split for row in pick_rows(rows, 3, seed=3)] == ["val", "train", "test"]
    assert len({tuple(row.video.path for row in pick_rows(rows, 6, seed=seed)) for seed in range(20)}) > 5


def test_a_model_sees_one_video_at_a_time_by_the_seed_given(video):
    cfg = config(DATA__CACHE_VIDEOS=True, AUG__NUM_SAMPLE=2, TRAIN__ACCUMULATION_STEPS=2, DATA_LOADER__NUM_WORKERS=3)
    before = cfg.dump()
    views = model_views(cfg, [video], [0, 1, 2], seed=7)
    assert cfg.dump() == before
    assert set(views) == {True, False}
    assert (views[True].seed, views[True].cache, views[True].mirror) == (7, False, [0, 1, 2])
    assert (views[False].cache, views[False].mirror, views[False].shape[0]) == (False, None, 1)
    assert views[True].times.training
    assert not views[False].times.training


@pytest.mark.parametrize(
    ("frames", "shown"), [(4, [0, 1, 2, 3]), (16, [0, 5, 10, 15]), (8, [0, 2, 5, 7]), (2, [0, 0, 1, 1])]
)
@pytest.mark.parametrize(("height", "gap"), [(128, 3), (256, 6), (84, 1), (16, 1)])
def test_a_strip_is_four_frames_with_white_between_them(frames, shown, height, gap):
    pictures = torch.arange(frames, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, height, 5, 3)
    strip = sheet._side_by_side(pictures)
    assert strip.shape == (height, 4 * 5 + 3 * gap, 3)
    row = strip[0, :, 0].tolist()
    assert row == [value for number in shown for value in [255] * gap + [number] * 5][gap:]
    assert (strip == strip[:1]).all()


def test_a_strip_of_a_file_keeps_its_shape_and_its_span(tmp_path):
    path = write_video(tmp_path / "x.mp4", frames=24, size=(96, 64))
    for start, end, numbers in ((None, None, [0, 7, 15, 23]), (0.75, 99.0, [18, 19, 21, 23]), (5.0, 9.0, [23] * 4)):
        strip = strip_of_file(0, [ListedVideo("", Video(path, 2, start, end), "")])
        assert strip.picture.shape == (128, 4 * 192 + 9, 3)
        assert strip.label == 2
        assert [read_number(strip.picture[:, 195 * n : 195 * n + 192]) for n in range(4)] == numbers


def test_strips_are_made_on_one_thread_in_each_of_many_processes(video, monkeypatch):
    threads = []
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    rows = [ListedVideo("val", video, "b")]
    strip_as_seen(0, rows, model_views(config(), [video], None, seed=0))
    strip_of_file(0, rows)
    assert threads == [1, 1]


def test_text_that_is_too_long_loses_its_end_or_its_beginning():
    for length, end, beginning in ((6, "abcdef", "abcdef"), (5, "abcd…", "…cdef"), (2, "a…", "…f")):
        assert sheet.shortened("abcdef", length) == end
        assert sheet.shortened("abcdef", length, keep_end=True) == beginning
    assert sheet.shortened("a\nb", 3) == "a?b"


@pytest.mark.parametrize(("count", "rows"), [(1, 1), (3, 1), (4, 2), (7, 3)])
def test_a_sheet_has_three_strips_in_a_row_each_with_its_label_and_file(monkeypatch, count, rows):
    saved = []
    monkeypatch.setattr(sheet, "save_figure", lambda figure, path: saved.append((figure, path)))
    shown = [
        (ListedVideo("train", Video(f"/v/../w/{number}.mp4", 0), ""), f"label {number}" * (number != 1),
         np.full((30, 120, 3), number, dtype=np.uint8))
        for number in range(count)
    ]  # fmt: skip
    draw_contact_sheet(shown, Path("sheet.png"), "title")
    ((figure, path),) = saved
    assert path == Path("sheet.png")
    assert figure.get_suptitle() == "title"
    assert figure.get_size_inches().tolist() == pytest.approx([3 * 4.2, rows * (4.2 / 4 + 0.5) + 0.4])
    assert len(figure.axes) == 3 * rows
    for number, axis in enumerate(figure.axes):
        if number >= count:
            assert not axis.axison
            continue
        assert int(axis.images[0].get_array()[0, 0, 0]) == number
        assert axis.get_title(loc="left") == (f"label {number}" if number != 1 else "no label")
        assert axis.get_xlabel() == f"train  {number}.mp4"  # below the folder that all share
        assert not any(text.get_parse_math() for text in (axis._left_title, axis.xaxis.label))  # "$5 to $6" is a name
        assert axis.get_anchor() == "NW"  # under its label, which begins on the left
        assert not any(spine.get_visible() for spine in axis.spines.values())
        assert len(axis.get_xticks()) == len(axis.get_yticks()) == 0


def test_a_long_path_keeps_its_end(monkeypatch):
    saved = []
    monkeypatch.setattr(sheet, "save_figure", lambda figure, path: saved.append(figure))
    shown = [
        (ListedVideo("val", Video(f"/v/{name}.mp4", 0), ""), "l" * 99, np.zeros((30, 120, 3), dtype=np.uint8))
        for name in ("d" * 99 + "/x", "e/y")
    ]
    draw_contact_sheet(shown, Path("x"), "t" * 200)
    axis = saved[0].axes[0]
    assert axis.get_xlabel() == "val  …" + "d" * 66 + "/x.mp4"
    assert axis.get_title(loc="left") == "l" * 53 + "…"
    assert saved[0].get_suptitle() == "t" * 149 + "…"
