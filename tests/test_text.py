import pytest

from lookupvit_video.errors import UserError
from lookupvit_video.text import aligned_table, grid_name, markdown_table, parse_grid


def test_grids_are_read_as_people_write_them():
    assert parse_grid("4x7x7") == (4, 7, 7)
    assert parse_grid("7x7") == (7, 7)
    assert parse_grid("99999x1") == (99999, 1)
    for text in ("", "4", "4x", "axb", "4x7x7x7", "-1x2x2", "1 x2x2", "²x2x2", "1" * 30 + "x1", "100000x1"):
        with pytest.raises(UserError, match="write t x h x w as 4x7x7"):
            parse_grid(text)


def test_grids_are_written_as_they_are_read():
    assert grid_name((4, 7, 7)) == grid_name([4, 7, 7]) == "4x7x7"
    assert grid_name((10, 10)) == "10x10"
    assert parse_grid(grid_name((4, 7, 7))) == (4, 7, 7)


def test_a_markdown_table_has_a_rule_below_its_titles():
    assert markdown_table(("a", "b"), [("x", 1), ("y", 2.5)]) == "| a | b |\n|---|---|\n| x | 1 |\n| y | 2.5 |\n"
    assert markdown_table(("a",), []) == "| a |\n|---|\n"


def test_columns_are_aligned_by_their_widest_cell():
    rows = [["name", "n"], ["a", "100"], ["bcdef", ""]]
    assert aligned_table(rows) == "name     n\na      100\nbcdef\n"
