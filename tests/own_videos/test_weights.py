"""Settings that follow from the weights to start from."""

import torch
from timm.models import VisionTransformer

from lookupvit_video.own_videos.weights import settings_of_weights


def test_published_weights_are_of_a_linear_tokenizer(tmp_path):
    path = tmp_path / "vit.pth"
    torch.save(VisionTransformer(img_size=32, patch_size=8, embed_dim=64, depth=1, num_heads=1).state_dict(), path)
    found = {key: value for key, (value, _) in settings_of_weights(str(path)).items()}
    assert found["MODEL.TOKENIZER"] == "linear"
    assert (found["MODEL.INPUT"], found["MODEL.TUBELET"]) == ("frames", [2, 8, 8])
