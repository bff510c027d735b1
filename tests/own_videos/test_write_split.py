"""`lookupvit prepare split`: no group in two lists, whatever the options."""

import csv
import itertools
import os
from collections import defaultdict

import pytest

from lookupvit_video.data.manifest import Video
from lookupvit_video.errors import UserError
from lookupvit_video.own_videos.write_split import SplitOptions, prepare_split, split_by_time
from tests.small import call_tool

BY_RECORDING = r"([^/]*)_\d+\."


@pytest.fixture
def place(tmp_path):
    """Three classes, in each ten recordings of one to four clips."""
    for name, recording in itertools.product("abc", range(10)):
        (tmp_path / "videos" / name).mkdir(parents=True, exist_ok=True)
        for clip in range(1 + recording % 4):
            file = tmp_path / "videos" / name / f"{name}{recording}_{clip}.mp4"
            file.touch()
            os.utime(file, (0, 1000 * recording))
    return tmp_path / "videos"


def lists(folder):
    """The recordings and the labels in each list."""
    found = {}
    for split in ("train", "val", "test"):
        rows = list(csv.DictReader((folder / f"{split}.csv").open()))
        found[split] = {os.path.basename(row["path"]).split("_")[0] for row in rows}, {row["label"] for row in rows}
    return found


@pytest.mark.parametrize("seed", range(3))
def test_no_recording_is_in_two_lists_and_each_class_is_in_all(place, tmp_path, seed):
    lines, hints = prepare_split(place, tmp_path / "out", BY_RECORDING, SplitOptions(seed=seed))
    found = lists(tmp_path / "out")
    for one, other in itertools.combinations(found.values(), 2):
        assert not one[0] & other[0]
    assert all(labels == set("abc") for _, labels in found.values())
    assert sum(len(recordings) for recordings, _ in found.values()) == 30
    assert hints == []
    assert lines[0].startswith(f"{tmp_path / 'out' / 'train'}.csv: ")
    assert lines[0].endswith("groups, 3 of 3 classes")


def test_each_recording_is_held_out_in_one_fold(place, tmp_path):
    prepare_split(place, tmp_path / "out", BY_RECORDING, SplitOptions(folds=4))
    held_out = defaultdict(int)
    for fold in range(4):
        found = lists(tmp_path / "out" / str(fold))
        assert not found["train"][0] & found["val"][0]
        assert found["val"] == found["test"]
        for recording in found["val"][0]:
            held_out[recording] += 1
    assert len(held_out) == 30
    assert set(held_out.values()) == {1}


def test_the_newest_are_tested(place, tmp_path):
    for name, order_by in (("time", "mtime"), ("name", r"[abc](\d+)_")):
        prepare_split(place, tmp_path / name, BY_RECORDING, SplitOptions((0.6, 0.2, 0.2), order_by=order_by))
        ages = {split: {int(r[1:]) for r in recordings} for split, (recordings, _) in lists(tmp_path / name).items()}
        assert max(ages["train"]) <= min(ages["val"])
        assert max(ages["val"]) <= min(ages["test"])


def test_a_group_is_as_new_as_its_newest_video():
    videos = [Video(f"{number}", 0, group=group) for number, group in ((1, "a"), (9, "a"), (5, "b"), (4, "c"))]
    names = split_by_time(videos, {"train": 0.5, "test": 0.5}, lambda video: ((float(video.path), ""),))
    assert names == ["test", "test", "train", "train"]
    fixed = split_by_time(videos, {"train": 0.5, "test": 0.5}, lambda video: ((float(video.path), ""),), {"a": "train"})
    assert fixed == ["train", "train", "test", "test"]


@pytest.mark.parametrize("order_by", ["", "mtime"])
def test_new_videos_join_and_no_video_changes_its_split(place, tmp_path, order_by):
    prepare_split(place, tmp_path / "old", BY_RECORDING, SplitOptions())
    for number in range(6):
        (place / "b" / f"new{number}_0.mp4").touch()
    (place / "a" / "a0_9.mp4").touch()  # a clip more of a known recording
    options = SplitOptions(keep=tmp_path / "old", seed=7, order_by=order_by)
    prepare_split(place, tmp_path / "new", BY_RECORDING, options)
    old, new = lists(tmp_path / "old"), lists(tmp_path / "new")
    for split in old:
        assert old[split][0] <= new[split][0]
    assert sum(len(recordings) for recordings, _ in new.values()) == 36


