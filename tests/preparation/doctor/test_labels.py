"""Planted label errors are found first, and classes that look alike are named."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from lookupvit_video.errors import UserError
from lookupvit_video.preparation.doctor.labels import alike_classes, label_margins, likely_errors, out_of_fold


def data(seed=0, count=240, classes=4):
    draw = np.random.default_rng(seed)
    true = np.arange(count) % classes
    features = draw.normal(size=(classes, 12))[true] * 1.5 + draw.normal(size=(count, 12))
    planted = draw.permutation(count)[: count // 20]
    labels = true.copy()
    labels[planted] = (labels[planted] + draw.integers(1, classes, len(planted))) % classes
    return features, labels, planted


def test_planted_errors_come_first():
    features, labels, planted = data()
    answers = out_of_fold(features, labels, [str(i) for i in range(len(labels))])
    is_planted = np.isin(np.arange(len(labels)), planted)
    assert average_precision_score(is_planted, label_margins(answers, labels)) > 0.9
    found = likely_errors(answers, labels)
    assert all(suspect.given == labels[suspect.row] != suspect.likely for suspect in found)
    assert [suspect.margin for suspect in found] == sorted((suspect.margin for suspect in found), reverse=True)
    assert is_planted[[suspect.row for suspect in found]].mean() > 0.8


def test_a_group_is_never_answered_by_a_model_that_saw_it():
    draw = np.random.default_rng(1)
    features = draw.normal(size=(20, 6)).repeat(
        10, 0
    )  # each recording is known by heart, and says nothing of the class
    labels = draw.integers(0, 2, 20).repeat(10)
    by_group = out_of_fold(features, labels, [str(i // 10) for i in range(200)])
    by_video = out_of_fold(features, labels, [str(i) for i in range(200)])
    assert (by_video.argmax(1) == labels).mean() > 0.75
    assert (by_group.argmax(1) == labels).mean() < 0.7


def test_classes_that_look_alike():
    answers = np.eye(3)[[0, 0, 1, 1, 1, 0, 2, 2]]
    assert alike_classes(answers, np.array([0, 0, 0, 0, 1, 1, 2, 2])) == [(0, 1, 0.5)]


@pytest.mark.parametrize(("count", "classes"), [(8, 2), (40, 1)])
def test_too_few(count, classes):
    with pytest.raises(UserError, match="--model"):
        out_of_fold(np.zeros((count, 2)), np.arange(count) % classes, [str(i) for i in range(count)])
