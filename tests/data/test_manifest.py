"""Lists of videos in every form that people have them in, and what is said of those that are wrong."""

import os
import re
from pathlib import Path

import pytest

from lookupvit_video.config import load_config
from lookupvit_video.data.manifest import (
    Video,
    allowed_bad,
    has_several_labels,
    join_labels,
    label_cell,
    load_classes,
    load_split,
    missing_files,
    read_class_list,
    read_manifest,
    read_unlabelled,
    renumbered,
    split_labels,
)
from lookupvit_video.errors import UserError

CLASSES = ["abseiling", "air drumming", "zumba, slow"]
EMPTY_LIST_MESSAGE = "the list holds no video"


def write(folder, text, name="train.csv"):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode())
    return path


def rows(folder, text, classes=CLASSES):
    """(path relative to the list's folder, label, start, end) of each row."""
    videos = read_manifest(write(folder, text), classes)
    return [(str(Path(v.path).relative_to(folder)), v.label, v.start, v.end) for v in videos]


def config_for(folder, *overrides, classes=3):
    return load_config(None, ["DATA.PATH_TO_DATA_DIR", str(folder), "MODEL.NUM_CLASSES", str(classes), *overrides])


# Forms ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("path,label\na.mp4,0\nb/c.mp4,2\n", [("a.mp4", 0, None, None), ("b/c.mp4", 2, None, None)]),
        ("path,label\na.mp4,1", [("a.mp4", 1, None, None)]),
        ("path,label\n\na.mp4,0\n\n\n", [("a.mp4", 0, None, None)]),
        ("\ufeffpath,label\r\na.mp4,0\r\nb.mp4,1\r\n", [("a.mp4", 0, None, None), ("b.mp4", 1, None, None)]),
        ("path , label\n a.mp4 , 2 \n", [("a.mp4", 2, None, None)]),
        ("label,note,path\n1,a remark,a.mp4\n", [("a.mp4", 1, None, None)]),
        ('path,label\n"a, b.mp4",1\n', [("a, b.mp4", 1, None, None)]),
        ('"path","label"\n"a, b.mp4","1"\n', [("a, b.mp4", 1, None, None)]),
        ("path,label\na b.mp4,air drumming\n", [("a b.mp4", 1, None, None)]),
        ('path,label\na.mp4,"zumba, slow"\n', [("a.mp4", 2, None, None)]),
        ("path,label,start,end\na.mp4,0,1.5,2\n", [("a.mp4", 0, 1.5, 2.0)]),
        ("end,path,start,label\n9,a.mp4,,0\n,b.mp4,3,1\n,c.mp4,,2\n",
         [("a.mp4", 0, None, 9.0), ("b.mp4", 1, 3.0, None), ("c.mp4", 2, None, None)]),
        ("a.mp4 0\nb.mp4 2\n", [("a.mp4", 0, None, None), ("b.mp4", 2, None, None)]),
        ("\ufeffa.mp4 0\r\n\r\nb.mp4 2\r\n", [("a.mp4", 0, None, None), ("b.mp4", 2, None, None)]),
        ("with two  spaces.mp4 2\n", [("with two  spaces.mp4", 2, None, None)]),
        ("a.mp4,1\na b.mp4, 2\n", [("a.mp4", 1, None, None), ("a b.mp4", 2, None, None)]),
        ("a.mp4\t1\na b.mp4\t2\n", [("a.mp4", 1, None, None), ("a b.mp4", 2, None, None)]),
        ("  a.mp4   abseiling  \n", [("a.mp4", 0, None, None)]),
    ],
)  # fmt: skip
def test_forms(tmp_path, text, expected):
    assert rows(tmp_path, text) == expected


def test_rows_say_where_they_stand(tmp_path):
    path = write(tmp_path, "path,label\na.mp4,0\n\nb.mp4,1\n")
    assert [video.source for video in read_manifest(path, CLASSES)] == [f"{path}, line 2", f"{path}, line 4"]
    path = write(tmp_path, "a.mp4 0\n\nb.mp4 1\n")
    assert [video.source for video in read_manifest(path, CLASSES)] == [f"{path}, line 1", f"{path}, line 3"]


