"""The confusion matrix, for two classes and for hundreds."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.colors import Normalize, PowerNorm

from lookupvit_video.drawing.figures import draw_all_scripts, new_figure, plain, save_figure
from lookupvit_video.drawing.fonts import class_label
from lookupvit_video.files import atomic_write

FULL_MATRIX = 30  # classes: of more, a picture has no room for numbers
PAGE = 25  # classes a page
LISTED = 22  # confusions, and classes, next to a larger matrix


def plot_confusion(counts_KK: np.ndarray, classes: Sequence[str], path: Path) -> None:
    """Draw the confusion matrix: rows are the true classes, the color is the share of a row's videos.

    Up to 30 classes it has counts, and accuracy and number of videos of each row. Of more, classes that are confused
    are next to each other, with lists of the most frequent confusions and the least accurate classes; a PDF of the same
    name has the counts, some classes a page.
    """
    totals_K, is_full = counts_KK.sum(1), len(classes) <= FULL_MATRIX
    names, order = [plain(class_label(name, number)) for number, name in enumerate(classes)], np.arange(len(classes))
    if not is_full:
        order = clustered(counts_KK)
        _write_pages(counts_KK, order, names, path.with_suffix(".pdf"))
    share_KK = 100 * counts_KK / np.maximum(totals_K, 1)[:, None]
    size = 3.0 + 0.42 * len(classes) if is_full else 9.0
    figure = new_figure(size + (2.2 if is_full else 6.6), size)
    panels: Any = [figure] if is_full else figure.subfigures(1, 2, width_ratios=[size + 1, 5.6])
    axis = panels[0].subplots()
    norm = Normalize(0, 100) if is_full else PowerNorm(0.5, 0, 100)  # the root keeps a few percent visible
    image = axis.imshow(share_KK[np.ix_(order, order)], cmap="Blues", norm=norm, interpolation="none")
    panels[0].colorbar(image, ax=axis, label="% of the true class", shrink=0.8)
    videos, right = int(totals_K.sum()), int(counts_KK.trace())
    places = "" if is_full else ", classes that are confused next to each other"
    axis.set(xlabel=f"predicted{places}", ylabel="true")
    axis.set_title(f"confusion matrix: {right} of {videos} right, {100 * right / max(videos, 1):.1f} %", fontsize=11)
    if len(classes) <= 2 * FULL_MATRIX:
        _name_axes(axis, [names[label] for label in order], 9 if is_full else 6)
    else:  # no room for names
        axis.set(xticks=[], yticks=[])
    if is_full:
        _write_counts(axis, counts_KK, share_KK, totals_K)
    else:
        _list_confusions(panels[1].subplots(), counts_KK, totals_K, names)
    save_figure(figure, path)


def clustered(counts_KK: np.ndarray) -> np.ndarray:
    """Return an order of the classes (K,) in which those that are confused with each other are neighbors.

    Hierarchical clustering with average linkage and optimal leaf ordering, by the share of videos that go from one
    class to the other.
    """
    from scipy.cluster.hierarchy import leaves_list, linkage, optimal_leaf_ordering
    from scipy.spatial.distance import squareform

    share_KK = counts_KK / np.maximum(counts_KK.sum(1), 1)[:, None]
    distance_KK = 1 - np.clip(share_KK + share_KK.T, 0, 1)
    np.fill_diagonal(distance_KK, 0)
    distances = squareform(distance_KK, checks=False)
    order: np.ndarray = leaves_list(optimal_leaf_ordering(linkage(distances, "average"), distances))
    return order


def _write_pages(counts_KK: np.ndarray, order: np.ndarray, names: Sequence[str], path: Path) -> None:
    """Write a PDF: the counts among the classes of each page, and of each class the rest that goes elsewhere."""
    from matplotlib.backends.backend_pdf import PdfPages

    with atomic_write(path) as temporary, PdfPages(temporary, metadata={"CreationDate": None}) as pages:
        parts = np.array_split(order, math.ceil(len(order) / PAGE))
        for number, part in enumerate(parts, start=1):
            figure = new_figure(13, 9)
            _draw_page(figure.subplots(), counts_KK, part, names)
            figure.suptitle(f"confusion matrix, page {number} of {len(parts)}", fontsize=11)
            draw_all_scripts(figure)
            pages.savefig(figure)


def _draw_page(axis: Any, counts_KK: np.ndarray, part: np.ndarray, names: Sequence[str]) -> None:
    totals_K, inside = counts_KK[part].sum(1), counts_KK[np.ix_(part, part)]
    elsewhere_KK = counts_KK[part].copy()
    elsewhere_KK[:, part] = 0
    counts = np.column_stack([inside, elsewhere_KK.sum(1)])
    share = 100 * counts / np.maximum(totals_K, 1)[:, None]
    axis.imshow(share, cmap="Blues", norm=Normalize(0, 100), interpolation="none", aspect="auto")
    rows = [f"{names[label]} ({label})" for label in part]
    _name_axes(axis, rows, 7)
    axis.set_xticks(range(len(part) + 1), [*rows, "all others"])
    axis.set(xlabel="predicted", ylabel="true")
    most = [f"; others: {names[int(row.argmax())]} ({row.max()})" if row.any() else "" for row in elsewhere_KK]
    _write_counts(axis, counts, share, totals_K, most)


def _name_axes(axis: Any, names: Sequence[str], size: int) -> None:
    axis.set_xticks(range(len(names)), names, rotation=45, ha="right", rotation_mode="anchor", fontsize=size)
    axis.set_yticks(range(len(names)), names, fontsize=size)


def _write_counts(
    axis: Any, counts_KK: np.ndarray, share_KK: np.ndarray, totals_K: np.ndarray, notes: Sequence[str] = ()
) -> None:
    """Write the count into each cell, and accuracy and number of videos to the right of each row, with a note."""
    for row, column in np.argwhere(counts_KK > 0):
        ink = "white" if share_KK[row, column] > 50 else "black"
        axis.text(column, row, f"{counts_KK[row, column]}", ha="center", va="center", fontsize=8, color=ink)
    sums = axis.secondary_yaxis("right")
    cells = [f"{share:.0f} % of {n}" if n else "0" for n, share in zip(totals_K, share_KK.diagonal(), strict=True)]
    cells = [cell + note for cell, note in zip(cells, notes or [""] * len(cells), strict=True)]
    sums.set_yticks(range(len(cells)), cells, fontsize=8)
    sums.set_ylabel("accuracy", fontsize=8)
    sums.tick_params(length=0)


def _list_confusions(axis: Any, counts_KK: np.ndarray, totals_K: np.ndarray, names: Sequence[str]) -> None:
    """List the most frequent confusions and the least accurate classes, with their numbers in the class list."""
    wrong_KK, right_K = counts_KK * (1 - np.eye(len(names), dtype=np.int64)), counts_KK.diagonal()
    lines = [f"most frequent of {wrong_KK.sum()} confusions: true → predicted"]
    for place in np.argsort(-wrong_KK, axis=None, kind="stable")[:LISTED]:
        row, column = divmod(int(place), len(names))
        if wrong_KK[row, column]:
            share = f"{wrong_KK[row, column]} of {totals_K[row]}"
            lines.append(f"{share}:  {row} {names[row]} → {column} {names[column]}")
    lines += ["", "least accurate classes"]
    known = np.flatnonzero(totals_K)
    for row in known[np.argsort(right_K[known] / totals_K[known], kind="stable")][:LISTED]:
        lines.append(f"{100 * right_K[row] / totals_K[row]:.0f} % of {totals_K[row]}:  {row} {names[row]}")
    axis.set_axis_off()
    axis.text(0, 1, "\n".join(lines), va="top", fontsize=8, linespacing=1.6, transform=axis.transAxes)
