"""What is in the pictures of a run, and whether it can be read."""

import numpy as np
import pytest
import torch

from lookupvit_video.drawing import figures
from lookupvit_video.drawing.figures import class_color, ink_on, plot_clips, plot_curves
from tests.drawing.pictures import collisions


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
    assert set(lines_of(saved[1])) == {"training loss", "learning rate", "top1", "best: epoch 2, top1 60"}
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