def test_names_that_look_like_numbers_are_names(tmp_path):
    assert rows(tmp_path, "a.mp4 0\nb.mp4 1\n", classes=["1", "0"]) == [
        ("a.mp4", 1, None, None),
        ("b.mp4", 0, None, None),
    ]


def test_paths_are_taken_from_the_prefix_or_the_lists_folder(tmp_path):
    path = write(tmp_path, "path,label\na.mp4,0\n/abs/b.mp4,1\n")
    assert [v.path for v in read_manifest(path, CLASSES)] == [str(tmp_path / "a.mp4"), "/abs/b.mp4"]
    assert [v.path for v in read_manifest(path, CLASSES, "/data/k400")] == ["/data/k400/a.mp4", "/abs/b.mp4"]
    assert [v.path for v in read_manifest(path, CLASSES, "videos")] == ["videos/a.mp4", "/abs/b.mp4"]


def test_folder_of_class_folders(tmp_path):
    names = ["abseiling/b.mp4", "abseiling/a.WEBM", "abseiling/deep/c.avi", "air drumming/a.mkv"]
    for name in [*names, "abseiling/notes.txt", "abseiling/._b.mp4", ".cache/x.mp4", "stray.mp4"]:
        write(tmp_path, "", name)
    videos = read_manifest(tmp_path, CLASSES)
    assert {(str(Path(v.path).relative_to(tmp_path)), v.label) for v in videos} == {
        (name, CLASSES.index(name.split("/")[0])) for name in names
    }
    assert [v.path for v in videos] == [v.path for v in read_manifest(tmp_path, CLASSES)]
    labels = [v.label for v in videos]
    assert labels == sorted(labels)


@pytest.mark.parametrize("labels", [None, (1,)])
def test_rows_of_a_folder_say_their_file_and_others_are_told(tmp_path, caplog, labels):
    caplog.set_level("INFO")
    for name in ("air drumming/a.mp4", "air drumming/b.txt", "stray.mp4", "folder.mp4/x.txt"):
        write(tmp_path, "", name)
    (tmp_path / "folder.mp4").rename(tmp_path / ".folder.mp4")
    file = str(tmp_path / "air drumming" / "a.mp4")
    found = read_manifest(tmp_path, CLASSES, multi_label=labels is not None)
    assert found == [Video(file, 1, source=file, labels=labels)]
    assert f"left out 1 videos in no class folder, such as {tmp_path / 'stray.mp4'}" in caplog.text


def test_what_a_row_says_of_its_labels_and_its_span():
    assert Video("a", 3).every_label == (3,)
    assert Video("a", 1, labels=(1, 4)).every_label == (1, 4)
    assert Video("a", -1, labels=()).every_label == ()
    for start, end, span in ((None, None, (0, 9)), (2.5, None, (2.5, 9)), (None, 4.5, (0, 4.5)), (2.5, 99, (2.5, 9))):
        assert Video("a", 0, start, end).span(9.0) == span


def test_rows_get_other_numbers():
    numbers = {1: 5, 2: 0}
    assert renumbered(Video("a", 2, 1.0), numbers) == Video("a", 0, 1.0)
    assert renumbered(Video("a", 1, labels=(1, 2)), numbers) == Video("a", 0, labels=(0, 5))
    assert renumbered(Video("a", -1, labels=()), numbers) == Video("a", -1, labels=())


def test_the_cell_of_a_row():
    assert label_cell(Video("a", 2), CLASSES) == "zumba, slow"
    assert label_cell(Video("a", 0, labels=(0, 3)), ["a|b", "c", "d", "e"]) == '"a|b"|e'
    assert label_cell(Video("a", -1, labels=()), CLASSES) == ""


