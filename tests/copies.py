"""Videos like no other, and copies of them: for tests of what finds copies, and to measure it.

python -m tests.copies --help
"""

import argparse
import tempfile
import time
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter

from lookupvit_video.decoding.backends import open_video
from lookupvit_video.preparation.copies.fingerprint import Fingerprint, fingerprint
from lookupvit_video.preparation.copies.match import find_copies

FPS = 25
COPIES = ("quality 30", "quality 38", "rescaled", "trimmed", "mirrored", "letterboxed", "speed", "all at once")


def scene(seed: int, *, size: tuple[int, int] = (160, 120), seconds: float | None = None) -> np.ndarray:
    """A video (T, H, W, 3) uint8: things that move over a background, which may pan; 3 to 8 s, with a cut in some."""
    draw = np.random.default_rng(seed)
    frames = round((seconds or draw.uniform(3, 8)) * FPS)
    cut = int(draw.uniform(0.3, 0.7) * frames) if draw.random() < 0.3 else frames
    return np.concatenate([_shot(draw, size, count) for count in (cut, frames - cut) if count])


def _shot(draw: np.random.Generator, size: tuple[int, int], frames: int) -> np.ndarray:
    width, height = size
    grain = draw.uniform(4, 25)
    wide = gaussian_filter(draw.normal(size=(height * 2, width * 2, 3)), (grain, grain, 0))
    wide = np.clip(128 + wide * draw.uniform(20, 60) / wide.std(), 0, 255)
    pan = draw.normal(0, 0.3, 2) * (draw.random() < 0.4)
    y, x = np.mgrid[:height, :width]
    shots = []
    things = [(draw.uniform(0, 1, 2), draw.normal(0, 0.15, 2), draw.uniform(0.08, 0.3), draw.uniform(0, 255, 3),
               draw.uniform(0, 6.3), draw.uniform(0.5, 4), draw.uniform(0, 0.15))
              for _ in range(draw.integers(1, 4))]  # fmt: skip
    for frame in range(frames):
        time = frame / FPS
        top, left = np.clip((np.array([height, width]) / 2 + pan * frame), 0, [height, width]).astype(int)
        picture = wide[top : top + height, left : left + width].copy()
        for place, speed, radius, color, phase, beat, swing in things:
            at = (place + speed * time + swing * np.array([np.sin(beat * time + phase), np.cos(beat * time)])) % 1
            inside = ((y / height - at[0]) ** 2 + (x / width - at[1]) ** 2) < (radius / 2) ** 2
            picture[inside] = color
        shots.append(picture.astype(np.uint8))
    return np.stack(shots)


def copied(frames: np.ndarray, kind: str, seed: int) -> tuple[np.ndarray, int]:
    """The pictures of a copy, and the quality (CRF of x264) that it is to be stored at."""
    draw = np.random.default_rng([seed, 77])
    every, crf = kind == "all at once", 26
    if kind.startswith("quality"):
        return frames, int(kind.split()[1])
    if kind == "trimmed" or every:
        length = round(len(frames) * draw.uniform(0.6, 0.9))
        first = int(draw.integers(0, len(frames) - length + 1))
        frames = frames[first : first + length]
    if kind == "speed" or every:
        speed = draw.uniform(0.8, 1.25)
        frames = frames[np.minimum(np.arange(int(len(frames) / speed)) * speed, len(frames) - 1).astype(int)]
    if kind == "mirrored" or every:
        frames = frames[:, :, ::-1]
    if kind == "rescaled" or every:
        height, width = (int(side * draw.uniform(0.5, 0.9)) // 2 * 2 for side in frames.shape[1:3])
        frames = np.stack([np.asarray(Image.fromarray(f).resize((width, height), Image.BILINEAR)) for f in frames])
    if kind == "letterboxed" or every:
        bar = int(draw.uniform(0.06, 0.16) * frames.shape[1]) // 2 * 2
        sides = ((0, 0), (bar, bar), (0, 0), (0, 0)) if draw.random() < 0.5 else ((0, 0), (0, 0), (bar, bar), (0, 0))
        frames = np.pad(frames, sides)
    return frames, 34 if every else crf


def store(path: Path, frames: np.ndarray, crf: int = 20, fps: int | Fraction = FPS) -> str:
    """Write frames (T, H, W, 3) as H.264."""
    height, width = frames.shape[1:3]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps)
        stream.width, stream.height, stream.pix_fmt = width // 2 * 2, height // 2 * 2, "yuv420p"
        stream.options = {"preset": "veryfast", "crf": str(crf), "threads": "1"}
        for picture in frames:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture[: stream.height, : stream.width]), "rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return str(path)


def measure(folder: Path, bases: list[np.ndarray] | None, count: int) -> None:
    """Write videos and their copies, and print how many of these are found, and how many others.

    Args:
        bases: the videos' frames; None: scenes.
    """
    known: dict[str, Fingerprint] = {}
    asked: dict[str, dict[str, Fingerprint]] = {kind: {} for kind in COPIES}
    seconds = 0.0
    for seed in range(count):
        frames = scene(seed) if bases is None else bases[seed]
        for kind in ("", *COPIES):
            pictures, crf = copied(frames, kind, seed) if kind else (frames, 20)
            path = store(folder / "v.mp4", pictures, crf)
            before = time.process_time()
            print_ = fingerprint(path)
            seconds += time.process_time() - before
            (asked[kind] if kind else known)[str(seed)] = print_
    read = seconds / count / (len(COPIES) + 1)
    print("| copies | found, % | other pairs that count as copies |\n|---|---|---|")
    before, pairs, wrong = time.process_time(), 0, 0
    for kind, videos in asked.items():
        named = {f"{name} copy": video for name, video in videos.items()}
        found = [match[:2] for matches in find_copies(named, known) for match in matches]
        right = sum(name.split()[0] == other for name, other in found)
        wrong, pairs = wrong + len(found) - right, pairs + count * (count - 1)
        print(f"| {kind} | {100 * right / count:.1f} | {len(found) - right} of {count * (count - 1)} |", flush=True)
    each = (time.process_time() - before) / count / len(COPIES)
    print(f"\n{100 * wrong / pairs:.4f} % of the other pairs; {1000 * read:.0f} ms to read a video, "
          f"{1000 * each:.0f} ms to search among {count}")  # fmt: skip


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description="How many copies are found, of scenes or of the videos of a folder.")
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--folder", type=Path, help="videos to copy, instead of scenes")
    arguments = parser.parse_args()
    bases = None
    if arguments.folder:
        bases = []
        for path in sorted(arguments.folder.iterdir())[: arguments.count]:
            with open_video(str(path)) as reader:
                bases.append(reader.frames_at(np.arange(0, reader.duration, 1 / FPS).tolist()).numpy())
    with tempfile.TemporaryDirectory() as folder:
        measure(Path(folder), bases, arguments.count)


if __name__ == "__main__":
    main()
