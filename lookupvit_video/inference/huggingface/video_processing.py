"""From a video file, or from frames, to the input of a saved model: transformers' ``AutoVideoProcessor``.

Shape letters: V views (times x crops), T frames, C channels, H W pixels.
"""

from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from transformers import BatchFeature
from transformers.video_processing_utils import BaseVideoProcessor

from lookupvit_video.inference.export.reference import crops, read_clips, resized


class LookupViTVideoProcessor(BaseVideoProcessor):
    """Reads a file as the training's test did: same frames, crops and pixels as ``lookupvit_video.Predictor``.

    Args:
        rules: ``preprocessing`` of an exported model, see ``lookupvit_video.inference.export.description``.
    """

    model_input_names: ClassVar = ["pixel_values"]

    def __init__(self, rules: dict[str, Any] | None = None, **kwargs: Any):
        super().__init__(**kwargs)
        self.rules = rules or {}

    def __call__(self, videos: Any, return_tensors: str = "pt", **_: Any) -> BatchFeature:
        """Return ``pixel_values``: (B, V, T, C, H, W), the views averaged by the model.

        Args:
            videos: a path or several, each read by the rules; or one video's frames or several's, each an array
                (frames, H, W, 3) of uint8 or a list of such pictures: T of them, evenly spread, make one view a crop.
            return_tensors: "pt" or "np".

        Raises:
            ValueError: a file is not a video, or frames are not RGB in 8 bits.
        """
        several = isinstance(videos, list | tuple) and not _is_picture(videos[0])
        clips = [self._clips(video) for video in (videos if several else [videos])]
        pixels_BVTCHW = torch.stack([self._normalized(torch.from_numpy(clip)) for clip in clips])
        return BatchFeature({"pixel_values": pixels_BVTCHW}, tensor_type=return_tensors)

    preprocess = __call__

    def _clips(self, video: Any) -> np.ndarray:
        """Return uint8 clips (V, C, T, H, W)."""
        if isinstance(video, str):
            return read_clips(video.removeprefix("file://"), self.rules)
        frames = [np.asarray(frame) for frame in video]
        if any(frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3 for frame in frames):
            raise ValueError("frames: give arrays (H, W, 3) of uint8, or the path of a video")
        places = np.linspace(0, len(frames) - 1, self.rules["num_frames"]).round().astype(int)
        size = self.rules["size"]
        pictures = [[resized(crop, size) for crop in crops(frames[place], self.rules)] for place in places]
        return np.stack(pictures, axis=1).transpose(0, 4, 1, 2, 3)

    def _normalized(self, clips_VCTHW: Tensor) -> Tensor:
        mean, std = (torch.tensor(self.rules["normalization"][name]).view(1, 1, -1, 1, 1) for name in ("mean", "std"))
        pixels_VTCHW = clips_VCTHW.transpose(1, 2).float()
        return pixels_VTCHW * (1 / (255 * std)) - mean / std


def _is_picture(value: Any) -> bool:
    return not isinstance(value, str) and np.asarray(value).ndim == 3
