"""Accuracy of frozen features and their effective rank, on features that are known."""

import pytest
import torch

from lookupvit_video.models.contract import Features
from lookupvit_video.training.pretraining.frozen_features import (
    COLLAPSED,
    effective_rank,
    neighbor_accuracy,
    pooled,
    probe_accuracy,
)


def test_clusters_are_found_and_noise_is_not():
    torch.manual_seed(0)
    labels = torch.arange(90) % 3
    centers = torch.randn(3, 16)
    near = centers[labels] + 0.1 * torch.randn(90, 16)
    assert neighbor_accuracy(near, labels) == probe_accuracy(near, labels) == 100
    noise = torch.randn(90, 16)
    assert neighbor_accuracy(noise, labels) < 60
    assert probe_accuracy(noise, labels) < 60


def test_a_row_is_no_neighbor_of_itself_and_no_fold_sees_its_own_rows():
    labels = torch.randint(0, 2, (60,), generator=torch.Generator().manual_seed(0))
    alone = torch.eye(60)  # each row is like itself only
    assert neighbor_accuracy(alone, labels) < 75
    assert probe_accuracy(alone, labels) < 75


def test_a_linear_probe_finds_what_neighbors_do_not():
    torch.manual_seed(1)
    features = torch.randn(200, 8) * torch.tensor([1.0] + 7 * [8.0])
    labels = (features[:, 0] > 0).long()
    assert probe_accuracy(features, labels) > 90 > neighbor_accuracy(features, labels)


@pytest.mark.parametrize("rank", [1, 4, 16])
def test_effective_rank_counts_directions(rank):
    torch.manual_seed(0)
    features = 100 + torch.randn(400, rank) @ torch.linalg.qr(torch.randn(32, 32))[0][:rank]
    assert effective_rank(features) == pytest.approx(rank, rel=0.05)


def test_features_that_are_all_the_same_have_collapsed_whatever_rounding_leaves():
    features = torch.full((50, 32), 3.0) * (1 + 1e-6 * torch.randn(50, 32))
    assert effective_rank(features) == 1.0 < COLLAPSED


def test_pooled_tokens_of_both_sets_side_by_side():
    tokens = torch.randn(2, 8, 4)
    one = pooled(Features(tokens, None))
    assert one.shape == (2, 4)
    torch.testing.assert_close(pooled(Features(5 + 3 * tokens, None)), one, atol=1e-3, rtol=0)  # tokens are normalized
    assert torch.equal(pooled(Features(tokens, None, compressed=tokens[:, :2]))[:, 4:], one)
