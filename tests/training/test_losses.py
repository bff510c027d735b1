"""Losses and class weights against their definitions."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from lookupvit_video.errors import UserError
from lookupvit_video.training.losses import ClassificationLoss, build_loss, class_weights, videos_per_class

CLASSES = ["run", "jump", "long jump"]
COUNTS = np.array([80.0, 15.0, 5.0])


def problem():
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(6, 3, generator=generator)
    return logits, torch.rand(6, 3, generator=generator).softmax(-1)  # soft targets, as mixup makes them


def made(kind, weights=None, smoothing=0.0, **others):
    options = {"focal_gamma": 2.0, "adjustment": 1.0, "device": torch.device("cpu")} | others
    return build_loss(kind, COUNTS, weights, smoothing=smoothing, **options)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_plain_cross_entropy_is_torchs_to_the_bit(smoothing):
    logits, targets = problem()
    wanted = F.cross_entropy(logits, targets, reduction="none", label_smoothing=smoothing)
    assert torch.equal(made("cross_entropy", smoothing=smoothing)(logits, targets), wanted)
    assert torch.equal(ClassificationLoss(smoothing=smoothing)(logits, targets), wanted)


def test_focal_loss_is_its_definition():
    logits, targets = problem()
    shares = logits.softmax(-1)
    wanted = -(targets * (1 - shares) ** 3 * shares.log()).sum(-1)
    torch.testing.assert_close(made("focal", focal_gamma=3.0)(logits, targets), wanted)
    plain = made("cross_entropy", smoothing=0.2)(logits, targets)
    torch.testing.assert_close(made("focal", focal_gamma=0.0, smoothing=0.2)(logits, targets), plain)


def test_logit_adjustment_adds_the_log_of_each_class_share():
    logits, targets = problem()
    moved = logits + 0.5 * torch.tensor([0.8, 0.15, 0.05]).log()
    wanted = F.cross_entropy(moved, targets, reduction="none")
    torch.testing.assert_close(made("logit_adjusted", adjustment=0.5)(logits, targets), wanted)
    empty = build_loss("logit_adjusted", np.array([5.0, 0.0, 5.0]), None, smoothing=0.1, focal_gamma=2.0,
                       adjustment=1.0, device=torch.device("cpu"))  # fmt: skip
    assert empty(logits, targets).isfinite().all()


@pytest.mark.parametrize("kind", ["cross_entropy", "focal"])
def test_weights_are_factors_of_the_classes_terms(kind):
    logits, targets = problem()
    weights = np.array([0.5, 2.0, 3.0])
    parts = [made(kind)(logits, targets * torch.eye(3)[label]) * weights[label] for label in range(3)]
    torch.testing.assert_close(made(kind, weights)(logits, targets), sum(parts))


def test_what_is_not_named_is_plain():
    logits, targets = problem()
    shares = logits.softmax(-1)
    wanted = -(targets * (1 - shares) ** 2 * shares.log()).sum(-1)
    torch.testing.assert_close(ClassificationLoss("focal")(logits, targets), wanted)
    assert ClassificationLoss().kind == "cross_entropy"
    assert not made("cross_entropy").multi_label


@pytest.mark.parametrize("weights", [None, np.array([0.5, 2.0, 3.0])])
@pytest.mark.parametrize("gamma", [None, 0.0, 3.0])
def test_several_labels_are_a_sigmoid_a_class_and_their_mean(weights, gamma):
    logits, targets = problem()
    kind = "cross_entropy" if gamma is None else "focal"
    loss = made(kind, weights, 0.2, multi_label=True, focal_gamma=2.0 if gamma is None else gamma)
    factors, power = np.ones(3) if weights is None else weights, gamma or 0.0
    wanted = np.zeros(6)
    for clip, label in itertools.product(range(6), range(3)):
        there = 1 / (1 + math.exp(-logits[clip, label]))
        target = 0.8 * targets[clip, label].item() + 0.1  # smoothed towards a half
        wanted[clip] -= target * (1 - there) ** power * math.log(there) * factors[label] / 3
        wanted[clip] -= (1 - target) * there**power * math.log(1 - there) / 3
    assert loss(logits, targets).tolist() == pytest.approx(wanted, rel=1e-4)


def test_a_class_without_videos_counts_as_one_video_in_the_shares():
    counts = np.array([6.0, 0.0, 3.0])
    options = {"smoothing": 0.0, "focal_gamma": 2.0, "adjustment": 0.5, "device": torch.device("cpu")}
    found = build_loss("logit_adjusted", counts, None, **options).adjustment_K
    assert found.tolist() == pytest.approx([0.5 * math.log(share) for share in (0.6, 0.1, 0.3)])
    assert build_loss("focal", counts, None, **options).adjustment_K is None


def test_weights_of_several_labels_are_videos_without_over_videos_with():
    counts = np.array([20.0, 50.0, 0.0, 100.0])
    names = ["a", "b", "c", "d"]
    assert class_weights("balanced", counts, names, 100).tolist() == pytest.approx([4, 1, 0.01, 0.01])
    one = 1 - 0.999
    effective = [(1 - 0.999**without) / (1 - 0.999**having) for without, having in ((80, 20), (50, 50))]
    found = class_weights("effective_number", counts, names, 100).tolist()
    assert found == pytest.approx([*effective, one / (1 - 0.999**100), one / (1 - 0.999**100)])


def test_weights_by_rule():
    balanced = class_weights("balanced", COUNTS, CLASSES)
    assert balanced * COUNTS == pytest.approx(np.full(3, 100 / 3))
    effective = class_weights("effective_number", COUNTS, CLASSES)
    assert effective * (1 - 0.999**COUNTS) == pytest.approx(np.full(3, effective[0] * (1 - 0.999**80)))
    assert 1 < effective[2] / effective[0] < balanced[2] / balanced[0]
    for weights in (balanced, effective):
        assert (weights * COUNTS).sum() == pytest.approx(100)  # mean 1 over the videos
    assert class_weights("none", COUNTS, CLASSES) is None
    assert class_weights("balanced", np.array([9.0, 0.0, 1.0]), CLASSES).argmax() == 2


def test_mirrored_clips_count_for_the_class_that_they_show():
    assert videos_per_class([0, 0, 0, 1, 2], 4).tolist() == [3, 1, 1, 0]
    assert videos_per_class([0, 0, 0, 1, 2], 4, [1, 0, 2, 3]).tolist() == [2, 2, 1, 0]


def test_weights_of_a_file(tmp_path):
    path = tmp_path / "weights.csv"
    path.write_text('class,weight\nlong jump,2.5\n\n"run",0\njump,1\n')
    assert class_weights(str(path), COUNTS, CLASSES).tolist() == [0, 1, 2.5]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "line 1: the header of class weights is class,weight"),
        ("run,1\n", "line 1: the header"),
        ("class,weight\nswim,1\n", "line 2: 'swim' is not a class"),
        ("class,weight\nrun,1\nrun,2\n", "line 3: class 'run' has a weight already"),
        ("class,weight\nrun,x\n", "line 2: the weight of 'run' must be a number of at least 0"),
        ("class,weight\nrun,-1\n", "must be a number"),
        ("class,weight\nrun\n", "must be a number"),
        ("class,weight\nrun,nan\n", "must be a number"),
        ("class,weight\nrun,1\njump,1\n", "class 'long jump' has no weight"),
    ],
)
def test_wrong_files_of_weights(tmp_path, content, reason):
    path = tmp_path / "weights.csv"
    path.write_text(content)
    with pytest.raises(UserError, match=reason) as error:
        class_weights(str(path), COUNTS, CLASSES)
    assert str(path) in str(error.value)


def test_missing_file_of_weights(tmp_path):
    with pytest.raises(UserError, match=r"set SOLVER\.CLASS_WEIGHTS to none, balanced"):
        class_weights(str(tmp_path / "ballanced"), COUNTS, CLASSES)