@pytest.mark.parametrize("text", ["video 2\nb.mp4 1\n", "path 2\nb.mp4 1\n"])
def test_a_first_row_like_a_header_is_a_row_where_its_label_is_one(tmp_path, text):
    assert rows(tmp_path, text) == [(text.split()[0], 2, None, None), ("b.mp4", 1, None, None)]
    assert rows(tmp_path, text.replace("2", CLASSES[1]))[0][1] == 1


@pytest.mark.parametrize("header", ["video label", "file_path class", "path target"])
def test_a_header_of_lines_without_delimiter(tmp_path, header):
    assert rows(tmp_path, f"\n{header}\na.mp4 0\n") == [("a.mp4", 0, None, None)]


@pytest.mark.parametrize(
    ("count", "fraction", "allowed"),
    [(1000, 0.01, 10), (1000, 0, 0), (20, 0, 0), (9, 0.01, 0), (10, 0.01, 1), (29, 0.01, 2), (30, 0.01, 3),
     (299, 0.01, 3), (400, 0.01, 4), (10, 0.5, 5), (0, 0.5, 0)],
)  # fmt: skip
def test_how_many_videos_may_be_bad(count, fraction, allowed):
    assert allowed_bad(count, fraction) == allowed


# Mistakes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,action\na.mp4,0\n", r"line 1: the header 'path,action' has no label column; write path,label"),
        ("path,label\na.mp4,3\n", r"line 2: label 3 is out of range; there are 3 classes, so labels go from 0 to 2"),
        ("path,label\na.mp4,0\nb.mp4,-1\n", r"line 3: label -1 is out of range"),
        ("path,label\na.mp4,jumping\n", r"line 2: label 'jumping' is neither a number nor a name of the class list"),
        ("path,label\na.mp4,1.0\n", r"line 2: label '1\.0' is neither"),
        ("path,label\na.mp4,\n", r"line 2: label '' is neither"),
        ("path,label\n,0\n", r"line 2: no path"),
        ("path,label\n\n ,0\n", r"line 3: no path"),
        ("path,label\na.mp4\n", r"line 2: expected 2 fields \(path,label\)"),
        ("path,label\na.mp4,0\na, b.mp4,0\n", r"line 3: expected 2 fields \(path,label\), quote a path that holds"),
        ("path,label,start,end\na.mp4,0,2,1\n", r"line 2: end 1\.0 is not after start 2\.0"),
        ("path,label,start,end\na.mp4,0,2,2\n", r"line 2: end 2\.0 is not after start 2\.0"),
        ("path,label,start,end\na.mp4,0,,0\n", r"line 2: end 0\.0 is not after start 0\.0"),
        ("path,label,start,end\na.mp4,0,-1,\n", r"line 2: start '-1' is not a number of seconds"),
        ("path,label,start,end\na.mp4,0,,soon\n", r"line 2: end 'soon' is not a number of seconds"),
        ("path,label,start,end\na.mp4,0,nan,3\n", r"line 2: start 'nan' is not a number of seconds"),
        ("path,label,start,end\na.mp4,0,1,inf\n", r"line 2: end 'inf' is not a number of seconds"),
        ("a.mp4 0\nb.mp4\n", r"line 2: expected 'path label', got 'b\.mp4'"),
        ("a.mp4 0\n   0\n", r"line 2: expected 'path label', got '0'"),
        ("a.mp4 0\nb.mp4 7\n", r"line 2: label 7 is out of range"),
        ("a.mp4 0\nb.mp4 -1\n", r"line 2: label -1 is out of range"),
        ("", EMPTY_LIST_MESSAGE),
        ("\n \n", EMPTY_LIST_MESSAGE),
        ("path,label\n", EMPTY_LIST_MESSAGE),
        ("label,youtube_id,time_start,time_end,split\nabseiling,0347ZoDXyP0,95,105,val\n",
         r"these are Kinetics' official annotations, which name no files; write a list with the header path,label"),
    ],
)  # fmt: skip
def test_mistake_in_a_list(tmp_path, text, message):
    path = write(tmp_path, text)
    with pytest.raises(ValueError, match=f"^{re.escape(str(path))}[,:] {message}"):
        read_manifest(path, CLASSES)


