"""Kinetics from its official files in every usual layout: the counts are right and nothing is invented."""

import csv
import io
import json
import os
import tarfile
from pathlib import Path

import pytest

from lookupvit_video.config import load_config
from lookupvit_video.data.manifest import load_classes, load_split, read_class_list, read_manifest
from lookupvit_video.decoding.backends import open_video
from lookupvit_video.preparation.kinetics import extract, key_of, prepare_kinetics, read_annotations
from lookupvit_video.preparation.lists import Key, Options
from lookupvit_video.preparation.reencode import Encoding
from tests.small import call_tool
from tests.videos import read_number, write_video

# label, youtube_id, time_start, time_end, split, is_cc: as published, with ids that look like file names with times
ROWS = {
    "train": [
        ("testifying", "---QUuC4vJs", 84, 94, "train", 0),
        ("massaging person's head", "-_12_000003", 1, 11, "train", 0),
        ("passing American football (in game)", "0_123456_78", 100, 110, "train", 0),
        ("air drumming", "zzzzzzzzzz1", 0, 10, "train", 1),
        ("air drumming", "zzzzzzzzzz2", 3, 13, "train", 0),
    ],
    "val": [
        ("air drumming", "--nQbRBEz2s", 104, 114, "val", 0),
        ("testifying", "vvvvvvvvvv2", 5, 15, "val", 0),
    ],
    "test": [
        ("testifying", "tttttttttt1", 7, 17, "test", 0),
        ("air drumming", "tttttttttt2", 8, 18, "test", 0),
    ],
}
CLASSES = ["air drumming", "massaging person's head", "passing American football (in game)", "testifying"]
ABSENT = {"zzzzzzzzzz2", "vvvvvvvvvv2"}


def write_csv(folder, split, *, labels=True, is_cc=True, rows=None, names=None):
    """As DeepMind's: labels with spaces in quotes, the split's own name."""
    folder.mkdir(exist_ok=True)
    path = folder / f"{split}.csv"
    lines = [",".join((["label"] if labels else []) + ["youtube_id,time_start,time_end,split"] + ["is_cc"] * is_cc)]
    for label, video, start, end, name, cc in ROWS[split] if rows is None else rows:
        quoted = f'"{label}"' if " " in label else label
        name = (names or {}).get(name, name)
        lines.append(",".join([quoted] * labels + [f"{video},{start},{end},{name}"] + [str(cc)] * is_cc))
    path.write_text("\n".join(lines) + "\n")
    return path


def write_json(folder, split, *, labels=True, names=None):
    entries = {
        video: {
            "annotations": ({"label": label} if labels else {}) | {"segment": [float(start), float(end)]},
            "duration": 10.0,
            "subset": (names or {}).get(name, name),
            "url": f"https://www.youtube.com/watch?v={video}",
        }
        for label, video, start, end, name, _ in ROWS[split]
    }
    path = folder / f"{split}.json"
    path.write_text(json.dumps(entries))
    return path


@pytest.fixture(scope="session")
def video(tmp_path_factory):
    """A real video of 10 s."""
    return write_video(tmp_path_factory.mktemp("video") / "a.mp4", frames=20, fps=2)


