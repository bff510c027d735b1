"""What features know of classes that nobody taught them, and whether they collapsed. R rows, D width, K classes."""

import torch
from torch import Tensor
from torch.nn import functional as F

from lookupvit_video.models.contract import Features
from lookupvit_video.models.pretexts.pretext import mean_tokens

NEIGHBORS, TEMPERATURE = 10, 0.07  # as DINO's evaluation (arXiv 2104.14294), for lists of any size
FOLDS, RIDGES = 5, (0.01, 0.1, 1.0)
COLLAPSED = 2.0
"""Features of an effective rank below this say the same of all videos, but for one number."""


def pooled(features: Features) -> Tensor:
    """Return the means (B, D or 2 D) of the token sets side by side."""
    return torch.cat(mean_tokens(features), -1)


def neighbor_accuracy(features_RD: Tensor, labels_R: Tensor) -> float:
    """Return the share of rows, in percent, that their nearest other rows classify, by cosine similarity."""
    unit_RD = F.normalize(features_RD - features_RD.mean(0), dim=-1)
    similar_RR = (unit_RD @ unit_RD.T).fill_diagonal_(-torch.inf)
    near = similar_RR.topk(min(NEIGHBORS, len(labels_R) - 1))
    votes_RnK = F.one_hot(labels_R)[near.indices] * (near.values / TEMPERATURE).softmax(-1)[..., None]
    return _percent(votes_RnK.sum(1), labels_R)


def probe_accuracy(features_RD: Tensor, labels_R: Tensor) -> float:
    """Return the share of rows, in percent, that a linear classifier of the rest answers: ridge regression, 5 folds.

    The strength of the ridge that does best counts.
    """
    fold_R = torch.empty_like(labels_R)
    fold_R[labels_R.argsort(stable=True)] = torch.arange(len(labels_R)) % FOLDS  # each fold has rows of all classes
    scaled_RD = (features_RD - features_RD.mean(0)) / (features_RD.std(0) + 1e-6)
    gram_RR = scaled_RD @ scaled_RD.T / scaled_RD.shape[1]
    targets_RK = F.one_hot(labels_R).to(gram_RR)
    targets_RK = targets_RK - targets_RK.mean(0)
    best = 0.0
    for ridge in RIDGES:
        scores_RK = torch.zeros_like(targets_RK)
        for fold in range(FOLDS):
            held, rest = fold_R == fold, fold_R != fold
            kernel = gram_RR[rest][:, rest] + ridge * torch.eye(int(rest.sum()))
            scores_RK[held] = gram_RR[held][:, rest] @ torch.linalg.solve(kernel, targets_RK[rest])
        best = max(best, _percent(scores_RK, labels_R))
    return best


def effective_rank(features_RD: Tensor) -> float:
    """Return how many directions features differ in: exp of the entropy of their singular values.

    Roy and Vetterli (EUSIPCO 2007), as RankMe (arXiv 2210.02885) uses it, of the differences from the mean. Rows that
    are all the same, but for rounding, have rank 1.
    """
    centered_RD = (features_RD - features_RD.mean(0)).double()
    values = torch.linalg.svdvals(centered_RD)
    if values.norm() < 1e-4 * features_RD.double().norm():
        return 1.0
    shares = values / values.sum()
    return float(torch.special.entr(shares).sum().exp())


def _percent(scores_RK: Tensor, labels_R: Tensor) -> float:
    return 100 * float((scores_RK.argmax(1) == labels_R).float().mean())
