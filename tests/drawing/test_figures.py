"""What is in the pictures of a run, and whether it can be read."""

import numpy as np
import pytest
import torch

from lookupvit_video.drawing import figures
from lookupvit_video.drawing.figures import class_color, ink_on, plot_clips, plot_confusion, plot_curves
from tests.drawing.pictures import collisions, texts


@pytest.fixture
def saved(monkeypatch):
    """The figures that would be saved."""
    found = []
    monkeypatch.setattr(figures, "save_figure", lambda figure, path: found.append(figure))
    return found


# Colors -------------------------------------------------------------------------------------------------------------


VISIONS = [  # of linear RGB; Machado et al. 2009: none, proto-, deuter- and tritanopia
    np.eye(3),
    [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
]
TO_LMS = [[0.412221, 0.536333, 0.051446], [0.211903, 0.680700, 0.107397], [0.088302, 0.281719, 0.629979]]
TO_LAB = [[0.210454, 0.793618, -0.004072], [1.977998, -2.428592, 0.450594], [0.025904, 0.782772, -0.808676]]


def linear(color):
    return np.array([value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in color])


def luminance(color):
    return float(np.dot(linear(color), (0.2126, 0.7152, 0.0722)))


def to_oklab(color, vision=VISIONS[0]):
    """As an eye with a kind of color vision sees it."""
    return TO_LAB @ np.cbrt(TO_LMS @ (vision @ linear(color)).clip(0, 1))


def distances(places):
    return np.linalg.norm(np.array(places)[:, None] - np.array(places)[None], axis=2)


def test_neighboring_classes_and_the_first_eight_have_distinct_colors():
    colors = np.array([class_color(number) for number in range(400)])
    assert ((colors >= 0) & (colors <= 1)).all()
    assert len(np.unique((255 * colors).round(), axis=0)) > 390
    assert distances([to_oklab(color) for color in colors]).diagonal(1).min() > 0.1
    for vision in VISIONS:
        assert (distances([to_oklab(color, vision) for color in colors[:8]]) + np.eye(8)).min() > 0.07


def test_classes_are_visible_on_white_and_on_the_dark_panel():
    for number in range(400):
        light = luminance(class_color(number))
        assert 1.05 / (light + 0.05) > 1.6
        assert (light + 0.05) / (luminance((22 / 255,) * 3) + 0.05) > 2.2


def test_text_on_a_color_has_the_contrast_that_wcag_demands():
    for number in range(400):
        light = luminance(class_color(number))
        contrast = 1.05 / (light + 0.05) if ink_on(class_color(number)) == "white" else (light + 0.05) / 0.05
        assert contrast > 4.4


# Curves -------------------------------------------------------------------------------------------------------------

TRAIN = [{"step": 10 * n, "epoch": n / 2, "loss": 2.0 / n, "lr": 0.1} for n in range(1, 7)]
VAL = [{"step": 20 * n, "epoch": n, "loss": 1 / n, "top1": top1, "nll": nll}
       for n, top1, nll in ((1, 40.0, 2.0), (2, 60.0, 1.0), (3, 60.0, 1.5))]  # fmt: skip


def lines_of(figure):
    return {line.get_label(): line for axis in figure.axes for line in axis.lines}


def test_curves_have_both_losses_over_epochs_and_the_best_epoch(saved):
    plot_curves(TRAIN, VAL, None, ["top1"], ["nll"])
    lines = lines_of(saved[0])
    assert set(lines) == {"training loss", "validation loss", "learning rate", "top1", "nll", "best: epoch 2, top1 60"}
    assert list(lines["training loss"].get_xdata()) == [0.5, 1, 1.5, 2, 2.5, 3]
    assert list(lines["validation loss"].get_ydata()) == [1, 1 / 2, 1 / 3]
    assert lines["best: epoch 2, top1 60"].get_xdata() == [2, 2]  # the first of equal ones, as for best.pt
    assert {text.get_text() for text in saved[0].legends[0].get_texts()} == set(lines)
    assert collisions(saved[0]) == []
    plot_curves(TRAIN, VAL, None, ["top1"], ["nll"], ("nll", False))
    assert "best: epoch 2, nll 1" in lines_of(saved[1])


def test_curves_of_runs_without_validation_or_without_its_loss(saved):
    plot_curves(TRAIN, [], None)
    assert [axis.get_title() for axis in saved[0].axes] == ["loss", ""]  # the other has the learning rate
    older = [{key: value for key, value in entry.items() if key != "loss"} for entry in VAL]
    plot_curves(TRAIN, older, None, ["top1"])
    assert list(lines_of(saved[1])["validation loss"].get_xdata()) == []
    plot_curves(TRAIN, [{"epoch": 1, "top5": 3.0}], None, ["top5"])  # TRAIN.BEST_METRIC was not measured
    assert not any(label.startswith("best") for label in lines_of(saved[2]))


# Clips --------------------------------------------------------------------------------------------------------------


def draw_clips(labels, classes):
    targets = torch.nn.functional.one_hot(torch.tensor(labels), len(classes)).float()
    clips = torch.arange(len(labels)).float().view(-1, 1, 1, 1, 1).expand(-1, 3, 6, 4, 4) / 100
    plot_clips(clips, targets, classes, (0.0,) * 3, (1.0,) * 3, None)


def test_training_clips_are_of_as_many_classes_as_possible(saved):
    draw_clips([2] * 9 + [0, 1, 0], ["a", "b", "c"])
    pictures = [axis for axis in saved[0].axes if axis.images]
    assert [axis.get_title(loc="left") for axis in pictures] == ["a", "a", "b"] + ["c"] * 5
    shown = [round(100 * float(axis.images[0].get_array()[0, 0, 0])) for axis in pictures]
    assert shown == [9, 11, 10, 0, 1, 2, 3, 4]
    assert pictures[0].images[0].get_array().shape == (4, 16, 3)  # four frames of six
    assert collisions(saved[0]) == []
    draw_clips([0], ["a"])
    assert len(saved[1].axes) == 1


def test_mixed_and_unread_clips_are_named(saved):
    clips = torch.zeros(3, 3, 2, 4, 4)
    targets = torch.tensor([[0.7, 0.3], [0.0, 0.0], [0.0, 1.0]])
    plot_clips(clips, targets, ["$a", "b" * 40], (0.0,) * 3, (1.0,) * 3, None)
    titles = [axis.get_title(loc="left") for axis in saved[0].axes if axis.images]
    assert sorted(titles) == ["70 % $a + 30 % " + "b" * 27 + "…", "b" * 27 + "…", "could not be read"]


# Confusion matrix ---------------------------------------------------------------------------------------------------


def confusion(num_classes, seed=0):
    draw = np.random.default_rng(seed)
    counts = draw.poisson(0.3, (num_classes, num_classes))
    counts[np.arange(num_classes), np.arange(num_classes)] += 20
    return counts


@pytest.mark.parametrize("num_classes", [2, 8, 30])
def test_a_small_confusion_matrix_has_counts_totals_and_accuracy(saved, num_classes):
    counts, names = confusion(num_classes), [f"a class, number {n}" for n in range(num_classes)]
    counts[1] = 0  # no video
    plot_confusion(counts, names, None)
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
def test_a_large_confusion_matrix_lists_the_most_frequent_confusions(saved, num_classes):
    counts = confusion(num_classes)
    counts[3, 7], counts[5, 4] = 12, 11
    plot_confusion(counts, [f"class {n}" for n in range(num_classes)], None)
    listed = saved[0].subfigs[1].axes[0].texts[0].get_text().split("\n")
    assert listed[0] == f"most frequent of {counts.sum() - counts.trace()} confusions: true → predicted"
    assert listed[1:3] == [
        f"12 of {counts[3].sum()}:  3 class 3 → 7 class 7",
        f"11 of {counts[5].sum()}:  5 class 5 → 4 class 4",
    ]
    assert len(listed) == 2 * figures.LISTED + 3
    accuracy = counts.diagonal() / counts.sum(1)
    worst = int(accuracy.argmin())
    assert listed[figures.LISTED + 1 : figures.LISTED + 4] == [
        "", "least accurate classes", f"{100 * accuracy[worst]:.0f} % of {counts[worst].sum()}:  {worst} class {worst}",
    ]  # fmt: skip
    assert not any(text.isdecimal() and float(text) > 400 for text, _ in texts(saved[0]))
    named = [f"class {n}" for n in range(num_classes)]
    assert [pair for pair in collisions(saved[0]) if not set(pair) <= set(named)] == []


def test_a_perfect_large_matrix_lists_nothing(saved):
    counts = np.diag([0, *range(1, 40)])
    plot_confusion(counts, [str(n) for n in range(40)], None)
    listed = saved[0].subfigs[1].axes[0].texts[0].get_text().split("\n")
    assert listed[:2] == ["most frequent of 0 confusions: true → predicted", ""]
    assert listed[3] == "100 % of 1:  1 1"  # class 0 has no video
