"""Tables of results."""

from lookupvit_video.benchmarks.tables import aligned_table, markdown_table


def test_a_markdown_table_has_a_rule_below_its_titles():
    assert markdown_table(("a", "b"), [("x", 1), ("y", 2.5)]) == "| a | b |\n|---|---|\n| x | 1 |\n| y | 2.5 |\n"
    assert markdown_table(("a",), []) == "| a |\n|---|\n"


def test_columns_are_aligned_by_their_widest_cell():
    rows = [["name", "n"], ["a", "100"], ["bcdef", ""]]
    assert aligned_table(rows) == "name     n\na      100\nbcdef\n"