def test_quote_left_open_in_a_long_list(tmp_path):
    path = write(tmp_path, 'path,label\na.mp4,0\n"b.mp4,0\n' + "c.mp4,0\n" * 20_000)
    with pytest.raises(ValueError, match=r"train\.csv, line 3: .*is a quote left open\?"):
        read_manifest(path, CLASSES)


def test_list_that_cannot_be_read(tmp_path):
    with pytest.raises(ValueError, match=r"gone\.csv: the list of videos cannot be read \(No such .*DATA\.\*_LIST"):
        read_manifest(tmp_path / "gone.csv", CLASSES)
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=r"binary\.csv: the list of videos cannot be read"):
        read_manifest(tmp_path / "binary.csv", CLASSES)


def test_class_folder_that_is_in_no_class_list(tmp_path):
    write(tmp_path, "", "jumping/a.mp4")
    with pytest.raises(ValueError, match=r"jumping: 'jumping' is not in the class list; rename the folder or add"):
        read_manifest(tmp_path, CLASSES)


def test_class_folders_without_videos(tmp_path):
    write(tmp_path, "", "abseiling/notes.txt")
    with pytest.raises(ValueError, match=r"no videos in class folders below it; expected .*CLASS/VIDEO\.mp4"):
        read_manifest(tmp_path, CLASSES)


# Class lists ------------------------------------------------------------------------------------------------------


def test_class_list(tmp_path):
    path = write(tmp_path, "abseiling\r\n air drumming \r\nzumba, slow\r\n\r\n\r\n", "classes.txt")
    assert read_class_list(path) == CLASSES


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the class list is empty; write one class name a line"),
        ("\n\n", "the class list is empty"),
        ("a\n\nb\n", "line 2: no class name; remove the empty line"),
        ("a\nb\na\n", "line 3: class 'a' is on line 1 already"),
    ],
)
def test_mistake_in_a_class_list(tmp_path, text, message):
    path = write(tmp_path, text, "classes.txt")
    with pytest.raises(ValueError, match=f"^{re.escape(str(path))}[,:] {message}"):
        read_class_list(path)


def test_missing_class_list(tmp_path):
    with pytest.raises(ValueError, match=r"classes\.txt: the class list cannot be read .*set DATA\.CLASS_LIST"):
        read_class_list(tmp_path / "classes.txt")


def test_classes_come_from_the_list_the_folders_or_the_numbers(tmp_path, caplog):
    assert load_classes(config_for(tmp_path)) == ["0", "1", "2"]
    assert "no class list; classes are named by their numbers (set DATA.CLASS_LIST)" in caplog.text
    for name in CLASSES:
        write(tmp_path, "", f"train/{name}/a.mp4")
    assert load_classes(config_for(tmp_path, "DATA.TRAIN_LIST", "train")) == CLASSES
    write(tmp_path, "c\nb\na\n", "classes.txt")
    assert load_classes(config_for(tmp_path, "DATA.TRAIN_LIST", "train")) == ["c", "b", "a"]


@pytest.mark.parametrize("name", ["classes.txt", "train"])
def test_number_of_classes_that_does_not_fit(tmp_path, name):
    if name == "train":
        write(tmp_path, "", "train/a/a.mp4")
        write(tmp_path, "", "train/b/a.mp4")
    else:
        write(tmp_path, "a\nb\n", name)
    message = rf"MODEL\.NUM_CLASSES is 3, but .*{name} names 2 classes; set MODEL\.NUM_CLASSES 2"
    with pytest.raises(ValueError, match=message):
        load_classes(config_for(tmp_path, "DATA.TRAIN_LIST", "train"))


# Files that are not there -----------------------------------------------------------------------------------------


def some_missing(folder, missing, total=10):
    videos = [Video(str(folder / f"{i}.mp4"), 0, source=f"train.csv, line {i + 1}") for i in range(total)]
    for video in videos[missing:]:
        Path(video.path).touch()
    return videos


