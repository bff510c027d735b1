"""The targets and the pictures of the pretext that draws what moves."""

import torch

from lookupvit_video.models.pretexts.moving import SIDE, MovingModel, moving_pictures
from lookupvit_video.models.vit import ViT
from lookupvit_video.training.pretraining.moving import shown_pictures, targets


def test_the_clips_of_a_video_have_one_target_from_the_frames_of_all():
    clips = torch.rand(6, 3, 2, 16, 16)
    found = targets(clips, 3)
    assert found.shape == (6, SIDE, SIDE)
    for video in range(2):
        own = clips[3 * video : 3 * video + 3]
        expected = moving_pictures(torch.cat(list(own), 1)[None])
        torch.testing.assert_close(found[3 * video : 3 * video + 3], expected.expand(3, -1, -1))
    assert not torch.allclose(found[0], found[3])


def test_what_is_drawn_is_shown_as_large_as_the_clip_from_black_to_white():
    model = MovingModel(ViT(num_classes=3, num_frames=4, size=24, tubelet=(2, 8, 8), dim=12, depth=1, num_heads=3))
    torch.nn.init.normal_(model.decoder[0][-1].weight)
    clips = torch.randn(2, 3, 4, 24, 24)
    same, shown = shown_pictures(model, clips, [0.5, 0.4, 0.3], [0.1, 0.2, 0.3])
    assert same is clips
    assert shown.shape == clips.shape
    shown = shown * torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1, 1) + torch.tensor([0.5, 0.4, 0.3]).view(3, 1, 1, 1)
    torch.testing.assert_close(shown.amin((1, 2, 3, 4)), torch.zeros(2), atol=1e-6, rtol=0)
    torch.testing.assert_close(shown.amax((1, 2, 3, 4)), torch.ones(2), atol=1e-3, rtol=0)
    drawn = model(clips)[0]
    assert torch.equal(shown[:, 0, 0, ::2, ::2].flatten(1).argmax(1), drawn.flatten(1).argmax(1))
    assert torch.equal(shown[:, :, :1].expand_as(shown), shown)
