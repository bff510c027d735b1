"""The fast way through a list gives what the slow one gives, or leaves the list to it."""

import random

import pytest

from lookupvit_video.data import manifest, plain_rows
from lookupvit_video.data.manifest import read_manifest
from lookupvit_video.errors import UserError

CLASSES = ["run", "jump", "long jump", "座る"]
TABLES = [
    "path,label\na.mp4,0\nb c/d.mp4,long jump\n\n../e.mp4,1\n",
    "\ufeffpath,label\r\na.mp4,0\r\n./b//c.mp4,座る\r\n",
    "label;start;end;group;path\nrun;;2.5;p1;a.mp4\njump;1;;;/abs/b.mp4\nrun;0;3;p1;視.mp4",
    "path\tlabel\tfps\na\t1\t12.5\nb\t0\t\n",
    "a.mp4 0\nb/c.mp4,1\n\nd\t3\n",
    "path label\na.mp4 0\n",
    "path, label\na.mp4, run \n",
]
OTHERS = [
    'path,label\n"a,b.mp4",0\n', "path,label\na.mp4 ,0\n", "path,label\na.mp4,0,\n", "path,label\ra.mp4,0\r",
    "a b.mp4 0\n", "path,label\n,0\n", "path,label\na.mp4\n", "path,label\na.mp4,9\n", "path,label,end\na.mp4,0,-1\n",
    "path,label,start,end\na.mp4,0,3,3\n", "path,label,fps\na.mp4,0,0\n", "a.mp4 walk\n",
    "path,label\na.mp4,0\nb,c,1\n,\n", "",
]  # fmt: skip


def slow(path, monkeypatch, several):
    def refuse(*_):
        raise plain_rows.NotPlain

    with monkeypatch.context() as patch:
        patch.setattr(manifest, "add_plain_rows", refuse)
        return outcome(path, several)


def outcome(path, several):
    try:
        return read_manifest(path, CLASSES, multi_label=several)
    except UserError as error:
        return str(error)


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("text", TABLES + OTHERS)
@pytest.mark.parametrize("piece", [7, 1 << 20])
def test_both_ways_agree(tmp_path, monkeypatch, text, piece, several):
    path = tmp_path / "list.csv"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    monkeypatch.setattr(plain_rows, "_PIECE", piece)
    assert outcome(path, several) == slow(path, monkeypatch, several)


@pytest.mark.parametrize("text", TABLES)
def test_plain_lists_are_read_the_fast_way(tmp_path, monkeypatch, text):
    path = tmp_path / "list.csv"
    path.write_text(text, encoding="utf-8", newline="")
    monkeypatch.setattr(manifest._Reader, "_any", lambda *_: pytest.fail("read row by row"))
    assert read_manifest(path, CLASSES)


def test_random_lists(tmp_path, monkeypatch):
    draw = random.Random(0)
    parts = ["a", "b.mp4", "/", "//", "./", "..", " ", "é", "\udcff", "x y", "0", ",", "\u3000", "-", '"']
    path = tmp_path / "list.csv"
    monkeypatch.setattr(plain_rows, "_PIECE", 64)
    for _ in range(300):
        rows = [
            "".join(draw.choices(parts, k=draw.randint(1, 4))) + draw.choice([",", ",", ", "]) + draw.choice("0123")
            for _ in range(draw.randint(1, 4))
        ]
        head = draw.choice(["path,label", "path,label", "a.mp4,1"])
        path.write_bytes("\n".join([head, *rows]).encode("utf-8", "surrogateescape"))
        assert outcome(path, False) == slow(path, monkeypatch, False), path.read_bytes()


def test_several_labels_with_repeats(tmp_path, monkeypatch):
    path = tmp_path / "list.csv"
    path.write_text("path,label,start\na.mp4,run|jump,1\nb.mp4,,\na.mp4,座る,1\na.mp4,run,2\n", encoding="utf-8")
    found = outcome(path, True)
    assert found == slow(path, monkeypatch, True)
    assert [(video.labels, video.source[-6:]) for video in found] == [
        ((0, 1, 3), "line 2"), ((), "line 3"), ((0,), "line 5")
    ]  # fmt: skip