def test_files_missing_below_the_allowed_fraction_are_told(tmp_path):
    videos = some_missing(tmp_path, missing=2)
    assert missing_files(videos, 0.2) == videos[:2]
    assert missing_files(videos[2:], 0.0) == []


def test_files_missing_above_the_allowed_fraction(tmp_path):
    videos = some_missing(tmp_path, missing=2)
    message = (
        rf"^train\.csv, line 1: video {re.escape(videos[0].path)} does not exist \(and 1 more of 10\); fix the list, "
        r"set DATA\.PATH_PREFIX, or allow more with DATA\.MAX_BAD_FRACTION"
    )
    with pytest.raises(ValueError, match=message):
        missing_files(videos, 0.19)
    with pytest.raises(ValueError, match=r"0\.mp4 does not exist; fix"):
        missing_files(videos[:1], 0.5)


def test_a_folder_is_no_video(tmp_path):
    (tmp_path / "a.mp4").mkdir()
    with pytest.raises(ValueError, match=r"a\.mp4 does not exist"):
        missing_files([Video(str(tmp_path / "a.mp4"), 0)], 0.0)


def test_load_split_reads_the_list_of_its_name(tmp_path, caplog):
    for split in ("train", "val", "test"):
        write(tmp_path, f"path,label\n{split}.mp4,1\ngone.mp4,0\n", f"{split}.csv")
        write(tmp_path, "", f"videos/{split}.mp4")
    allowed = config_for(tmp_path, "DATA.PATH_PREFIX", str(tmp_path / "videos"), "DATA.MAX_BAD_FRACTION", "0.5")
    for split in ("train", "val", "test"):
        videos = load_split(allowed, split, CLASSES)
        assert [Path(video.path).name for video in videos] == [f"{split}.mp4", "gone.mp4"]  # told, but still counted
        assert f"{split}.csv: 1 of 2 videos do not exist, the first" in caplog.text
    with pytest.raises(ValueError, match=r"test\.csv, line 3: video .*gone\.mp4 does not exist"):
        load_split(config_for(tmp_path, "DATA.PATH_PREFIX", str(tmp_path / "videos")), "test", CLASSES)


# Videos left out --------------------------------------------------------------------------------------------------


def kept(folder, split="train", *overrides):
    cfg = config_for(folder, "DATA.SKIP_LIST", "bad.csv", "DATA.MAX_BAD_FRACTION", "0", *overrides)
    return [Path(video.path).name for video in load_split(cfg, split, CLASSES)]


def some_lists(folder):
    """The same three rows in each list, of files that are there, and a fourth whose file is not."""
    for split in ("train", "val", "test"):
        write(folder, "path,label\na.mp4,0\nv/b.mp4,1\nc.mp4,2\n", f"{split}.csv")
    for name in ("a.mp4", "v/b.mp4", "c.mp4"):
        write(folder, "", name)


def test_remote_videos_are_left_out_by_their_address(tmp_path):
    write(tmp_path, "path,label\nhttps://h/a.mp4,0\nhttps://h/b.mp4,1\n", "train.csv")
    write(tmp_path, "path\nhttps://h/a.mp4\n", "bad.csv")
    assert kept(tmp_path) == ["b.mp4"]


@pytest.mark.parametrize("form", ["absolute", "as in the list", "through another folder"])
def test_skip_list_leaves_rows_out_of_training_alone(tmp_path, caplog, form):
    some_lists(tmp_path)
    path = {"absolute": tmp_path / "v" / "b.mp4", "as in the list": "v/b.mp4", "through another folder": "v/../v/b.mp4"}
    write(tmp_path, f"split,path,reason\ntrain,{path[form]},is empty\nval,nowhere.mp4,gone\n", "bad.csv")
    caplog.set_level("INFO")
    assert kept(tmp_path) == ["a.mp4", "c.mp4"]
    assert "bad.csv: 1 of 3 training videos skipped" in caplog.text
    caplog.clear()
    assert kept(tmp_path, "val") == kept(tmp_path, "test") == ["a.mp4", "b.mp4", "c.mp4"]
    assert "left out" not in caplog.text