def test_lists_to_keep_must_share_no_recording(place, tmp_path):
    prepare_split(place, tmp_path / "old", "", SplitOptions())
    with pytest.raises(UserError, match=r"group 'a\d' is in two splits, .*\(train\)"):
        prepare_split(place, tmp_path / "new", BY_RECORDING, SplitOptions(keep=tmp_path / "old"))
    with pytest.raises(UserError, match=r"holds no train\.csv"):
        prepare_split(place, tmp_path / "new", BY_RECORDING, SplitOptions(keep=place))
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (SplitOptions((0.5, 0.4)), "two or three that sum to 1"),
        (SplitOptions((0.5, 0.6, -0.1)), "two or three that sum to 1"),
        (SplitOptions(folds=1), "--folds 1: from 2 on"),
        (SplitOptions(folds=3, order_by="mtime"), "without --order-by"),
        (SplitOptions(order_by="("), "not a regular expression|nor a regular expression"),
        (SplitOptions(order_by="never"), "does not match"),
        (SplitOptions(folds=99), "would be empty"),
    ],
)
def test_what_does_not_fit_is_said(place, tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        prepare_split(place, tmp_path / "out", BY_RECORDING, options)
    assert not (tmp_path / "out").exists()


def test_splits_that_were_there_are_named_where_they_are_split_again(place, tmp_path):
    for split, name in (("train", "a"), ("test", "b")):
        (tmp_path / "parts" / split).mkdir(parents=True)
        (place / name).rename(tmp_path / "parts" / split / name)
    lines, hints = prepare_split(tmp_path / "parts", tmp_path / "out", BY_RECORDING, SplitOptions())
    assert len(lines) == 3
    assert hints[-1] == f"{tmp_path / 'parts'} has splits already (train, test); all of its videos were split again"


def test_the_command(place, tmp_path):
    words = ["--data", place, "--shares", 0.8, 0.2, "--out", tmp_path / "out"]
    done = call_tool("lookupvit_video/__main__.py", "prepare", "split", *words)
    assert done.returncode == 0, done.stderr
    assert "train.csv: 54 videos, 54 groups, 3 of 3 classes" in done.stdout
    assert "note: 4 videos are named" in done.stdout


def test_copies_stay_together_with_all_of_their_groups(place, tmp_path):
    def file(name):
        return str(place / name[0] / f"{name}.mp4")

    pairs = [("a1_0", "b2_1"), ("b2_0", "c3_0"), ("a5_0", "a6_0"), ("a1_0", "gone_0")]
    rows = "".join(f"{file(one)},{file(other)}\n" for one, other in pairs)
    (tmp_path / "copies.csv").write_text("path,copy_of\n" + rows)
    for seed in range(4):
        options = ["--group-by", BY_RECORDING, "--copies", tmp_path / "copies.csv", "--seed", seed]
        done = call_tool(
            "lookupvit_video/__main__.py", "prepare", "split", "--data", place, "--out", tmp_path / "out", *options
        )
        assert done.returncode == 0, done.stderr
        splits = [recordings for recordings, _ in lists(tmp_path / "out").values()]
        for joined in ({"a1", "b2", "c3"}, {"a5", "a6"}):
            assert sum(joined <= recordings for recordings in splits) == 1
            assert sum(bool(joined & recordings) for recordings in splits) == 1


def test_another_file_is_no_list_of_copies(place, tmp_path):
    (tmp_path / "x.csv").write_text("path,label\na,b\n")
    for name, message in (("x.csv", "give the copies.csv that"), ("none.csv", r"cannot be read \(No such file")):
        with pytest.raises(UserError, match=f"{name}: {message}"):
            prepare_split(place, tmp_path / "out", "", SplitOptions(copies=tmp_path / name))
