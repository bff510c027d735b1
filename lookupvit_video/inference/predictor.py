"""A checkpoint and a video -> class names with probabilities, and what was looked at.

Shape letters: V views, C channels, T frames, H W pixels, K classes.
"""

from dataclasses import dataclass, field
from pathlib import Path

import torch
from fvcore.common.config import CfgNode
from torch import Tensor, nn

from lookupvit_video.data.dataset import read_clips
from lookupvit_video.data.decode import check_backend
from lookupvit_video.data.manifest import Video
from lookupvit_video.data.sampling import build_time_sampler
from lookupvit_video.data.transforms import eval_transform, normalize
from lookupvit_video.engine.checkpoint import load_checkpoint, load_weights
from lookupvit_video.engine.evaluate import predict_clips
from lookupvit_video.models.attention import head_mean
from lookupvit_video.models.build import build_model
from lookupvit_video.models.lookupvit import LookupViT


@dataclass(frozen=True)
class Prediction:
    """The answer for one video."""

    path: str
    labels: list[str]
    """Class names, likeliest first."""
    probabilities: list[float]
    """Of those classes; softmax averaged over the views."""
    clip: Tensor = field(repr=False)
    """(C, T, H, W) uint8: the middle one of the views that the answer comes from."""


class Predictor:
    """A trained model with all that it needs to read a video: made by ``load_model``."""

    def __init__(self, model: nn.Module, cfg: CfgNode, classes: list[str], device: torch.device):
        self.model, self.cfg, self.classes, self.device = model.to(device).eval(), cfg, classes, device

    def predict(
        self,
        path: str | Path,
        topk: int = 5,
        *,
        num_views: int | None = None,
        num_crops: int | None = None,
        backend: str | None = None,
    ) -> Prediction:
        """Classify a video file.

        Args:
            path: any video that PyAV opens. One shorter than a clip is read to its end, its last frame repeated.
            topk: classes in the answer.
            num_views, num_crops: clips in time, crops in space; by default those of the checkpoint's test.
            backend: decoder, by default the checkpoint's.

        Raises:
            DecodeError: the file cannot be read; it is a ValueError that names file and reason.
        """
        cfg = self.cfg
        check_backend(backend or cfg.DATA.DECODING_BACKEND)
        size = cfg.DATA.TEST_CROP_SIZE
        times = build_time_sampler(cfg, training=False, num_clips=num_views or cfg.TEST.NUM_ENSEMBLE_VIEWS)
        transform = eval_transform(size, cfg.DATA.TEST_SHORT_SIDE or size, num_crops or cfg.TEST.NUM_SPATIAL_CROPS)
        clips = read_clips(Video(str(path), 0), times, transform, backend or cfg.DATA.DECODING_BACKEND)
        probabilities_K = predict_clips(self.model, cfg, torch.stack(clips), self.device).mean(0)
        best = probabilities_K.topk(min(topk, len(self.classes)))
        return Prediction(
            path=str(path),
            labels=[self.classes[label] for label in best.indices.tolist()],
            probabilities=best.values.tolist(),
            clip=clips[len(clips) // 2],
        )

    def attention_maps(self, clip_CTHW: Tensor) -> Tensor | None:
        """Return where the compressed tokens look in a uint8 clip: (t, h, w), summing to 1; None for other models.

        The gather weights of the last block, averaged over heads and compressed tokens.
        """
        if not isinstance(self.model, LookupViT):
            return None
        with torch.inference_mode():
            clips = normalize(clip_CTHW[None].to(self.device), self.cfg.DATA.MEAN, self.cfg.DATA.STD)
            weights = self.model.forward_features(clips, return_attention=True).attention[-1]
        looked_BN = head_mean(weights).mean(1)  # a factorised encoder has a row for each time index
        return (looked_BN / len(looked_BN)).view(self.model.tokenizer.grid).cpu()


def load_model(checkpoint: str | Path, device: str = "auto") -> Predictor:
    """Load any checkpoint of this project for prediction; config, classes and normalisation are in it.

    Args:
        device: "auto" (a GPU if there is one), "cpu", "cuda", "cuda:1", ...

    Raises:
        ValueError: the checkpoint cannot be read, or there is no such device.
    """
    loaded = load_checkpoint(checkpoint)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        place = torch.device(device)
        torch.empty(0, device=place)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device {device}: {str(error).splitlines()[0]}") from None
    model = build_model(loaded.config)
    load_weights(model, loaded)
    return Predictor(model, loaded.config, loaded.classes, place)
