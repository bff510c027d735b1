"""Lists from spreadsheets and other programs: read where they mean one thing, else one line that says what to write."""

import codecs
import re
from pathlib import Path

import pytest

from lookupvit_video.config import load_config
from lookupvit_video.data.manifest import load_split, read_class_list, read_manifest
from lookupvit_video.data.tables import COLUMNS
from lookupvit_video.inference.batch import find_videos
from tests.small import ROOT

CLASSES = ["abseiling", "jump", "long jump", "zumba, slow"]
UTF16 = codecs.BOM_UTF16_LE, "utf-16-le"


def written(folder, content, name="train.csv"):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def rows(folder, content):
    """(path relative to the list's folder, label, start, end) of each row."""
    videos = read_manifest(written(folder, content), CLASSES)
    return [(str(Path(v.path).relative_to(folder)), v.label, v.start, v.end) for v in videos]


def encoded(text, mark, encoding):
    return mark + text.encode(encoding)


TWO = [("a b.mp4", 1, None, None), ("é.mp4", 2, None, None)]


@pytest.mark.parametrize("breaks", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize(
    ("mark", "encoding"),
    [(b"", "utf-8"), (codecs.BOM_UTF8, "utf-8"), UTF16, (codecs.BOM_UTF16_BE, "utf-16-be"),
     (codecs.BOM_UTF32_LE, "utf-32-le"), (codecs.BOM_UTF32_BE, "utf-32-be")],
)  # fmt: skip
@pytest.mark.parametrize("form", ["comma", "semicolon", "tab", "lines"])
def test_every_encoding_delimiter_and_line_break(tmp_path, form, mark, encoding, breaks):
    between = {"comma": ",", "semicolon": ";", "tab": "\t", "lines": " "}[form]
    lines = ["path,label", "a b.mp4,jump", "é.mp4,long jump", ""][form == "lines" :]
    text = breaks.join(line.replace(",", between) for line in lines)
    assert rows(tmp_path, encoded(text, mark, encoding)) == TWO
    names = breaks.join([*CLASSES, ""])
    assert read_class_list(written(tmp_path, encoded(names, mark, encoding), "classes.txt")) == CLASSES
    paths = breaks.join(["a b.mp4", "é.mp4", ""])
    found, _ = find_videos([], [str(written(tmp_path, encoded(paths, mark, encoding), "list.txt"))])
    assert [Path(path).name for path in found] == ["a b.mp4", "é.mp4"]


@pytest.mark.parametrize(
    "header",
    ["Path,Label", "PATH , LABEL", "video_path,label", "filename,class", "File Name,Class Name", "file,category",
     "Video,Target", "file-path,labels", '"Filepath","Class"', "path,label,,", "\npath,label", "sep=,\npath,label"],
)  # fmt: skip
def test_other_names_of_the_columns(tmp_path, header):
    extra = "," * header.count(",,") * 2
    assert rows(tmp_path, f"{header}\na b.mp4,jump{extra}\né.mp4,2{extra}\n,{extra}\n") == TWO
    paths = [Path(path).name for path in find_videos([], [str(tmp_path / "train.csv")])[0]]
    assert paths == ["a b.mp4", "é.mp4"]
    (tmp_path / "a b.mp4").touch()
    written(tmp_path, "path,label\na b.mp4,jump\nc.mp4,jump\n", "list.csv")
    written(tmp_path, f"{header}\nc.mp4,jump{extra}\n", "skip.csv")
    cfg = load_config(
        None,
        ["DATA.PATH_TO_DATA_DIR", str(tmp_path), "DATA.TRAIN_LIST", "list.csv", "DATA.SKIP_LIST", "skip.csv"],
    )
    assert [Path(video.path).name for video in load_split(cfg, "train", CLASSES)] == ["a b.mp4"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("path;label;start;end\na, b.mp4;jump;1,5;2.5\n", ("a, b.mp4", 1, 1.5, 2.5)),
        ("filename,class,Start Time,End Time\na.mp4,jump,1,2\n", ("a.mp4", 1, 1.0, 2.0)),
        ("video,path,label\n7,a.mp4,jump\n", ("a.mp4", 1, None, None)),
        ('path,label\n"a\nb.mp4",jump\n', ("a\nb.mp4", 1, None, None)),
        ('path,label\n"a ""b"".mp4" , "long jump" \n', ('a "b".mp4', 2, None, None)),
        ('path;label\n 12" vinyl.mp4 ; jump\n', ('12" vinyl.mp4', 1, None, None)),
        ('note,path,label\n"two\r\nlines",a.mp4,jump\n', ("a.mp4", 1, None, None)),
        ("path\tlabel\na.mp4\tzumba, slow\n", ("a.mp4", 3, None, None)),
        ("path label\na.mp4 1\n", ("a.mp4", 1, None, None)),
        ("a.mp4 long jump\n", ("a.mp4", 2, None, None)),
        ("a b.mp4 long jump\n", ("a b.mp4", 2, None, None)),
        ("a.mp4 zumba, slow\n", ("a.mp4", 3, None, None)),
        ("a b.mp4, zumba, slow\n", ("a b.mp4", 3, None, None)),
        ("a.mp4;long jump\n", ("a.mp4", 2, None, None)),
        ("a;b.mp4\tlong jump\n", ("a;b.mp4", 2, None, None)),
        ("a,b.mp4,1\n", ("a,b.mp4", 1, None, None)),
        ('"a b.mp4" 1\n', ("a b.mp4", 1, None, None)),
        ('"a, b.mp4","long jump"\n', ("a, b.mp4", 2, None, None)),
        ('a.mp4,"zumba, slow"\n', ("a.mp4", 3, None, None)),
        ('"a\nb.mp4" jump\n', ("a\nb.mp4", 1, None, None)),
        ('"a ""b"".mp4";jump\n', ('a "b".mp4', 1, None, None)),
        ("clip 5 3\n", ("clip 5", 3, None, None)),
        ("video 3\n", ("video", 3, None, None)),
        ("file;jump\n", ("file", 1, None, None)),
    ],
)
def test_one_row(tmp_path, text, expected):
    assert rows(tmp_path, text) == [expected]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("clip,label\na.mp4,jump\n", r"line 1: the header 'clip,label' names no column of paths; write path,label"),
        ("name;class\na.mp4;jump\n", r"line 1: the header 'name;class' names no column of paths"),
        ("filename,file,label\na.mp4,b.mp4,1\n", r"line 1: the columns 'filename' and 'file' may both be the path"),
        ("path,class,category\na.mp4,1,2\n", r"line 1: the columns 'class' and 'category' may both be the label"),
        ("path;label\na;b.mp4;1\n", r"line 2: expected 2 fields \(path;label\), quote a path that holds a semicolon"),
        ('path,label\na.mp4,1\n"b.mp4,1\nc.mp4,1\n', r"line 3: .*is a quote left open\?"),
        ('path,label\n"b.mp4,1\nc.mp4,1\n"d.mp4",1\n', r"line 2: .*is a quote left open\?"),
        ('"two\nlines",path,label\n', r"line 1: "),
        ('path,label,note\na.mp4,1,"x\ny"\nb.mp4,9,\n', r"line 4: label 9 is out of range"),
        ('a.mp4 1\n"b.mp4 1\nc.mp4 1\n', r"line 2: a quote is left open"),
        ("a long jump\n", r"line 1: the label may be 'long jump' or 'jump'; write a table with the header path,label"),
        ("a.mp4,jump,1.5,2.5\n", r"line 1: label '2\.5' is neither a number nor a name of the class list"),
        ("p\0a\0t\0h\0", r"the list of videos cannot be read \(it holds zero bytes: .*save it as UTF-8"),
    ],
)
def test_what_cannot_be_read_is_one_line(tmp_path, text, message):
    path = written(tmp_path, text)
    with pytest.raises(ValueError, match=f"^{re.escape(str(path))}[,:] {message}") as caught:
        read_manifest(path, CLASSES)
    assert "\n" not in str(caught.value)


