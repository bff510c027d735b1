"""The order of an epoch: a function of seed and epoch alone, whatever it draws more often."""

from collections import Counter

import numpy as np
import pytest

from lookupvit_video.data.sample_order import _quotas, sample_order

LABELS = [0] * 90 + [1] * 9 + [3] * 1  # class 2 has no video


@pytest.mark.parametrize("rule", ["shuffled", "balanced", "square_root"])
def test_epochs_have_the_length_of_the_list_and_repeat_no_key(rule):
    order = sample_order(rule, LABELS, 5)
    epochs = [order(epoch) for epoch in range(6)]
    assert {len(epoch) for epoch in epochs} == {100}
    keys = [key for epoch in epochs for key in epoch]
    assert len(set(keys)) == len(keys)  # no clip is ever cut and augmented in the same way twice
    again = sample_order(rule, LABELS, 5)
    assert [again(epoch) for epoch in (4, 1)] == [epochs[4], epochs[1]]
    assert sample_order(rule, LABELS, 6)(0) != epochs[0]


@pytest.mark.parametrize(
    ("rule", "shares"), [("shuffled", (90, 9, 1)), ("balanced", (34, 33, 33)), ("square_root", (70, 22, 8))]
)
def test_shares_of_the_classes(rule, shares):
    order = sample_order(rule, LABELS, 0)
    for epoch in range(3):
        counts = Counter(LABELS[row] for _, row in order(epoch))
        assert tuple(counts[label] for label in (0, 1, 3)) == pytest.approx(shares, abs=1)


@pytest.mark.parametrize("rule", ["balanced", "square_root"])
def test_videos_of_a_class_take_turns_over_the_training(rule):
    order = sample_order(rule, LABELS, 0)
    counts, labels = Counter(), Counter()
    for epoch in range(7):
        rows = [row for _, row in order(epoch)]
        counts.update(rows)
        labels.update(LABELS[row] for row in rows)
        for label in (0, 1, 3):
            of_class = [counts[row] for row, other in enumerate(LABELS) if other == label]
            assert max(of_class) - min(of_class) <= 1
            assert sum(of_class) == labels[label]


@pytest.mark.parametrize("rule", ["shuffled", "balanced", "square_root"])
def test_each_epoch_has_an_order_of_its_own(rule):
    """Also where each class has one video, so that the same ones are drawn."""
    order = sample_order(rule, list(range(12)), 0)
    epochs = [tuple(row for _, row in order(epoch)) for epoch in range(6)]
    assert len(set(epochs)) == 6
    assert {tuple(sorted(rows)) for rows in epochs} == {tuple(range(12))}
    assert [{turn for turn, _ in order(epoch)} for epoch in range(6)] == [{epoch} for epoch in range(6)]


def test_quotas_are_the_nearest_whole_numbers_of_at_least_1():
    for wanted, total, quotas in (([1, 1, 1], 7, [3, 2, 2]), ([5, 3, 2], 10, [5, 3, 2]), ([8, 1, 1], 4, [2, 1, 1]),
                                  ([98, 1, 1], 10, [8, 1, 1]), ([1, 2.6, 6.4], 10, [1, 3, 6])):  # fmt: skip
        assert _quotas(np.array(wanted, dtype=float), total) == quotas


def test_classes_are_mixed_within_an_epoch():
    drawn = [LABELS[row] for _, row in sample_order("balanced", LABELS, 0)(0)]
    assert all(len(set(drawn[first : first + 25])) == 3 for first in range(0, 100, 25))


@pytest.mark.parametrize("labels", [[0], [0, 1], [4, 4, 2], list(range(30))])
@pytest.mark.parametrize("rule", ["balanced", "square_root"])
def test_short_lists(rule, labels):
    order = sample_order(rule, labels, 0)
    assert {len(order(epoch)) for epoch in range(5)} == {len(labels)}
    assert {row for epoch in range(5) for _, row in order(epoch)} == set(range(len(labels)))
