"""Bad training videos: listed once where they are used, a stop where they are refused or their folder is lost."""

import csv
from types import SimpleNamespace

import pytest
import torch

from lookupvit_video.data.dataset import Batch
from lookupvit_video.data.manifest import Video
from lookupvit_video.errors import RunFailure
from lookupvit_video.training.bad_videos import lost_folder, note_bad_videos, stop_if_lost


@pytest.fixture
def run(tmp_path):
    for name in "abc":
        (tmp_path / name).write_bytes(b"")
    return SimpleNamespace(
        cfg=SimpleNamespace(DATA=SimpleNamespace(DAMAGED_TRAIN="use", MAX_BAD_FRACTION=0.5)),
        train_videos=[Video(str(tmp_path / name), 0) for name in "abc"],
        state=SimpleNamespace(bad_rows=set()), damaged_rows=set(), folder=tmp_path, dry=False,
    )  # fmt: skip


def batch(errors, damaged):
    return Batch(torch.zeros(1), torch.zeros(1), torch.arange(3), errors, damaged)


def listed(run):
    with (run.folder / "bad_videos.csv").open() as file:
        return [(row["path"][-1], row["reason"]) for row in csv.DictReader(file)]


def test_a_damaged_video_is_listed_once_with_its_kind_and_counts_as_read(run, caplog):
    for _ in range(2):
        note_bad_videos(run, batch([], [(1, "picture data: torn")]))
    assert listed(run) == [("b", "damaged, used: picture data: torn")]
    assert run.state.bad_rows == set()
    assert len([record for record in caplog.records if "damaged, but used" in record.message]) == 1


def test_one_that_is_skipped_is_listed_as_bad_alone(run):
    note_bad_videos(run, batch([(1, "b: damaged: torn")], [(1, "torn")]))
    assert listed(run) == [("b", "b: damaged: torn")]
    assert run.state.bad_rows == {1}


def test_an_unreadable_video_is_listed_once_and_warned_of_once(run, caplog):
    for _ in range(2):
        note_bad_videos(run, batch([(2, "c: empty")], []))
    assert listed(run) == [("c", "c: empty")]
    assert run.state.bad_rows == {2}
    assert [record.getMessage() for record in caplog.records] == ["skipped: c: empty"]


def test_a_dry_run_writes_no_list_but_counts_and_warns(run, caplog):
    run.dry = True
    note_bad_videos(run, batch([(2, "c: empty")], [(1, "torn")]))
    assert not (run.folder / "bad_videos.csv").exists()
    assert run.state.bad_rows == {2}
    assert run.damaged_rows == {1}
    assert "skipped: c: empty" in caplog.text
    assert "b: damaged, but used: torn" in caplog.text
    with pytest.raises(
        RunFailure, match=r"^2 of 3 training videos .*; fix the videos or raise DATA\.MAX_BAD_FRACTION$"
    ):
        note_bad_videos(run, batch([(0, "a: empty")], []))


def test_as_many_bad_videos_as_are_allowed_stop_nothing_and_one_more_does(run):
    run.train_videos = run.train_videos + run.train_videos[:1]
    note_bad_videos(run, batch([(0, "a: empty"), (1, "b: empty")], []))  # half of four
    listing = run.folder / "bad_videos.csv"
    with pytest.raises(RunFailure, match=rf"^3 of 4 training .* in {listing}; .* DATA\.SKIP_LIST {listing}, or fix"):
        note_bad_videos(run, batch([(2, "c: empty")], []))
    assert [name for name, _ in listed(run)] == ["a", "b", "c"]


def test_videos_whose_folder_is_lost_are_not_listed(run):
    run.train_videos = [Video(str(run.folder / "gone" / "a"), 0)]
    with pytest.raises(RunFailure, match=r"gone is missing or empty: is the disk .* still mounted"):
        note_bad_videos(run, batch([(0, "no such file")], []))
    assert run.state.bad_rows == set()
    assert not (run.folder / "bad_videos.csv").exists()


def test_a_damaged_video_stops_a_run_that_refuses_them(run):
    run.cfg.DATA.DAMAGED_TRAIN = "refuse"
    with pytest.raises(RunFailure, match=r"b: damaged: torn; .*DATA\.SKIP_LIST.* DATA\.DAMAGED_TRAIN to use or skip"):
        note_bad_videos(run, batch([(1, "b: damaged: torn")], [(1, "torn")]))


def test_folders_that_are_lost(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x.mp4").write_bytes(b"")
    assert lost_folder([str(tmp_path / "full" / "y.mp4")]) == ""
    assert lost_folder([str(tmp_path / "full" / "y.mp4"), str(tmp_path / "empty" / "y.mp4")]) == str(tmp_path / "empty")
    assert lost_folder([str(tmp_path / "none" / "y.mp4")]) == str(tmp_path / "none")
    (tmp_path / "full" / "x.tar").write_bytes(b"")
    assert lost_folder([str(tmp_path / "full" / "x.tar" / "0.mp4"), "https://here/there/0.mp4"]) == ""
    assert lost_folder([str(tmp_path / "empty" / "x.tar" / "0.mp4")]) == str(tmp_path / "empty")


def test_no_unreadable_videos_are_no_lost_folder():
    stop_if_lost([])


def test_remote_videos_are_listed_by_their_address(run):
    run.train_videos = [Video(path, 0) for path in ("https://h/a.mp4", "s3://b/x.tar/c.mp4", "d", "e")]
    note_bad_videos(run, batch([(0, "gone"), (1, "damaged")], []))
    with (run.folder / "bad_videos.csv").open() as file:
        assert [row["path"] for row in csv.DictReader(file)] == ["https://h/a.mp4", "s3://b/x.tar/c.mp4"]
