"""What the preparation of all data sets shares: finding files, and lists that the loader reads back as meant."""

import os
from pathlib import Path

import pytest

from lookupvit_video.data.manifest import read_manifest
from lookupvit_video.preparation.lists import Account, Annotation, Found, Key, counts, files_below, merge, write_lists

CLASSES = ["air drumming", 'say "hello", twice', "zumba"]


def annotation(video, label, split="train", start=None, end=None):
    return Annotation(Key(video, start, end), split, label, f"{split}.csv, line 2")


def touch(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x")
    return path


def test_lists_are_read_back_as_they_were_meant(tmp_path):
    names = ["plain.mp4", "with space.webm", "a, b.mp4", 'quote"d.mkv', "ünï.mp4", "#1.avi", "path,label.mp4"]
    files = [touch(tmp_path / "a, b c" / name) for name in names]
    found = [Found(annotation(p.stem, CLASSES[i % 3]), p) for i, p in enumerate(files)]
    found[2] = Found(found[2].annotation, files[2], 30, 40.5)
    write_lists(tmp_path / "lists", CLASSES, Account(found))
    videos = read_manifest(tmp_path / "lists" / "train.csv", CLASSES)
    assert [os.path.realpath(v.path) for v in videos] == [str(p) for p in files]
    assert [v.label for v in videos] == [i % 3 for i in range(len(files))]
    assert [(v.start, v.end) for v in videos] == [(None, None)] * 2 + [(30, 40.5)] + [(None, None)] * 4


def test_lists_lead_to_the_files_through_links(tmp_path):
    files = [touch(tmp_path / "disk" / "deep" / "a.mp4")]
    (tmp_path / "real" / "lists").mkdir(parents=True)
    (tmp_path / "lists").symlink_to(tmp_path / "real" / "lists")
    (tmp_path / "videos").symlink_to(tmp_path / "disk")
    (path,) = files_below([tmp_path / "videos"])
    write_lists(tmp_path / "lists", CLASSES, Account([Found(annotation("a", "zumba"), path)]))
    for folder in (tmp_path / "lists", tmp_path / "real" / "lists"):
        (video,) = read_manifest(folder / "train.csv", CLASSES)
        assert os.path.samefile(video.path, files[0])


def test_lists_of_an_earlier_run_do_not_stay(tmp_path):
    file = touch(tmp_path / "a.mp4")
    write_lists(tmp_path, CLASSES, Account([Found(annotation("a", "zumba", "val"), file)]))
    assert {"val.csv", "test.csv"} <= set(os.listdir(tmp_path))
    write_lists(tmp_path, CLASSES, Account([Found(annotation("a", "zumba"), file)]))
    names = {"a.mp4", "train.csv", "classes.txt", "missing.csv", "extra.csv"}
    assert set(os.listdir(tmp_path)) == names  # and nothing temporary


@pytest.mark.parametrize("name", ["a\nb.mp4", "a\u2028b.mp4", "a.mp4 "])
def test_a_path_that_no_list_can_hold_is_told(tmp_path, name):
    file = touch(tmp_path / "v" / name)
    with pytest.raises(ValueError, match="cannot be in a list; rename it"):
        write_lists(tmp_path / "lists", CLASSES, Account([Found(annotation("a", "zumba"), file)]))
    assert not (tmp_path / "lists" / "train.csv").exists()


def test_files_are_found_by_their_ending_hidden_ones_are_not(tmp_path):
    kept = [touch(tmp_path / n) for n in ("b/c.WebM", "a.mp4", "b/d/e.mkv", "with space/f.avi")]
    for name in (".hidden.mp4", ".git/a.mp4", "a.txt", "a.mp4.part", "mp4", "pictures/00001.jpg"):
        touch(tmp_path / name)
    assert files_below([tmp_path]) == sorted(kept)
    assert files_below([tmp_path], pictures=True) == sorted([*kept, tmp_path / "pictures"])
    assert files_below([tmp_path / "b", tmp_path]) == sorted(kept[::2]) + sorted(kept[1::2])  # each once


def test_merge_keeps_one_of_each_and_fills_in_labels():
    given = [annotation("a", None, "test"), annotation("a", "zumba", "test"), annotation("b", "zumba"),
             annotation("b", "zumba"), annotation("c", "zumba"), annotation("c", "zumba", "val"),
             annotation("d", "zumba"), annotation("d", "air drumming", "val"), annotation("d", None, "test"),
             annotation("d", "zumba", start=1, end=11)]  # fmt: skip
    unique, conflicts = merge(given)
    assert [(str(a.key), a.split, a.label) for a in unique] == [
        ("a", "test", "zumba"), ("b", "train", "zumba"), ("c", "train", "zumba"), ("c", "val", "zumba"),
        ("d_000001_000011", "train", "zumba"),
    ]  # fmt: skip
    assert [(a.key.video, a.split) for a, _ in conflicts] == [("d", "train"), ("d", "val"), ("d", "test")]
    assert {why for _, why in conflicts} == {
        "annotated as 'zumba' (train.csv, line 2) and as 'air drumming' (val.csv, line 2)"
    }


def test_counts_of_what_is_not_published_are_not_given():
    account = Account([Found(annotation("a", "zumba"), Path("a.mp4"))], [(annotation("b", "zumba", "val"), "no file")])
    lines = [line.split() for line in counts(account, {"train": 1000, "val": None}).splitlines()]
    assert lines[1:] == [["train", "1,000", "1", "1", "0"], ["val", "-", "1", "0", "1"], ["test", "-", "0", "0", "0"]]
