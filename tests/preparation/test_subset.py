"""datasets/moving_digits/subset.py: some classes of a label set, numbered anew, with paths that lead somewhere."""

from collections import Counter
from pathlib import Path

from lookupvit_video.data.manifest import read_class_list, read_manifest
from tests.small import call_tool


def test_some_classes_and_fewer_training_videos(tmp_path):
    whole, part = tmp_path / "motion", tmp_path / "deep" / "part"
    whole.mkdir()
    (whole / "classes.txt").write_text("up\ndown\nnear\nfar\n")
    for split in ("train", "val", "test"):
        rows = "".join(f"../videos/{split}/{i}.mp4,{i % 4}\n" for i in range(12))
        (whole / f"{split}.csv").write_text(f"path,label\n{rows}")
    command = ("datasets/moving_digits/subset.py", "--of", whole, "--out", part, "--train", 4, "--classes")
    done = call_tool(*command, "far", "up")
    assert done.returncode == 0, done.stderr
    names = read_class_list(part / "classes.txt")
    assert names == ["far", "up"]
    for split, numbers in {"train": [0, 3, 4, 7], "test": [0, 3, 4, 7, 8, 11]}.items():
        videos = read_manifest(part / f"{split}.csv", names)
        paths = [(part / video.path).resolve() for video in videos]
        assert paths == [tmp_path / "videos" / split / f"{number}.mp4" for number in numbers]
        assert [names[video.label] for video in videos] == ["up" if number % 4 == 0 else "far" for number in numbers]
    assert call_tool(*command, "far", "up", "--skip", 1).returncode == 0
    assert [Path(video.path).stem for video in read_manifest(part / "train.csv", names)] == ["3", "4", "7", "8"]
    assert "--skip 6 leaves none of the 6 training videos" in call_tool(*command, "far", "up", "--skip", 6).stderr
    wrong = call_tool(*command, "left")
    assert wrong.returncode == 2
    assert "'left' is not in" in wrong.stderr


def test_a_long_tail(tmp_path):
    whole, part = tmp_path / "motion", tmp_path / "part"
    whole.mkdir()
    (whole / "classes.txt").write_text("up\ndown\nfar\n")
    for split in ("train", "val", "test"):
        (whole / f"{split}.csv").write_text("path,label\n" + "".join(f"{i}.mp4,{i % 3}\n" for i in range(300)))
    done = call_tool("datasets/moving_digits/subset.py", "--of", whole, "--out", part, "--long-tail", 100)
    assert done.returncode == 0, done.stderr
    names = read_class_list(part / "classes.txt")
    counts = {
        split: Counter(v.label for v in read_manifest(part / f"{split}.csv", names)) for split in ("train", "val")
    }
    assert counts == {"train": {0: 100, 1: 10, 2: 1}, "val": {0: 100, 1: 100, 2: 100}}