def test_skipped_videos_are_not_looked_for(tmp_path):
    some_lists(tmp_path)
    (tmp_path / "c.mp4").unlink()
    write(tmp_path, "path\n", "bad.csv")
    with pytest.raises(ValueError, match=r"c\.mp4 does not exist"):
        kept(tmp_path)
    write(tmp_path, "path\nc.mp4\n", "bad.csv")
    assert kept(tmp_path) == ["a.mp4", "b.mp4"]


def test_skip_list_is_taken_from_the_prefix_as_the_lists_are(tmp_path):
    some_lists(tmp_path / "data")
    write(tmp_path / "lists", "path,label\na.mp4,0\nc.mp4,2\n")
    write(tmp_path / "lists", "path\na.mp4\n", "bad.csv")
    assert kept(tmp_path / "lists", "train", "DATA.PATH_PREFIX", str(tmp_path / "data")) == ["c.mp4"]


def test_names_of_any_bytes_and_commas_are_skipped(tmp_path):
    names = [b"a\xff.mp4", b"b, c.mp4", b"d\ne.mp4", b"f.mp4"]
    (tmp_path / "videos" / CLASSES[0]).mkdir(parents=True)
    for name in names:
        Path(os.fsdecode(bytes(tmp_path / "videos" / CLASSES[0]) + b"/" + name)).touch()
    (tmp_path / "bad.csv").write_bytes(b"path\n" + b"".join(b'"%s/%s"\n' % (CLASSES[0].encode(), n) for n in names[:3]))
    folder = str(tmp_path / "videos")
    assert kept(tmp_path, "train", "DATA.TRAIN_LIST", "videos", "DATA.PATH_PREFIX", folder) == ["f.mp4"]
    assert kept(tmp_path, "train", "DATA.TRAIN_LIST", "videos") == ["f.mp4"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, r"bad\.csv: the list cannot be read \(No such file or directory\); fix or empty DATA\.SKIP_LIST"),
        ("a.mp4\nc.mp4\n", r"bad\.csv: DATA\.SKIP_LIST is a CSV with a header and a column path in every row"),
        ("split,path\ntrain\n", r"bad\.csv, line 2: expected 2 fields \(split,path\)"),
        ("path\na.mp4\nv/b.mp4\nc.mp4\n", r"bad\.csv: names every training video; fix or empty"),
    ],
)
def test_mistake_in_a_skip_list(tmp_path, text, message):
    some_lists(tmp_path)
    if text is not None:
        write(tmp_path, text, "bad.csv")
    with pytest.raises(ValueError, match=message):
        kept(tmp_path)


# Several labels a video ---------------------------------------------------------------------------------------------

NAMES = ["run", "jump", 'say "hi"|wave', "sit"]


def several(folder, rows, header="path,label"):
    path = folder / "several.csv"
    path.write_text(f"{header}\n{rows}", encoding="utf-8")
    return [(Path(video.path).name, video.labels) for video in read_manifest(path, NAMES, multi_label=True)]


def test_several_labels_a_video(tmp_path):
    rows = 'a.mp4,jump|run\nb.mp4,\nc.mp4,"""say """"hi""""|wave""| sit"\nd.mp4,sit\n'
    assert several(tmp_path, rows) == [("a.mp4", (0, 1)), ("b.mp4", ()), ("c.mp4", (2, 3)), ("d.mp4", (3,))]
    assert several(tmp_path, "a.mp4,1|0\nb.mp4,3\n") == [("a.mp4", (0, 1)), ("b.mp4", (3,))]
    assert several(tmp_path, "a.mp4;jump|run\n", "path;label") == [("a.mp4", (0, 1))]
    (tmp_path / "plain.txt").write_text("a.mp4 jump|run\nb.mp4 sit\n")
    found = read_manifest(tmp_path / "plain.txt", NAMES, multi_label=True)
    assert [(video.label, video.labels) for video in found] == [(0, (0, 1)), (3, (3,))]


