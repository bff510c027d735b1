"""What is in a confusion matrix, and whether it can be read."""

from pathlib import Path

import numpy as np
import pytest

from lookupvit_video.drawing import confusion as confusion_module
from lookupvit_video.drawing.confusion import clustered, plot_confusion
from tests.drawing.pictures import collisions, texts


@pytest.fixture
def saved(monkeypatch):
    """The figures that would be saved."""
    found = []
    monkeypatch.setattr(confusion_module, "save_figure", lambda figure, path: found.append(figure))
    return found


@pytest.fixture
def pages(monkeypatch):
    """The pages that would be saved, as figures."""
    found = []
    plain = confusion_module.draw_all_scripts
    monkeypatch.setattr(confusion_module, "draw_all_scripts", lambda figure: found.append(figure) or plain(figure))
    return found


def confusion(num_classes, seed=0):
    draw = np.random.default_rng(seed)
    counts = draw.poisson(0.3, (num_classes, num_classes))
    counts[np.arange(num_classes), np.arange(num_classes)] += 20
    return counts


@pytest.mark.parametrize("num_classes", [2, 8, 30])
def test_a_small_confusion_matrix_has_counts_totals_and_accuracy(saved, num_classes):
    counts, names = confusion(num_classes), [f"a class, number {n}" for n in range(num_classes)]
    counts[1] = 0  # no video
    plot_confusion(counts, names, Path("none"))
    axis = saved[0].axes[0]
    cells = {text.get_position(): text.get_text() for text in axis.texts}
    assert cells == {(c, r): str(counts[r, c]) for r, c in np.argwhere(counts)}
    sums = [label.get_text() for label in axis.child_axes[0].get_yticklabels()]
    assert sums[1] == "0"
    assert sums[0] == f"{100 * counts[0, 0] / counts[0].sum():.0f} % of {counts[0].sum()}"
    assert f"{counts.trace()} of {counts.sum()} right" in axis.get_title()
    # Names below are at 45 degrees: their boxes overlap, the letters do not.
    assert [pair for pair in collisions(saved[0]) if not set(pair) <= set(names)] == []


@pytest.mark.parametrize("num_classes", [31, 400])
def test_a_large_confusion_matrix_lists_the_most_frequent_confusions(saved, tmp_path, num_classes):
    counts = confusion(num_classes)
    counts[3, 7], counts[5, 4] = 12, 11
    plot_confusion(counts, [f"class {n}" for n in range(num_classes)], tmp_path / "x.png")
    listed = saved[0].subfigs[1].axes[0].texts[0].get_text().split("\n")
    assert listed[0] == f"most frequent of {counts.sum() - counts.trace()} confusions: true → predicted"
    assert listed[1:3] == [
        f"12 of {counts[3].sum()}:  3 class 3 → 7 class 7",
        f"11 of {counts[5].sum()}:  5 class 5 → 4 class 4",
    ]
    assert len(listed) == 2 * confusion_module.LISTED + 3
    accuracy = counts.diagonal() / counts.sum(1)
    worst = int(accuracy.argmin())
    assert listed[confusion_module.LISTED + 1 : confusion_module.LISTED + 4] == [
        "", "least accurate classes", f"{100 * accuracy[worst]:.0f} % of {counts[worst].sum()}:  {worst} class {worst}",
    ]  # fmt: skip
    assert not any(text.isdecimal() and float(text) > 400 for text, _ in texts(saved[0]))
    named = [f"class {n}" for n in range(num_classes)]
    assert [pair for pair in collisions(saved[0]) if not set(pair) <= set(named)] == []


def test_a_perfect_large_matrix_lists_nothing(saved, tmp_path):
    counts = np.diag([0, *range(1, 40)])
    plot_confusion(counts, [str(n) for n in range(40)], tmp_path / "x.png")
    listed = saved[0].subfigs[1].axes[0].texts[0].get_text().split("\n")
    assert listed[:2] == ["most frequent of 0 confusions: true → predicted", ""]
    assert listed[3] == "100 % of 1:  1 1"  # class 0 has no video


def grouped(num_classes=60, size=4, seed=0):
    """Return counts of classes that are confused within groups, the groups, and class numbers in any order."""
    draw = np.random.default_rng(seed)
    groups = draw.permutation(np.arange(num_classes) // size)
    counts = 40 * np.eye(num_classes, dtype=int)
    counts += (groups[:, None] == groups) * draw.integers(2, 5, (num_classes, num_classes))
    return counts, groups


def test_classes_that_are_confused_are_neighbors():
    counts, groups = grouped()
    order = clustered(counts)
    assert sorted(order) == list(range(60))
    in_order = groups[order]
    assert (np.diff(in_order) != 0).sum() == 14  # fifteen groups, each in one piece
    assert clustered(np.zeros((40, 40), dtype=int)).shape == (40,)


def test_pages_hold_all_counts(saved, pages, tmp_path):
    counts, _ = grouped()
    counts[5, 6] += 9
    names = [f"class {number}" for number in range(60)]
    plot_confusion(counts, names, tmp_path / "x.png")
    assert (tmp_path / "x.pdf").read_bytes().startswith(b"%PDF")
    assert [figure.get_suptitle() for figure in pages] == [f"confusion matrix, page {n} of 3" for n in (1, 2, 3)]
    total = 0
    for figure in pages:
        axis = figure.axes[0]
        rows = [int(label.get_text().split("(")[1][:-1]) for label in axis.get_yticklabels()]
        assert [label.get_text() for label in axis.get_xticklabels()][-1] == "all others"
        for text in axis.texts:
            column, row = text.get_position()
            total += int(text.get_text())
            if column < len(rows):
                assert int(text.get_text()) == counts[rows[row], rows[column]]
            else:
                assert int(text.get_text()) == np.delete(counts[rows[row]], rows).sum()
        sums = [label.get_text() for label in axis.child_axes[0].get_yticklabels()]
        for row, line in zip(rows, sums, strict=True):
            assert line.startswith(f"{100 * counts[row, row] / counts[row].sum():.0f} % of {counts[row].sum()}")
            others = np.delete(counts[row], rows).max()
            assert line.endswith(f" ({others})") == bool(others)
    assert total == counts.sum()
