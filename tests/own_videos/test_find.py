"""Which videos, classes and splits a user's folder holds."""

from pathlib import Path

import pytest

from lookupvit_video.errors import UserError
from lookupvit_video.own_videos.find import ALL, find_videos


def make(folder: Path, *names: str) -> Path:
    """Files that are named like videos; only their names count here."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return folder


def found(place, group_by=""):
    """(classes, {split: [(path below the folder, class)]}, hints)."""
    result = find_videos(place, group_by)
    root = place if place.is_dir() else place.parent
    return (
        result.classes,
        {
            split: [(Path(video.path).relative_to(root).as_posix(), result.classes[video.label]) for video in videos]
            for split, videos in result.splits.items()
        },
        result.hints,
    )


def test_class_folders(tmp_path):
    make(tmp_path, "run/a.mp4", "walk slowly/b.webm", "走る/c.mkv", "run/notes.txt", ".hidden/d.mp4")
    classes, splits, hints = found(tmp_path)
    assert classes == ["run", "walk slowly", "走る"]
    assert splits == {ALL: [("run/a.mp4", "run"), ("walk slowly/b.webm", "walk slowly"), ("走る/c.mkv", "走る")]}
    assert hints == []


def test_an_empty_class_folder_is_no_class(tmp_path):
    make(tmp_path, "a/1.mp4", "c/2.mp4", "b/readme.txt")
    classes, splits, hints = found(tmp_path)
    assert (classes, splits[ALL]) == (["a", "c"], [("a/1.mp4", "a"), ("c/2.mp4", "c")])
    assert hints == ["1 classes have no video and are left out: b"]


@pytest.mark.parametrize("names", [("train", "val", "test"), ("Training", "validation", "testing"), ("train", "dev")])
def test_three_folders(tmp_path, names):
    make(tmp_path, *[f"{name}/{kind}/{name}.mp4" for name in names for kind in ("a", "b")])
    classes, splits, _ = found(tmp_path)
    assert classes == ["a", "b"]
    assert list(splits) == ["train", "val", "test"][: len(names)]
    assert splits["val"] == [(f"{names[1]}/{kind}/{names[1]}.mp4", kind) for kind in ("a", "b")]


def test_a_class_may_be_called_train(tmp_path):
    make(tmp_path, "bus/a.mp4", "train/b.mp4")
    assert found(tmp_path)[0] == ["bus", "train"]


def test_a_folder_of_an_archive(tmp_path):
    make(tmp_path, "archive/a/1.mp4", "archive/b/2.mp4")
    assert found(tmp_path)[1] == {ALL: [("archive/a/1.mp4", "a"), ("archive/b/2.mp4", "b")]}


@pytest.mark.parametrize("text", [
    "path,label\nv/1.mp4,b\nv/2.mp4,a\n", "filename;class\nv/1.mp4;b\nv/2.mp4;a\n", "v/1.mp4 b\nv/2.mp4 a\n",
    "path label\nv/1.mp4 b\nv/2.mp4 a\n",
])  # fmt: skip
def test_a_list(tmp_path, text):
    make(tmp_path, "v/1.mp4", "v/2.mp4")
    (tmp_path / "list.csv").write_text(text)
    assert found(tmp_path / "list.csv")[:2] == (["a", "b"], {ALL: [("v/1.mp4", "b"), ("v/2.mp4", "a")]})


def test_the_only_list_of_a_folder(tmp_path):
    make(tmp_path, "videos/1.mp4", "videos/2.mp4")
    (tmp_path / "labels.csv").write_text("path,label\nvideos/1.mp4,b\nvideos/2.mp4,a\n")
    (tmp_path / "README.txt").write_text("Thank you for reading this.\n")
    assert found(tmp_path)[:2] == (["a", "b"], {ALL: [("videos/1.mp4", "b"), ("videos/2.mp4", "a")]})


def test_lists_of_splits(tmp_path):
    make(tmp_path, "1.mp4", "2.mp4")
    (tmp_path / "train.tsv").write_text("path\tlabel\n1.mp4\tb\n2.mp4\ta\n")
    (tmp_path / "valid.txt").write_text("2.mp4 a\n")
    classes, splits, _ = found(tmp_path)
    assert (classes, splits) == (["a", "b"], {"train": [("1.mp4", "b"), ("2.mp4", "a")], "val": [("2.mp4", "a")]})


def test_each_list_adds_its_classes(tmp_path):
    make(tmp_path, "1.mp4", "2.mp4")
    (tmp_path / "train.csv").write_text("path,label\n1.mp4,a\n")
    (tmp_path / "val.csv").write_text("path,label\n2.mp4,b\n")
    assert found(tmp_path)[0] == ["a", "b"]


def test_numbers_are_labels_of_the_class_list(tmp_path):
    make(tmp_path, "1.mp4", "2.mp4")
    (tmp_path / "train.csv").write_text("path,label\n1.mp4,0\n2.mp4,2\n")
    (tmp_path / "classes.txt").write_text("run\nsit\nwalk\n")
    assert found(tmp_path)[:2] == (["run", "sit", "walk"], {"train": [("1.mp4", "run"), ("2.mp4", "walk")]})
    (tmp_path / "classes.txt").unlink()
    assert found(tmp_path)[0] == ["0", "2"]


def groups(place, group_by=""):
    return [video.group for video in find_videos(place, group_by).splits[ALL]]


def test_groups(tmp_path):
    make(tmp_path, "a/s1_x_1.mp4", "a/s1_x_2.mp4", "b/s2_1.mp4")
    files = [str(tmp_path / name) for name in ("a/s1_x_1.mp4", "a/s1_x_2.mp4", "b/s2_1.mp4")]
    assert groups(tmp_path) == files
    assert groups(tmp_path, r"s\d") == ["s1", "s1", "s2"]
    assert groups(tmp_path, r"(s\d_x)_") == ["s1_x", "s1_x", files[2]]
    assert find_videos(tmp_path, "_x").hints == [f"--group-by matches 2 of 3 paths; not {files[2]}"]
    (tmp_path / "list.csv").write_text("path,label,group\na/s1_x_1.mp4,a,one\nb/s2_1.mp4,b,\n")
    assert groups(tmp_path / "list.csv") == ["one", files[2]]
    assert find_videos(tmp_path).hints == [
        f"{tmp_path / 'list.csv'} has a column group; to split by it: --data {tmp_path / 'list.csv'}"
    ]


def test_groups_of_files_outside_the_folder_are_found_in_their_complete_path(tmp_path):
    make(tmp_path, "far/s7/1.mp4", "data/s1/2.mp4")
    (tmp_path / "data" / "list.csv").write_text(f"path,label\n{tmp_path}/far/s7/1.mp4,a\ns1/2.mp4,b\n")
    assert groups(tmp_path / "data" / "list.csv", r"s\d") == ["s7", "s1"]
    assert groups(tmp_path / "data" / "list.csv", r"^s\d") == [f"{tmp_path}/far/s7/1.mp4", "s1"]


@pytest.mark.parametrize(("names", "group_by", "message"), [
    (["a/1.mp4"], "(", "--group-by '(': not a regular expression"),
    (["a/1.mp4"], "xyz", "--group-by 'xyz' matches no path, such as "),
    (["1.mp4", "2.mp4"], "", "no class folders and no list; its videos are in no class folder; expected FOLDER/CLASS"),
    (["a/readme.txt"], "", "no class folders and no list; expected FOLDER/CLASS"),
])  # fmt: skip
def test_mistakes(tmp_path, names, group_by, message):
    with pytest.raises(UserError) as caught:
        find_videos(make(tmp_path, *names), group_by)
    assert message in str(caught.value)


def test_no_such_folder(tmp_path):
    with pytest.raises(UserError, match="no such folder or list of videos"):
        find_videos(tmp_path / "typo")


def test_several_labels_a_video_are_seen_in_the_list_alone(tmp_path):
    (tmp_path / "list.csv").write_text("path,label\na.mp4,run|jump\nb.mp4,\nc.mp4,sit\n")
    found = find_videos(tmp_path / "list.csv")
    assert (found.classes, found.multi_label) == (["jump", "run", "sit"], True)
    assert [video.labels for video in found.splits["all"]] == [(0, 1), (), (2,)]
    (tmp_path / "list.csv").write_text("path,label\na.mp4,run\nc.mp4,sit\n")
    assert not find_videos(tmp_path / "list.csv").multi_label
    (tmp_path / "list.csv").write_text("path,label\na.mp4,run\nb.mp4,\n")  # one label was forgotten
    with pytest.raises(UserError, match=r"line 3: label '' is neither"):
        find_videos(tmp_path / "list.csv")