def test_names_with_blanks_around_them(tmp_path):
    (tmp_path / " a.mp4 ").touch()
    assert rows(tmp_path, "path,label\n b.mp4 ,jump\n") == [("b.mp4", 1, None, None)]
    assert find_videos([], [str(written(tmp_path, " a.mp4 \n b.mp4 \n", "l.txt"))])[0] == [
        str(tmp_path / " a.mp4 "), str(tmp_path / "b.mp4"),
    ]  # fmt: skip


def test_a_class_list_of_a_spreadsheet(tmp_path):
    text = 'abseiling\njump\nlong jump\n"zumba, slow"\n'
    assert read_class_list(written(tmp_path, text, "classes.txt")) == CLASSES
    text = '"said ""a, b"""\n"quoted"\n'
    assert read_class_list(written(tmp_path, text, "classes.txt")) == ['said "a, b"', '"quoted"']


def test_lists_to_predict_from(tmp_path):
    def names(content):
        return find_videos([], [str(written(tmp_path, content, "list"))])[0]

    def path(name):
        return str(tmp_path / name)

    assert names('"a b.mp4"\nc.mp4\n') == [path("a b.mp4"), path("c.mp4")]
    assert names(b"a\nb.mp4\0c.mp4\0") == [path("a\nb.mp4"), path("c.mp4")]  # find -print0
    assert names("Filename;Remark\na.mp4;x\n") == [path("a.mp4")]
    assert names("video, take 2.mp4\na.mp4\n") == [path("video, take 2.mp4"), path("a.mp4")]  # no header
    assert names("file\na.mp4\n") == [path("a.mp4")]
    (tmp_path / "file").touch()
    assert names("file\na.mp4\n") == [path("file"), path("a.mp4")]
    with pytest.raises(ValueError, match=r"list, line 3: expected 2 fields \(path,x\)"):
        names('path,x\na.mp4,1\nb.mp4,"1",2\n')
    with pytest.raises(ValueError, match=r"list: this list cannot be read \(it holds zero bytes"):
        names("a.mp4\n".encode("utf-16-le"))


def test_every_name_of_a_column_is_documented():
    text = (ROOT / "datasets" / "own_videos" / "README.md").read_text(encoding="utf-8")
    for column, (own, *others) in COLUMNS.items():
        assert own == column
        assert f"| `{own}` | {', '.join(f'`{name}`' for name in others) or 'none'} |" in text
