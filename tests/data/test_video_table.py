"""Rows as columns: the same rows as a Python list has, in memory, in a file, and in another process."""

import pickle

import numpy as np
import pytest

from lookupvit_video.data.video_table import TableBuilder, Video, every_label, first_label, load_table, path_hashes

ROWS = [
    Video("/data/a.mp4", 1, source="l.csv, line 2"),
    Video("/data/b/ü\udcff.mp4", 0, 1.5, None, "l.csv, line 3", "person 1"),
    Video("/elsewhere/c.mp4", 2, 0.0, 2.25, "l.csv, line 7", "", None, 25.0),
]
SEVERAL = [
    Video("/data/a.mp4", -1, source="l.csv, line 2", labels=()),
    Video("/data/b.mp4", 1, source="l.csv, line 3", labels=(1, 4)),
]


def table_of(rows, several=False):
    builder = TableBuilder("l.csv", "/data/", several=several)
    for row in rows:
        builder.add(row, int(row.source.rsplit(" ", 1)[1]))
    return builder.table()


@pytest.mark.parametrize(("rows", "several"), [(ROWS, False), (ROWS[:1], False), (SEVERAL, True)])
def test_rows_come_back_from_memory_files_and_pickles(tmp_path, rows, several):
    table = table_of(rows, several)
    assert list(table) == rows
    table.save(tmp_path / "x.rows", {"size": 3})
    mapped = load_table(tmp_path / "x.rows")
    assert not mapped.columns["ends"].flags.writeable
    for one in (mapped, pickle.loads(pickle.dumps(mapped)), pickle.loads(pickle.dumps(table))):
        assert one == rows
        assert list(one.paths()) == [row.path.encode("utf-8", "surrogateescape") for row in rows]
        assert every_label(one).tolist() == every_label(rows).tolist()
        assert first_label(one).tolist() == [row.label for row in rows]
        assert (path_hashes(one) == path_hashes(rows)).all()
    assert len(pickle.dumps(mapped)) < 400  # the name of a file, not its content


def test_some_rows_of_a_table_are_a_table(tmp_path):
    table = table_of(ROWS)
    table.save(tmp_path / "x.rows", {})
    some = load_table(tmp_path / "x.rows").take(np.array([2, 0]))
    assert some == [ROWS[2], ROWS[0]]
    assert pickle.loads(pickle.dumps(some)).take(np.array([1])) == [ROWS[0]]
    assert list(some.paths(np.array([1]))) == [b"/data/a.mp4"]
    assert every_label(some).tolist() == first_label(some).tolist() == [2, 1]
    assert some[-1] == ROWS[0]
    assert some[:1] == [ROWS[2]]
    with pytest.raises(IndexError):
        some[2]


def test_columns_that_no_row_uses_are_left_out():
    assert set(table_of(ROWS[:1]).columns) == {"names", "ends", "line", "label"}


def test_the_file_is_in_the_safetensors_format(tmp_path):
    safetensors = pytest.importorskip("safetensors.numpy")
    table_of(ROWS).save(tmp_path / "x.rows", {})
    columns = safetensors.load_file(tmp_path / "x.rows")
    assert columns["line"].tolist() == [2, 3, 7]
    assert columns["start"].tolist()[1:] == [1.5, 0.0]