def test_rows_of_the_same_file_and_span_are_merged(tmp_path, caplog):
    rows = "a.mp4,run,0,2\na.mp4,jump,0,2\na.mp4,sit,2,4\nb.mp4,,,\nb.mp4,sit,,\na.mp4,run,0,2\n"
    with caplog.at_level("INFO"):
        found = several(tmp_path, rows, "path,label,start,end")
    assert found == [("a.mp4", (0, 1)), ("a.mp4", (3,)), ("b.mp4", (3,))]
    assert "merged 3 rows" in caplog.text


@pytest.mark.parametrize(
    ("cell", "reason"),
    [
        ("run||sit", "an empty label in 'run||sit'"),
        ("|run", "an empty label"),
        ("run|", "an empty label"),
        ("|", "an empty label"),
        ("run|run", "label 'run' is twice"),
        ("run|0", "label '0' mixes numbers and names with line 2"),
        ("0|run", "label 'run' mixes numbers and names with line 2"),
        ("swim", "label 'swim' is neither a number nor a name"),
        ("run|swim", "label 'swim' is neither"),
        ("Run", "label 'Run' is neither"),
        ("run,sit", "expected 2 fields"),
        ("run;sit", "label 'run;sit' is neither"),
        ("run/sit", "label 'run/sit' is neither"),
        ("9", "label 9 is out of range"),
        ("1|9", "label 9 is out of range"),
        ("-1", "label -1 is out of range"),
        ("1.0", "label '1.0' is neither"),
        ('"""run|sit"', "a quote in the labels"),
        ('"""run""x|sit"', "a quote in the labels"),
        ('"run', "is a quote left open"),
    ],
)
def test_malformed_labels_give_one_line_with_the_place(tmp_path, cell, reason):
    with pytest.raises(UserError) as error:
        several(tmp_path, f"a.mp4,{cell}\n")
    assert reason in str(error.value)
    assert "several.csv, line 2" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("rows", "repeats", "expected"),
    [
        ("a.mp4,run\nb.mp4,sit\n", True, False),
        ("a.mp4,run|sit\nb.mp4,sit\n", True, True),
        ("a.mp4,run\nb.mp4,\n", True, False),
        ("a.mp4,run\na.mp4,sit\n", True, True),
        ("a.mp4,run\na.mp4,sit\n", False, False),
        ("a.mp4,run\na.mp4,run\n", True, False),
        ("a.mp4,say \"hi\"|wave\nb.mp4,sit\n", True, False),
    ],
)  # fmt: skip
def test_the_list_alone_shows_whether_videos_have_several_labels(tmp_path, rows, repeats, expected):
    path = tmp_path / "list.csv"
    path.write_text("path,label\n" + rows)
    assert has_several_labels(path, NAMES, repeats=repeats) is expected


def test_names_of_labels_survive_a_round_trip():
    assert split_labels(join_labels(NAMES), "here") == NAMES


@pytest.mark.parametrize(
    "text",
    ["path,label\na.mp4,7\nb c.mp4,x\n", "path\na.mp4\nb c.mp4\n", "a.mp4\nb c.mp4\n", "a.mp4 7\nb c.mp4 8\n"],
    ids=["table", "no labels", "paths", "labels"],
)
def test_a_list_without_labels_is_read(tmp_path, text):
    (tmp_path / "list.csv").write_text(text)
    videos = read_unlabelled(tmp_path / "list.csv")
    assert [(video.path, video.label) for video in videos] == [(str(tmp_path / n), 0) for n in ("a.mp4", "b c.mp4")]


def test_a_folder_without_labels_is_read_to_its_depths(tmp_path):
    for name in ("a.mp4", "deep/er/b.mkv", "deep/notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert [Path(video.path).name for video in read_unlabelled(tmp_path)] == ["a.mp4", "b.mkv"]


def test_what_is_no_video_in_a_list_without_labels_is_reported(tmp_path):
    (tmp_path / "list.csv").write_text("a.mp4\nsomething else\n")
    with pytest.raises(UserError, match=r"line 2: no name of a video in 'something else'"):
        read_unlabelled(tmp_path / "list.csv")
