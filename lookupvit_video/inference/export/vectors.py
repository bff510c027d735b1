"""Evidence that an exported model is used correctly: small videos with their probabilities, and a script.

The script, `reference.py` of this folder, imports nothing of this package. It is copied next to the model and answers
the videos, here at once and later wherever the model runs.
"""

import math
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
import torch

from lookupvit_video.decoding.backends import DecodeError
from lookupvit_video.errors import UserError
from lookupvit_video.evaluation.evaluate import CompressedGrid
from lookupvit_video.files import atomic_write
from lookupvit_video.inference.export import reference
from lookupvit_video.inference.export.export import INT8_TOLERANCE, DeployedModel
from lookupvit_video.inference.predictor import Predictor
from lookupvit_video.inference.views import read_views

TOLERANCE = 1e-3  # of a probability: builds of FFmpeg may round a color differently
_TICKS = 90_000  # a second
_QUARTER_TURN = (0, 1, -1, 0)  # a, b, c, d of the display matrix: clockwise, as phones write it
_MIRROR = (-1, 0, 0, 1)  # left and right exchanged, as front cameras write it


class Comparison(NamedTuple):
    """One video, answered by this package and by the reference; a refusal is its reason, else None."""

    path: str
    difference: float
    """Largest difference of a probability; nan where one of them refused."""
    refused_here: str | None
    refused_there: str | None


def add_test_vectors(predictor: Predictor, deployed: DeployedModel, folder: Path, facts: dict[str, Any]) -> None:
    """Write the test videos and add them, with what the model answers, to its description as `test_vectors`.

    The long video has irregular times, pixels that are not square and a quarter turn; the short one is mirrored and
    ends before the clip does.
    """
    rules = facts["preprocessing"]
    frames, size = rules["num_frames"], rules["size"]
    step = rules.get("step_seconds", 2 / frames)
    irregular = step * np.cumsum(np.resize([0.6, 1.4, 0.9, 1.1], max(2, math.ceil(1.6 * frames))))
    videos = {
        "test_long.mp4": (irregular - irregular[0], Fraction(4, 3), _QUARTER_TURN, {"views_in_time": 2}),
        "test_short.mp4": (step * np.arange(max(2, math.ceil(0.6 * frames))), None, _MIRROR, {"views_in_time": 1}),
    }
    facts["test_vectors"] = []
    for name, (times, aspect, turn, views) in videos.items():
        height = 2 * round(0.6 * size)
        write_test_video(folder / name, times, (2 * round(0.8 * size), height), aspect, turn)
        views = {"views_in_time": min(views["views_in_time"], rules["views_in_time"]),
                 "views_in_space": rules["views_in_space"]}  # fmt: skip
        facts["test_vectors"].append({
            "file": name,
            "views": views,
            "probabilities": _answer(predictor, deployed, folder / name, views, facts["input"]["shape"][0]),
            "tolerance": INT8_TOLERANCE if facts["weights"] == "int8" else TOLERANCE,
        })  # fmt: skip


def _answer(
    predictor: Predictor, deployed: DeployedModel, path: Path, views: dict[str, int], batch: int | str
) -> list[float]:
    """Return the exported model's probabilities for clips that this package reads."""
    plan = predictor.plan.changed(views["views_in_time"], views["views_in_space"], "pyav")
    clips = torch.from_numpy(read_views(path, plan).clips).to(predictor.device)
    with torch.no_grad():
        parts = [deployed(part).cpu() for part in torch.split(clips, batch if isinstance(batch, int) else 8)]
    return torch.cat(parts).double().mean(0).tolist()


def write_test_video(
    path: Path,
    times: np.ndarray,
    size: tuple[int, int],
    aspect: Fraction | None = None,
    turn: tuple[int, int, int, int] | None = None,
) -> None:
    """Write frames that differ in every place and at every time, as H.264 in MP4.

    Args:
        times: seconds of the frames, ascending from 0.
        size: (W, H) as stored, even.
        aspect: width of a pixel / height.
        turn: a, b, c, d of the display matrix.
    """
    options = {"crf": "20", "preset": "veryfast", "threads": "1", "mbtree": "0"}
    with atomic_write(path) as temporary:
        with av.open(str(temporary), "w", format="mp4") as container:
            stream = container.add_stream("libx264", rate=24, options=options)
            stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
            stream.codec_context.time_base = Fraction(1, _TICKS)
            if aspect is not None:
                stream.codec_context.sample_aspect_ratio = aspect
            for number, second in enumerate(times.tolist()):
                frame = av.VideoFrame.from_ndarray(_picture(number / len(times), size), format="rgb24")
                frame.pts, frame.time_base = round(second * _TICKS), stream.codec_context.time_base
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        if turn is not None:
            set_display_matrix(temporary, turn)


def _picture(share: float, size: tuple[int, int]) -> np.ndarray:
    """Return waves of three colors that move at different speeds, and a bright square: uint8 (H, W, 3)."""
    width, height = size
    y, x = np.mgrid[:height, :width] / np.array([height, width]).reshape(2, 1, 1)
    waves = [
        np.sin(2 * np.pi * (fx * x + fy * y + speed * share)) for fx, fy, speed in ((2, 1, 3), (-1, 3, 2), (1, -2, -4))
    ]
    picture = np.stack([128 + 70 * wave for wave in waves], axis=-1)
    picture[(abs(x - 0.2 - 0.6 * share) < 0.08) & (abs(y - 0.3) < 0.1)] = 240
    return picture.astype(np.uint8)


def set_display_matrix(path: Path, turn: tuple[int, int, int, int]) -> None:
    """Write a matrix into the header of the first track (ISO 14496-12, 8.3.2, version 0): PyAV before 18 cannot."""
    a, b, c, d = turn
    matrix = np.array([a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30], dtype=">i4").tobytes()
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 4 + 40
    data[at : at + 36] = matrix
    path.write_bytes(data)


def add_reference(folder: Path, facts: dict[str, Any]) -> float:
    """Copy the reference next to a model and answer the test vectors with it; return the largest difference.

    Raises:
        UserError: its answers differ from this package's.
    """
    with atomic_write(folder / "reference.py") as temporary:
        temporary.write_bytes(Path(reference.__file__).read_bytes())
    found = reference.check_vectors(folder, facts, reference.load_run(folder, facts))
    for file, difference, tolerance in found:
        if not difference <= tolerance:
            raise UserError(
                f"{folder / file}: the reference and this package differ by {difference:.2g} of a probability"
            )
    return max(difference for _, difference, _ in found)


def compare(
    predictor: Predictor, grid: CompressedGrid, folder: Path, facts: dict[str, Any], paths: Sequence[str]
) -> list[Comparison]:
    """Answer videos with this package's checkpoint, and with the exported model and the reference."""
    run, names = reference.load_run(folder, facts), predictor.classes
    found = []
    for path in paths:
        here = there = here_refused = there_refused = None
        try:
            answer = predictor.predict(path, topk=len(names), grid=grid)
            here = dict(zip(answer.labels, answer.probabilities, strict=True))
        except DecodeError as error:
            here_refused = error.reason
        try:
            there = reference.predict(path, facts["preprocessing"], run)
        except ValueError as error:
            there_refused = str(error)
        difference = math.nan
        if here is not None and there is not None:
            difference = float(np.abs(there - np.array([here[name] for name in names])).max())
        found.append(Comparison(path, difference, here_refused, there_refused))
    return found