def lay(video, root, names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        os.link(video, root / name)


def present():
    return [row for rows in ROWS.values() for row in rows if row[1] not in ABSENT]


# How people keep the files: row -> path
LAYOUTS = {
    "class folders": lambda label, video, s, e, split, _: f"{split}/{label}/{video}_{s:06d}_{e:06d}.mp4",
    "class folders with underscores": lambda label, video, s, e, split, _: (
        f"{split}/{label.replace(' ', '_').replace('(', '').replace(')', '')}/{video}_{s:06d}_{e:06d}.mp4"
    ),
    "class folders, no times": lambda label, video, s, e, split, _: f"{split}/{label}/{video}.webm",
    "flat": lambda label, video, s, e, split, _: f"{split}/{video}_{s:06d}_{e:06d}.mp4",
    "flat, no times": lambda label, video, s, e, split, _: f"{split}/{video}.mkv",
    "all in one": lambda label, video, s, e, split, _: f"{video}_{s}_{e}.MP4",
}
EXTRA = ["train/abcdefghijk_000001_000011.mp4", "train/---QUuC4vJs_000001_000011.mp4", "notes about it.avi"]


def rows_of(path):
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def labels_found(out, name):
    """YouTube id -> class name, of each row; every path leads to a file."""
    classes = read_class_list(out / "classes.txt")
    videos = read_manifest(out / name, classes)
    assert all(Path(v.path).is_file() for v in videos)
    found = {key_of(Path(v.path), {r[1] for r in present()}).video: classes[v.label] for v in videos}
    assert len(found) == len(videos)
    return found


@pytest.mark.parametrize("annotations", ["csv", "csv, no is_cc, validate", "json", "csv and json"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(tmp_path, video, capsys, layout, annotations):
    root, out = tmp_path / "k400", tmp_path / "lists"
    lay(video, root, [LAYOUTS[layout](*row) for row in present()] + EXTRA)
    (root / "train" / "readme.txt").write_text("not a video")
    (root / ".cache").mkdir()
    os.link(video, root / ".cache" / "zzzzzzzzzz2_000003_000013.mp4")
    names = {"val": "validate"}
    files = []
    if annotations != "json":
        files += [write_csv(tmp_path, split, is_cc="no is_cc" not in annotations, names=names) for split in ROWS]
    if "json" in annotations:
        files += [write_json(tmp_path, split, names=names) for split in ROWS]
    assert prepare_kinetics("k400", files, [root], Options(out)) == 0

    assert read_class_list(out / "classes.txt") == CLASSES
    expected = {s: {r[1]: r[0] for r in rows if r[1] not in ABSENT} for s, rows in ROWS.items()}
    assert labels_found(out, "train.csv") == expected["train"]
    assert labels_found(out, "val.csv") == expected["val"]
    assert labels_found(out, "test_official.csv") == expected["test"]
    assert (out / "test.csv").read_bytes() == (out / "val.csv").read_bytes()
    assert {(r["video"], r["split"], r["label"], r["reason"]) for r in rows_of(out / "missing.csv")} == {
        ("zzzzzzzzzz2", "train", "air drumming", "no file"), ("vvvvvvvvvv2", "val", "testifying", "no file"),
    }  # fmt: skip
    extra = {os.path.relpath(r["path"], root): r["reason"] for r in rows_of(out / "extra.csv")}
    assert set(extra) == set(EXTRA)
    assert extra[EXTRA[0]] == extra[EXTRA[2]] == "not annotated"
    printed = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["train", "246,245", "5", "4", "1"] in printed
    assert ["val", "20,000", "2", "1", "1"] in printed
    assert ["test", "40,000", "2", "2", "0"] in printed


def test_the_lists_are_what_the_configs_ask_for(tmp_path, video):
    lay(video, tmp_path / "videos", [LAYOUTS["flat"](*row) for row in present()])
    files = [write_csv(tmp_path, split) for split in ROWS]
    prepare_kinetics("k400", files, [tmp_path / "videos"], Options(tmp_path / "lists", test_on="test"))
    (tmp_path / "lists").rename(tmp_path / "moved")  # paths are relative
    (tmp_path / "moved").rename(tmp_path / "lists")
    cfg = load_config(
        "configs/k400_lvit.yaml", ["DATA.PATH_TO_DATA_DIR", str(tmp_path / "lists"), "MODEL.NUM_CLASSES", "4"]
    )
    classes = load_classes(cfg)
    assert [len(load_split(cfg, split, classes)) for split in ("train", "val", "test")] == [4, 1, 2]


@pytest.mark.parametrize("form", ["csv", "json"])
def test_a_test_split_without_labels_gets_none(tmp_path, video, form):
    """Not even where the file lies in a class folder."""
    lay(video, tmp_path / "k", [LAYOUTS["class folders"](*row) for row in present()])
    write = write_csv if form == "csv" else write_json
    files = [write(tmp_path, "train"), write(tmp_path, "val"), write(tmp_path, "test", labels=False)]
    assert prepare_kinetics("k400", files, [tmp_path / "k"], Options(tmp_path / "lists")) == 0
    listed = (tmp_path / "lists" / "test_unlabelled.txt").read_text().splitlines()
    assert [Path(line).name for line in listed] == ["tttttttttt1_000007_000017.mp4", "tttttttttt2_000008_000018.mp4"]
    assert all(Path(line).is_file() for line in listed)
    assert not (tmp_path / "lists" / "test_official.csv").exists()
    assert len(rows_of(tmp_path / "lists" / "test.csv")) == 1


def test_labels_that_are_published_later_replace_the_list_without(tmp_path, video):
    lay(video, tmp_path / "k", [LAYOUTS["flat"](*row) for row in present()])
    (tmp_path / "labelled").mkdir()
    files = [write_csv(tmp_path, split, labels=split != "test") for split in ROWS]
    prepare_kinetics("k400", files, [tmp_path / "k"], Options(tmp_path / "lists"))
    prepare_kinetics(
        "k400", [*files, write_csv(tmp_path / "labelled", "test")], [tmp_path / "k"], Options(tmp_path / "lists")
    )
    assert not (tmp_path / "lists" / "test_unlabelled.txt").exists()
    assert len(rows_of(tmp_path / "lists" / "test_official.csv")) == 2


# What is in doubt -------------------------------------------------------------------------------------------------


def prepared(tmp_path, video, rows, names, **options):
    """(id_start -> label of train.csv, missing video -> reason, extra path -> reason)."""
    lay(video, tmp_path / "k", ["yyyyyyyyyyy.mp4", *names])
    out = tmp_path / "lists"
    rows = [*rows, ("yoga", "yyyyyyyyyyy", 0, 10, "train", 0)]
    prepare_kinetics("k700", [write_csv(tmp_path, "train", rows=rows)], [tmp_path / "k"], Options(out), **options)
    classes = read_class_list(out / "classes.txt")
    found = {
        os.path.relpath(v.path, tmp_path / "k"): classes[v.label] for v in read_manifest(out / "train.csv", classes)
    }
    assert found.pop("yyyyyyyyyyy.mp4") == "yoga"
    missing = {(r["video"], r["label"]): r["reason"] for r in rows_of(out / "missing.csv")}
    return found, missing, {os.path.relpath(r["path"], tmp_path / "k"): r["reason"] for r in rows_of(out / "extra.csv")}


def test_one_clip_with_two_labels_has_none(tmp_path, video):
    rows = [("a", "xxxxxxxxxxx", 1, 11, "train", 0), ("b", "xxxxxxxxxxx", 1, 11, "train", 0)]
    found, missing, extra = prepared(tmp_path, video, rows, ["xxxxxxxxxxx_000001_000011.mp4"])
    assert found == {}
    assert set(missing) == {("xxxxxxxxxxx", "a")}
    assert "annotated as 'a'" in missing["xxxxxxxxxxx", "a"]
    assert "as 'b'" in missing["xxxxxxxxxxx", "a"]
    assert "different labels" in extra["xxxxxxxxxxx_000001_000011.mp4"]


def test_one_clip_annotated_twice_alike_is_one(tmp_path, video):
    rows = [("a", "xxxxxxxxxxx", 1, 11, "train", 0)] * 2
    found, missing, extra = prepared(tmp_path, video, rows, ["xxxxxxxxxxx_000001_000011.mp4"])
    assert (found, missing, extra) == ({"xxxxxxxxxxx_000001_000011.mp4": "a"}, {}, {})


TWO_SPANS = [("a", "xxxxxxxxxxx", 1, 11, "train", 0), ("b", "xxxxxxxxxxx", 30, 40, "train", 0)]


def test_two_spans_of_one_video_are_told_apart_by_times_or_class_folder(tmp_path, video):
    names = ["xxxxxxxxxxx_000001_000011.mp4", "xxxxxxxxxxx_000030_000040.mp4"]
    found, missing, extra = prepared(tmp_path, video, TWO_SPANS, names)
    assert (found, missing, extra) == ({names[0]: "a", names[1]: "b"}, {}, {})
    (tmp_path / "folders").mkdir()
    names = ["b/xxxxxxxxxxx.mp4", "a/xxxxxxxxxxx.mp4"]
    found, missing, extra = prepared(tmp_path / "folders", video, TWO_SPANS, names)
    assert (found, missing, extra) == ({names[0]: "b", names[1]: "a"}, {}, {})


def test_a_file_that_may_be_either_of_two_spans_is_neither(tmp_path, video):
    names = ["xxxxxxxxxxx.mp4", "xxxxxxxxxxx_000030_000040.mp4"]
    found, missing, extra = prepared(tmp_path, video, TWO_SPANS, names)
    assert found == {names[1]: "b"}
    assert "may be any of 2 annotated spans" in missing["xxxxxxxxxxx", "a"]
    assert "may be any of 2" in extra[names[0]]


def test_a_file_in_the_folder_of_another_class_is_not_taken(tmp_path, video):
    rows = [("air drumming", "xxxxxxxxxxx", 1, 11, "train", 0), ("b", "bbbbbbbbbbb", 1, 11, "train", 0)]
    found, missing, _ = prepared(tmp_path, video, rows, ["b/xxxxxxxxxxx_000001_000011.mp4", "b/bbbbbbbbbbb.mp4"])
    assert found == {"b/bbbbbbbbbbb.mp4": "b"}
    assert "in class folder 'b', but annotated 'air drumming'" in missing["xxxxxxxxxxx", "air drumming"]


def test_replacements_go_before_what_they_replace_and_duplicates_are_told(tmp_path, video):
    row = ("a", "xxxxxxxxxxx", 1, 11, "train", 0)
    names = [
        "train/xxxxxxxxxxx_000001_000011.mp4", "other/xxxxxxxxxxx_000001_000011.mp4",
        "replacement/replacement_for_corrupted_k400/xxxxxxxxxxx.mp4",
    ]  # fmt: skip
    found, missing, extra = prepared(tmp_path, video, [row], names)
    assert (found, missing) == ({names[2]: "a"}, {})
    assert set(extra) == set(names[:2])
    assert all(names[2] in reason for reason in extra.values())


def test_empty_files_and_dead_links_are_missing(tmp_path, video):
    rows = [("a", "xxxxxxxxxxx", 1, 11, "train", 0), ("a", "lllllllllll", 1, 11, "train", 0)]
    rows += [("b", "bbbbbbbbbbb", 1, 11, "train", 0)]
    (tmp_path / "k").mkdir()
    (tmp_path / "k" / "xxxxxxxxxxx.mp4").touch()
    (tmp_path / "k" / "lllllllllll.mp4").symlink_to("nowhere")
    (tmp_path / "k" / "bbbbbbbbbbb.mp4").touch()
    found, missing, _ = prepared(tmp_path, video, rows, ["bbbbbbbbbbb_000001_000011.mp4"])
    assert found == {"bbbbbbbbbbb_000001_000011.mp4": "b"}  # the whole one of two
    assert all("empty" in reason for reason in missing.values())
    assert len(missing) == 2


def test_linked_folders_are_followed_once(tmp_path, video):
    lay(video, tmp_path / "disk", [LAYOUTS["class folders"](*row) for row in ROWS["train"]])
    (tmp_path / "k").mkdir()
    (tmp_path / "k" / "train").symlink_to(tmp_path / "disk" / "train")
    (tmp_path / "disk" / "train" / "loop").symlink_to(tmp_path / "k")
    prepare_kinetics("k400", [write_csv(tmp_path, "train")], [tmp_path / "k"], Options(tmp_path / "lists"))
    assert len(rows_of(tmp_path / "lists" / "train.csv")) == 5
    assert rows_of(tmp_path / "lists" / "extra.csv") == []


# Whole videos and re-encoding -------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def whole(tmp_path_factory):
    """A video of 60 s at 5 frames a second, numbered."""
    return write_video(tmp_path_factory.mktemp("whole") / "a.mp4", frames=300, fps=5, gop=40)


def test_whole_videos_keep_their_spans(tmp_path, whole, capsys):
    found, missing, extra = prepared(tmp_path, whole, TWO_SPANS[1:], ["xxxxxxxxxxx.mp4"], whole=True)
    assert (found, missing, extra) == ({"xxxxxxxxxxx.mp4": "b"}, {}, {})
    rows = rows_of(tmp_path / "lists" / "train.csv")
    assert [(row["start"], row["end"]) for row in rows] == [("30", "40"), ("0", "10")]
    assert "warning" not in capsys.readouterr().out


def test_what_kind_of_files_they_seem_to_be_is_told(tmp_path, whole, video, capsys):
    rows = [("a", "xxxxxxxxxxx", 30, 40, "train", 0), ("a", "zzzzzzzzzzz", 70, 80, "train", 0)]
    names = ["xxxxxxxxxxx.mp4", "zzzzzzzzzzz.mp4"]
    prepared(tmp_path / "whole", whole, rows, names)
    assert "warning: 3 of 3 files are much longer than their spans" in capsys.readouterr().out
    prepared(tmp_path / "clips", video, rows, names, whole=True)
    assert "warning: 2 of 3 files end before their spans" in capsys.readouterr().out


def test_trimmed_and_re_encoded(tmp_path, whole):
    lay(whole, tmp_path / "k", ["xxxxxxxxxxx.mp4"])
    (tmp_path / "k" / "broken00000.mp4").write_text("no video")
    rows = [*TWO_SPANS, ("a", "broken00000", 0, 10, "train", 0)]
    files = [write_csv(tmp_path, "train", rows=rows)]
    options = Options(tmp_path / "lists", Encoding(32, gop=5), trim=True, processes=2)
    assert prepare_kinetics("k400", files, [tmp_path / "k"], options, whole=True) == 1
    rows = rows_of(tmp_path / "lists" / "train.csv")
    assert [row["path"] for row in rows] == [
        "videos/train/xxxxxxxxxxx_000001_000011.mp4", "videos/train/xxxxxxxxxxx_000030_000040.mp4",
    ]  # fmt: skip
    assert set(rows[0]) == {"path", "label"}
    for row, first in zip(rows, (5, 150), strict=True):
        with open_video(tmp_path / "lists" / row["path"]) as reader:
            assert (reader.info.num_frames, min(reader.info.width, reader.info.height)) == (50, 32)
            assert read_number(reader.frames_at([0.0])[0].numpy()) == first
    missing = rows_of(tmp_path / "lists" / "missing.csv")
    assert [(r["video"], "is text, not a video" in r["reason"]) for r in missing] == [("broken00000", True)]


def test_re_encoded_whole_keeps_the_spans_and_one_file(tmp_path, whole):
    lay(whole, tmp_path / "k", ["xxxxxxxxxxx.mp4"])
    files = [write_csv(tmp_path, "train", rows=TWO_SPANS)]
    options = Options(tmp_path / "lists", Encoding(32, gop=5))
    assert prepare_kinetics("k400", files, [tmp_path / "k"], options, whole=True) == 0
    rows = rows_of(tmp_path / "lists" / "train.csv")
    assert [tuple(row.values()) for row in rows] == [
        ("videos/train/xxxxxxxxxxx.mp4", "0", "1", "11"), ("videos/train/xxxxxxxxxxx.mp4", "1", "30", "40"),
    ]  # fmt: skip


# Tarballs ---------------------------------------------------------------------------------------------------------


def pack(path, members, mode="w:gz"):
    """members: name -> bytes, or a TarInfo of another kind."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as archive:
        for name, content in members.items():
            if isinstance(content, tarfile.TarInfo):
                archive.addfile(content)
                continue
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def test_tarballs(tmp_path, video, capsys):
    content = Path(video).read_bytes()
    names = {split: [f"{r[1]}_{r[2]:06d}_{r[3]:06d}.mp4" for r in rows] for split, rows in ROWS.items()}
    train = names["train"]
    pack(tmp_path / "tgz/train/part_0.tar.gz", {f"./{name}": content for name in train[:2]} | {"a.txt": b"no"})
    pack(tmp_path / "tgz/train/part_1.tar.gz", dict.fromkeys(train[2:4], content), mode="w")  # a tar by another name
    pack(tmp_path / "tgz/val/part_0.tar.gz", dict.fromkeys(names["val"], content))
    pack(tmp_path / "tgz/replacement/replacement_for_corrupted_k400.tgz", {f"replacement_x/{train[0]}": content})
    whole = pack(tmp_path / "tgz/test/part_0.tar.gz", {name: os.urandom(50_000) for name in names["test"]})
    whole.write_bytes(whole.read_bytes()[:70_000])  # cut in the second of two
    files = [write_csv(tmp_path, split) for split in ROWS]
    options = Options(tmp_path / "lists")
    assert prepare_kinetics("k400", files, [], options, tarballs=tmp_path / "tgz") == 1
    assert "part_0.tar.gz: damaged" in capsys.readouterr().out
    unpacked = tmp_path / "lists" / "unpacked"
    assert sorted(str(p.relative_to(unpacked)) for p in unpacked.rglob("*.mp4")) == sorted(
        [*(f"train/{n}" for n in train[:4]), *(f"val/{n}" for n in names["val"]), f"test/{names['test'][0]}",
         f"replacement/replacement_x/{train[0]}"]
    )  # fmt: skip
    paths = [row["path"] for row in rows_of(tmp_path / "lists" / "train.csv")]
    assert paths[0] == f"unpacked/replacement/replacement_x/{train[0]}"
    assert paths[1:] == [f"unpacked/train/{name}" for name in train[1:4]]
    before = {p: p.stat().st_mtime_ns for p in unpacked.rglob("*.mp4")}
    whole.unlink()
    assert prepare_kinetics("k400", files, [], options, tarballs=tmp_path / "tgz") == 0
    assert {p: p.stat().st_mtime_ns for p in unpacked.rglob("*.mp4")} == before


def link(name, target, kind):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


@pytest.mark.parametrize("name", ["../evil.mp4", "/tmp/evil.mp4", "a/../../evil.mp4", "a\\..\\evil.mp4", "c:evil.mp4"])
def test_no_tarball_writes_outside_its_folder(tmp_path, name):
    pack(tmp_path / "tgz" / "part_0.tar.gz", {name: b"evil"})
    with pytest.raises(ValueError, match=r"part_0\.tar\.gz: .* would be written outside"):
        extract(tmp_path / "tgz", tmp_path / "out")
    assert not list(tmp_path.rglob("*evil*"))


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE])
def test_only_plain_files_come_out_of_tarballs(tmp_path, kind):
    (tmp_path / "elsewhere").mkdir()
    members = {"x": link("d", str(tmp_path / "elsewhere"), tarfile.SYMTYPE), "d/a.mp4": b"a",
               "y": link("l.mp4", "/etc/passwd", kind)}  # fmt: skip
    pack(tmp_path / "tgz" / "part_0.tar", members, mode="w")
    assert extract(tmp_path / "tgz", tmp_path / "out") == []
    assert [p.name for p in (tmp_path / "out").rglob("*") if not p.name.startswith(".")] == ["d", "a.mp4"]
    assert not any((tmp_path / "elsewhere").iterdir())


def test_a_link_that_was_laid_in_the_way_is_not_followed(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "d").symlink_to(tmp_path / "elsewhere")
    pack(tmp_path / "tgz" / "part_0.tar.gz", {"d/a.mp4": b"a"})
    with pytest.raises(ValueError, match="by a link"):
        extract(tmp_path / "tgz", tmp_path / "out")
    assert not any((tmp_path / "elsewhere").iterdir())


# Names and mistakes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("---QUuC4vJs_000084_000094.mp4", Key("---QUuC4vJs", 84, 94)),
        ("---QUuC4vJs_84_94.mkv", Key("---QUuC4vJs", 84, 94)),
        ("---QUuC4vJs.webm", Key("---QUuC4vJs")),
        ("0_123456_78.mp4", Key("0_123456_78")),  # an id that looks like a span
        ("0_123456_78_000100_000110.mp4", Key("0_123456_78", 100, 110)),
        ("holiday.mp4", Key("holiday")),
    ],
)
def test_file_names(name, key):
    assert key_of(Path(name), {"---QUuC4vJs", "0_123456_78"}) == key


GOOD = "label,youtube_id,time_start,time_end,split\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"line 1: no column youtube_id, time_start, time_end, split; the official files begin with"),
        ("label,youtube_id,time_start,time_end\n", r"line 1: no column split"),
        (GOOD, r"holds no annotation"),
        (GOOD + "yoga,abcdefghijk,1,11,trian\n", r"line 2: split 'trian' is not one of train, training, val"),
        (GOOD + "yoga,abcdefghijk,11,1,train\n", r"line 2: '11' to '1' is not a span of seconds"),
        (GOOD + "yoga,abcdefghijk,one,11,train\n", r"line 2: 'one' to '11' is not a span"),
        (GOOD + "yoga,abcdefghijk,nan,11,train\n", r"line 2: 'nan' to '11' is not a span"),
        (GOOD + "yoga,,1,11,train\n", r"line 2: no youtube_id"),
        (GOOD + ",abcdefghijk,1,11,train\n", r"line 2: no label; only the test split may have none"),
        (GOOD + "yoga,abcdefghijk,1\n", r"line 2: expected 5 fields"),
        (GOOD + "yoga,abcdefghijk,1,11,train,0,0\n", r"line 2: expected 5 fields"),
        ('{"a": ', r"Expecting value"),
        ('{"a": {"subset": "train"}}', r"video a: expected"),
        ('{"a": {"subset": "train", "annotations": {"label": "x", "segment": [1]}}}', r"video a: expected"),
        ('{"a": {"subset": "train", "annotations": [{"label": "x", "segment": [1, 2]}]}}', r"video a: expected"),
        ('{"a": {"subset": "train", "annotations": {"segment": [1, 2]}}}', r"video a: no label"),
        ('{"a": 1, "a": 2}', r"'a' occurs twice in one object"),
    ],
)
def test_annotations_that_are_wrong_are_told(tmp_path, text, message):
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(ValueError, match=rf"a\.csv.*{message}"):
        read_annotations(tmp_path / "a.csv")


def test_a_class_list_can_be_given(tmp_path, video):
    lay(video, tmp_path / "k", ["--nQbRBEz2s.mp4"])
    (tmp_path / "names.txt").write_text("".join(f"{name}\n" for name in CLASSES))
    files, options = [write_csv(tmp_path, "val")], Options(tmp_path / "lists")
    prepare_kinetics("k400", files, [tmp_path / "k"], options, classes=tmp_path / "names.txt")
    assert read_class_list(tmp_path / "lists" / "classes.txt") == CLASSES
    (tmp_path / "names.txt").write_text("yoga\n")
    with pytest.raises(ValueError, match=r"names\.txt: does not name 'air drumming', which is annotated"):
        prepare_kinetics("k400", files, [tmp_path / "k"], options, classes=tmp_path / "names.txt")


def command(*arguments):
    return call_tool("datasets/kinetics/prepare.py", "--dataset", "k400", *arguments)


def test_the_command(tmp_path, video):
    lay(video, tmp_path / "k", [LAYOUTS["flat"](*row) for row in present()])
    files = [write_csv(tmp_path, split) for split in ROWS]
    done = command("--annotations", *files, "--videos", tmp_path / "k", "--out", tmp_path / "lists")
    assert done.returncode == 0, done.stderr
    assert f"wrote {tmp_path / 'lists'}" in done.stdout
    assert "note: 4 classes are annotated, not 400" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--videos", "nowhere"], "nowhere: no such folder"),
        (["--videos", "void"], "void: no video below it"),
        ([], "no videos: give --videos, --tarballs or both"),
        (["--tarballs", "void"], "void: no .tar.gz, .tgz or .tar below it"),
        (["--videos", "other"], "no annotated video is there: annotated is for instance ---QUuC4vJs_000084_000094"),
        (["--videos", "other", "--trim"], "give --short-side and --whole-videos"),
        (["--videos", "other", "--short-side", "255"], "--short-side must be an even number"),
    ],
)
def test_mistakes_give_one_line(tmp_path, video, arguments, message):
    (tmp_path / "void").mkdir()
    lay(video, tmp_path / "other", ["holiday.mp4"])
    arguments = [tmp_path / a if a in ("void", "other") else a for a in arguments]
    done = command("--annotations", write_csv(tmp_path, "train"), "--out", tmp_path / "lists", *arguments)
    assert done.returncode == 2
    assert message in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "lists").exists()
