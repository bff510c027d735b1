"""What users would run instead of `lookupvit predict`, each as its documentation has it; weights are random.

``python -m lookupvit_video.benchmarks.rivals NAME FOLDER VIDEO ...`` loads the weights in the folder and prints an
answer for each video; without videos it makes the weights. Nothing is imported that the pipeline does not need.
"""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

CLASSES = 400


class Rival(NamedTuple):
    """A pipeline of another project."""

    title: str
    answer: Callable[[str, Path, Sequence[str]], Iterator[object]]
    """(name, folder, videos) -> answers; without videos it makes the weights."""


def hugging_face(name: str, folder: Path, videos: Sequence[str]) -> Iterator[object]:
    """Transformers' pipeline, which reads the first frames, every 4th (VideoMAE) or 2nd (ViViT)."""
    import transformers

    kind, rate = {"videomae": ("VideoMAE", 4), "vivit": ("Vivit", 2)}[name]
    if not videos:
        config = getattr(transformers, f"{kind}Config")(num_labels=CLASSES)
        getattr(transformers, f"{kind}ForVideoClassification")(config).save_pretrained(folder)
        getattr(transformers, f"{kind}ImageProcessor")().save_pretrained(folder)
        return
    pipeline = transformers.pipeline("video-classification", model=str(folder), device="cpu")
    for answers in pipeline(list(videos), frame_sampling_rate=rate):
        yield answers[0]["label"]


def torchvision_model(name: str, folder: Path, videos: Sequence[str]) -> Iterator[object]:
    """A video model of torchvision with its own preprocessing; 16 frames, every 4th, with PyAV."""
    import av
    import torch
    from torchvision.models import get_model, get_model_weights

    model = get_model(name, weights=None)
    if not videos:
        torch.save(model.state_dict(), folder / "weights.pth")
        return
    model.load_state_dict(torch.load(folder / "weights.pth", weights_only=True))
    preprocess = next(iter(get_model_weights(name))).transforms()
    for video in videos:
        frames = []
        with av.open(video) as container:
            for number, frame in enumerate(container.decode(video=0)):
                if number % 4 == 0:
                    frames.append(torch.from_numpy(frame.to_ndarray(format="rgb24")))
                if len(frames) == 16:
                    break
        with torch.inference_mode():
            yield int(model.eval()(preprocess(torch.stack(frames).permute(0, 3, 1, 2))[None]).argmax())


def pytorchvideo(name: str, folder: Path, videos: Sequence[str]) -> Iterator[object]:
    """A model of PyTorchVideo's zoo on EncodedVideo, with the transforms of its tutorial, whose import fails today."""
    import torch
    from pytorchvideo.data.encoded_video import EncodedVideo
    from pytorchvideo.models.hub import vision_transformers, x3d
    from torch.nn import functional as F

    make, rate, side = {
        "mvit_b": (vision_transformers.mvit_base_16x4, 4, 224), "x3d_m": (x3d.x3d_m, 5, 256),
    }[name]  # fmt: skip
    model: Any = make(pretrained=False)
    if not videos:
        torch.save(model.state_dict(), folder / "weights.pth")
        return
    model.load_state_dict(torch.load(folder / "weights.pth", weights_only=True))
    for video in videos:
        clip = EncodedVideo.from_path(video).get_clip(0, 16 * rate / 30)["video"]  # (C, T, H, W)
        clip = (clip[:, torch.linspace(0, clip.shape[1] - 1, 16).long()] / 255 - 0.45) / 0.225
        scale = side / min(clip.shape[2:])
        clip = F.interpolate(clip, size=[round(scale * length) for length in clip.shape[2:]], mode="bilinear")
        top, left = ((length - side) // 2 for length in clip.shape[2:])
        with torch.inference_mode():
            yield int(model.eval()(clip[None, ..., top : top + side, left : left + side]).argmax())


RIVALS = {
    "videomae": Rival("VideoMAE-B, Hugging Face's pipeline", hugging_face),
    "vivit": Rival("ViViT-B, 32 frames, Hugging Face's pipeline", hugging_face),
    "mvit_v2_s": Rival("MViTv2-S, torchvision", torchvision_model),
    "swin3d_t": Rival("Video Swin-T, torchvision", torchvision_model),
    "mvit_b": Rival("MViT-B, PyTorchVideo", pytorchvideo),
    "x3d_m": Rival("X3D-M, PyTorchVideo", pytorchvideo),
}


def time_model(checkpoint: str, clips: int, batch_size: int = 8) -> None:
    """Print the seconds that the model of a checkpoint takes for some clips, after one batch that is not counted."""
    import torch

    from lookupvit_video.inference.predictor import load_model

    model = load_model(checkpoint)
    data = model.cfg.DATA
    inputs = torch.zeros(clips, 3, data.NUM_FRAMES, data.TEST_CROP_SIZE, data.TEST_CROP_SIZE, dtype=torch.uint8)
    model.predict_clips(inputs[:batch_size])
    start = time.perf_counter()
    for part in torch.split(inputs, batch_size):
        model.predict_clips(part)
    print(time.perf_counter() - start)


if __name__ == "__main__":
    place = Path(sys.argv[2])
    place.mkdir(parents=True, exist_ok=True)
    for answer in RIVALS[sys.argv[1]].answer(sys.argv[1], place, sys.argv[3:]):
        print(answer, flush=True)
