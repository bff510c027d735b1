"""The loss of masked pre-training, on predictions that are known."""

import pytest
import torch

from lookupvit_video.models.pretexts.masked import MaskedModel, Prediction
from lookupvit_video.models.tokenizer import TubeletTokenizer
from lookupvit_video.models.vit import ViT
from lookupvit_video.training.pretraining.masked import changes, masked_error, shown_prediction


@pytest.fixture
def tokenizer():
    return TubeletTokenizer(num_frames=4, size=16, tubelet=(2, 8, 8), dim=12)


def test_only_masked_tubelets_count(tokenizer):
    clips = torch.randn(2, 3, 4, 16, 16)
    values = changes(tokenizer, clips)
    assert torch.equal(tokenizer.unfold(values), clips - clips[:, :, :1])
    masked = torch.tensor([[1, 5], [0, 4]])
    right = torch.stack([values[clip, rows] for clip, rows in enumerate(masked)])
    assert torch.equal(masked_error(Prediction(right, masked), values), torch.zeros(2))
    others = values.clone()
    others[0, 0] += 9
    assert torch.equal(masked_error(Prediction(right, masked), others), torch.zeros(2))
    others[1, 4] += 9
    error = masked_error(Prediction(right, masked), others)
    assert error[0] == 0
    assert error[1] > 1


def test_a_perfect_prediction_is_drawn_as_the_clip(tokenizer, monkeypatch):
    torch.manual_seed(0)
    encoder = ViT(num_classes=3, num_frames=4, size=16, tubelet=(2, 8, 8), dim=12, depth=1, num_heads=3)
    model, clips = MaskedModel(encoder, ratio=0.5, width=16, depth=1), torch.randn(2, 3, 4, 16, 16)

    def perfect(clips):
        masked = torch.tensor([[1, 5], [0, 4]])
        values = changes(tokenizer, clips)
        return Prediction(torch.stack([values[clip, rows] for clip, rows in enumerate(masked)]), masked)

    monkeypatch.setattr(model, "forward", perfect)
    shown = shown_prediction(model, clips)
    torch.testing.assert_close(shown.predicted, clips)
    assert (shown.hidden[0, :, :, :8, 8:] == 0).all()
    assert torch.equal(shown.hidden[0, :, :, 8:], clips[0, :, :, 8:])
