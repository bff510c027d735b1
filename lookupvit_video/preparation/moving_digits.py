"""Moving Digits: real handwritten digits set in motion, written as real H.264 files.

One set of videos carries two label sets. *motion* (eight classes, as in Something-Something) shows only in the order of
the frames; *digit* (ten classes, as in Kinetics) shows in any frame. With two or more digits a video, which move
independently, there is one label set, *digits*: all that are in the video. *order* (twelve classes, in place of motion)
needs memory: a digit moves in one of four directions and then in another one. Who knows both, but not which was first,
is right half the time; who knows the present one only, a third of the time.

Why a single frame says nothing about the motion: each moving quantity (x, y or the logarithm of the size) travels along
a loop from a uniformly random phase, so at every moment it is uniform on its range; a quantity that does not move in a
class is uniform on the same range. A class and its opposite are time reversals.

The digits: Alpaydin and Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository, 1998
(CC BY 4.0), as scikit-learn's `load_digits` ships them: 1797 images of 8x8 pixels.
"""

import colorsys
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import cache, partial
from itertools import chain, permutations
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np

from lookupvit_video.errors import UserError
from lookupvit_video.files import atomic_write, write_json
from lookupvit_video.processes.children import deaf_to, end_children
from lookupvit_video.progress import progress
from lookupvit_video.text import write_text

# Class k and class k + 1 (k even) are time reversals of each other.
MOTIONS = (
    "left to right",
    "right to left",
    "upward",
    "downward",
    "clockwise",
    "counter-clockwise",
    "approaching",
    "leaving",
)
DIGITS = tuple("0123456789")
LABEL_SETS = {"motion": MOTIONS, "digit": DIGITS}
DIRECTIONS = {"left to right": (1, 0), "right to left": (-1, 0), "upward": (0, -1), "downward": (0, 1)}  # x, y
ORDERS = {f"{first}, then {second}": (first, second) for first, second in permutations(DIRECTIONS, 2)}
ORDER_SETS = {"order": tuple(ORDERS), "digit": DIGITS}
SPLITS = ("train", "val", "test")
DIGIT_SHARES = (0.7, 0.1, 0.2)  # of the handwritten images, per split

POSITION_RANGE = (0.15, 0.85)  # of the frame's side, for the digit's center
SIZE_RANGE = (0.21, 0.54)  # of the frame's side, for the digit's height
LAP_RANGE = (0.57, 0.80)  # of a loop travelled in one clip: at least 0.4 of the frame's side, or a size ratio of 1.7
CIRCLE_RANGE = (0.38, 0.48)  # radius, of POSITION_RANGE's length; smaller circles hide their sense of rotation longer
TURN_RANGE = (200.0, 300.0)  # degrees in one clip
CHANGE_RANGE = (0.375, 0.625)  # of an order's frames, where its second motion begins

ADDED_LATER = {"digits": 1, "distractors": 0, "labels": "motion"}  # what older data sets were made with
GENERATOR = 1  # part of settings.json: raise it when the same settings would write other videos


class Trajectory(NamedTuple):
    """Where the digit is in each frame: center and height as parts of the frame's side, y downward, each (T,)."""

    x: np.ndarray
    y: np.ndarray
    scale: np.ndarray


@dataclass(frozen=True)
class Settings:
    """All that the written videos depend on: videos per split, pixels per side, frames, frames per second, seed."""

    train: int
    val: int
    test: int
    size: int
    frames: int
    fps: int
    seed: int
    generator: int = GENERATOR
    digits: int = 1
    """In a video; with 2 or more, from two different ones up to this number."""
    distractors: int = 0
    """Moving shapes in a video that are as bright as the digit and have no class; all else is as without them."""
    labels: str = "motion"
    """Or "order"."""

    @property
    def label_sets(self) -> dict[str, tuple[str, ...]]:
        """The classes of each list that is written."""
        if self.labels == "order":
            return ORDER_SETS
        return LABEL_SETS if self.digits == 1 else {"digits": DIGITS}

    def validate(self) -> None:
        """Raise UserError for the first setting that is out of range."""
        lowest = {"train": 1, "val": 1, "test": 1, "size": 32, "frames": 8, "fps": 1, "seed": 0, "digits": 1,
                  "distractors": 0}  # fmt: skip
        for name, low in lowest.items():
            if getattr(self, name) < low:
                raise UserError(f"{name} must be at least {low}, not {getattr(self, name)}")
        if self.digits > len(DIGITS):
            raise UserError(f"digits must be at most {len(DIGITS)}, not {self.digits}")
        if self.labels not in ("motion", "order"):
            raise UserError(f"labels must be motion or order, not {self.labels!r}")
        if self.labels == "order" and self.digits > 1:
            raise UserError(f"labels order are of one digit a video, not {self.digits}")
        if self.size % 2:
            raise UserError(f"size must be even (yuv420p halves the color planes), not {self.size}")


# Labels and digits ----------------------------------------------------------------------------------------------------


def _rng(seed: int, *key: int) -> np.random.Generator:
    """Return an independent stream for each key, so that no video depends on another or on the process."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))


def labels(settings: Settings, split: str, index: int) -> dict[str, int]:
    """Return the video's label in each label set; every K videos in a row hold each of the K classes once.

    The label sets are shuffled independently of each other.
    """
    found = {}
    for stream, (name, classes) in zip((1, 2, 6), (LABEL_SETS | ORDER_SETS).items(), strict=True):
        block, place = divmod(index, len(classes))
        order = _rng(settings.seed, stream, SPLITS.index(split), block).permutation(len(classes))
        found[name] = int(order[place])
    return found


def digits_present(settings: Settings, split: str, index: int) -> list[int]:
    """Return the different digits of a video with two or more of them, in ascending order."""
    rng = _rng(settings.seed, 4, SPLITS.index(split), index)
    count = int(rng.integers(2, settings.digits + 1))
    return sorted(rng.choice(len(DIGITS), count, replace=False).tolist())


@cache
def load_digits() -> tuple[np.ndarray, np.ndarray]:
    """Return scikit-learn's handwritten digits: images (1797, 8, 8) float32 in [0, 1] and labels (1797,)."""
    from sklearn import datasets  # here, since it takes a second to import

    digits = datasets.load_digits()
    return (digits.images / 16).astype(np.float32), digits.target


@cache
def split_digits(seed: int) -> dict[str, np.ndarray]:
    """Share out the digit images, class by class, so that no image is in two splits; split name -> image indices."""
    _, targets = load_digits()
    parts: dict[str, list[np.ndarray]] = {split: [] for split in SPLITS}
    for digit in range(len(DIGITS)):
        members = _rng(seed, 3, digit).permutation(np.flatnonzero(targets == digit))
        cuts = (np.cumsum(DIGIT_SHARES)[:-1] * len(members)).round().astype(int)
        for split, part in zip(SPLITS, np.split(members, cuts), strict=True):
            parts[split].append(part)
    return {split: np.sort(np.concatenate(part)) for split, part in parts.items()}


# Motion ---------------------------------------------------------------------------------------------------------------


def _loop(frames: int, rng: np.random.Generator) -> np.ndarray:
    """Travel upward along the loop [0, 1) from a random phase; (T,). After its end the loop restarts."""
    return (rng.uniform() + rng.uniform(*LAP_RANGE) * np.linspace(0, 1, frames)) % 1


def _circle(frames: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Travel clockwise on a circle inside the unit square, y downward; x and y, each (T,)."""
    radius = rng.uniform(*CIRCLE_RANGE)
    # Beta(0.4, 0.4) favours the borders: with it the points on all circles fill the square almost evenly, as the
    # positions of the other classes do. Uniform centers would leave the corners empty.
    center_x, center_y = radius + (1 - 2 * radius) * rng.beta(0.4, 0.4, size=2)
    angle = 2 * np.pi * rng.uniform() + np.radians(rng.uniform(*TURN_RANGE)) * np.linspace(0, 1, frames)
    return center_x + radius * np.cos(angle), center_y + radius * np.sin(angle)


def trajectory(motion: str, frames: int, rng: np.random.Generator) -> Trajectory:
    """Draw a path of the named motion over `frames` frames.

    With generators in the same state, opposite motions give time reversals. Raises UserError for an unknown motion.
    """
    if motion not in MOTIONS:
        raise UserError(f"unknown motion {motion!r}; choose one of {', '.join(map(repr, MOTIONS))}")
    pair, is_reversed = divmod(MOTIONS.index(motion), 2)
    x, y, zoom = (np.full(frames, value) for value in rng.uniform(size=3))
    if pair == 0:
        x = _loop(frames, rng)
    elif pair == 1:
        y = 1 - _loop(frames, rng)
    elif pair == 2:
        x, y = _circle(frames, rng)
    else:
        zoom = _loop(frames, rng)
    path = _trajectory_of(x, y, zoom)
    return Trajectory(*(values[::-1] if is_reversed else values for values in path))


def ordered_trajectory(order: str, frames: int, rng: np.random.Generator) -> Trajectory:
    """Draw a path of one of ``ORDERS`` over `frames` frames: each motion travels a lap's share in half of them.

    Both travel along loops from a uniformly random place, so no moment's place says anything about the order.
    """
    low, high = (round(share * frames) for share in CHANGE_RANGE)
    change = int(rng.integers(low, high + 1))
    place, zoom = rng.uniform(size=2), np.full(frames, rng.uniform())
    moves = np.zeros((frames, 2))
    for part, motion in zip((slice(1, change), slice(change, None)), ORDERS[order], strict=True):
        moves[part] = rng.uniform(*LAP_RANGE) * 2 / frames * np.array(DIRECTIONS[motion])
    x, y = ((place + moves.cumsum(0)) % 1).T
    return _trajectory_of(x, y, zoom)


def _trajectory_of(x: np.ndarray, y: np.ndarray, zoom: np.ndarray) -> Trajectory:
    """Return the path of quantities in the unit interval, each (T,)."""
    low, high = POSITION_RANGE
    smallest, largest = SIZE_RANGE
    return Trajectory(low + (high - low) * x, low + (high - low) * y, smallest * (largest / smallest) ** zoom)


# Pictures -------------------------------------------------------------------------------------------------------------


def _cubic(distance: np.ndarray) -> np.ndarray:
    """Keys' cubic interpolation kernel, a = -1/2."""
    d = np.abs(distance)
    return np.where(d <= 1, (1.5 * d - 2.5) * d * d + 1, np.where(d < 2, ((-0.5 * d + 2.5) * d - 4) * d + 2, 0))


def _resample(center: np.ndarray, step: np.ndarray, pixels: int, samples: int) -> np.ndarray:
    """Return the (T, pixels, samples) matrices that draw `samples` source pixels, `step` pixels each, at `center`."""
    place = (np.arange(pixels) + 0.5 - center[:, None]) / step[:, None] + (samples - 1) / 2
    return _cubic(place[:, :, None] - np.arange(samples)).astype(np.float32)


def _stamp(image: np.ndarray, x: np.ndarray, y: np.ndarray, step: np.ndarray, size: int) -> np.ndarray:
    """Draw a small image (h, w) in [0, 1] into T frames at sub-pixel places; opacity (T, size, size) in [0, 1].

    x, y: center in pixels (T,); step: frame pixels per image pixel (T,). Steps are above 1, so nothing can alias.
    """
    rows = _resample(y, step, size, image.shape[0])
    columns = _resample(x, step, size, image.shape[1])
    opacity = np.clip((rows @ image @ columns.transpose(0, 2, 1) - 0.2) / 0.6, 0, 1)
    smoothstep: np.ndarray = opacity * opacity * (3 - 2 * opacity)  # pen strokes with an edge, not a blurred 8x8 grid
    return smoothstep


def _tint(lightness: float, saturation: float, rng: np.random.Generator) -> np.ndarray:
    return np.array(colorsys.hls_to_rgb(rng.uniform(), lightness, saturation), dtype=np.float32)


def _bright(rng: np.random.Generator) -> np.ndarray:
    return _tint(rng.uniform(0.78, 0.92), rng.uniform(0.3, 1.0), rng)


def _background(size: int, rng: np.random.Generator) -> np.ndarray:
    """Return a smooth random texture of two dark tints, (size, size, 3) in [0, 1]."""
    cells = int(rng.integers(4, 9))
    weights = _resample(np.array([size / 2]), np.array([size / (cells - 3)]), size, cells)[0]
    texture = np.clip(weights @ rng.uniform(size=(cells, cells)).astype(np.float32) @ weights.T, 0, 1)[..., None]
    tints = [_tint(lightness, rng.uniform(0.2, 0.6), rng) for lightness in (0.08, 0.32)]
    tinted: np.ndarray = texture * tints[0] + (1 - texture) * tints[1]
    return tinted


def _add_clutter(canvas: np.ndarray, images: np.ndarray, tint: np.ndarray, rng: np.random.Generator) -> None:
    """Paint four still fragments of other digits into the canvas, in the digit's own tint but fainter."""
    size = len(canvas)
    for _ in range(4):
        top, left = rng.integers(0, 6, size=2)
        fragment = images[rng.integers(len(images))][top : top + 3, left : left + 3]
        x, y, step = (np.array([size * rng.uniform(low, high)]) for low, high in ((0, 1), (0, 1), (0.03, 0.07)))
        opacity = rng.uniform(0.3, 0.7) * _stamp(fragment, x, y, step, size)[0, ..., None]
        canvas += opacity * (tint - canvas)


class Sprite(NamedTuple):
    """A small image that moves in a video."""

    image: np.ndarray
    """(8, 8) in [0, 1]."""
    path: Trajectory
    tint: np.ndarray
    """(3,) in [0, 1]."""


def draw_distractors(count: int, others: np.ndarray, frames: int, rng: np.random.Generator) -> list[Sprite]:
    """Return digits with shuffled pixels, each in a motion of its own: as bright as digits, and of no class."""
    shuffled = [rng.permuted(others[rng.integers(len(others))], axis=None) for _ in range(count)]
    return [Sprite(image, trajectory(str(rng.choice(MOTIONS)), frames, rng), _bright(rng)) for image in shuffled]


def render(
    digits: Sequence[np.ndarray],
    paths: Sequence[Trajectory],
    others: np.ndarray,
    size: int,
    rng: np.random.Generator,
    distractors: Sequence[Sprite] = (),
) -> np.ndarray:
    """Draw digits that move along paths over a cluttered, noisy, still background; a later one covers those before.

    digits: each (8, 8) in [0, 1]; others: (n, 8, 8), what the clutter is cut from; size: pixels per side; distractors:
    behind the digits.
    Returns RGB frames (T, size, size, 3) uint8.
    """
    frames = len(paths[0].x)
    # Light on dark, always: a demo must be learned in minutes, and either polarity at random costs most of them.
    canvas = _background(size, rng)
    tint = _bright(rng)
    _add_clutter(canvas, others, tint, rng)

    shake = rng.normal(0, 0.004 * size, size=(frames, 2)).clip(-0.9, 0.9)  # of the camera, in pixels
    video = _shift(canvas, shake)
    shown = [
        Sprite(digit, path, _bright(rng) if number else tint)
        for number, (digit, path) in enumerate(zip(digits, paths, strict=True))
    ]
    for image, path, color in (*distractors, *shown):
        x, y = (size * np.stack(path[:2], axis=1) + shake).T
        opacity = _stamp(image, x, y, size * path.scale / image.shape[0], size)[..., None]
        video += opacity * (color - video)
    video *= rng.normal(1, 0.02, size=(frames, 1, 1, 1)).astype(np.float32)  # flicker of the light
    # Noise of the sensor, the same in all colors: 4:2:0 would average most of the color noise away.
    video += np.float32(0.02) * rng.standard_normal(size=(frames, size, size, 1), dtype=np.float32)
    video *= 255
    return video.clip(0, 255, out=video).round(out=video).astype(np.uint8)


def _shift(canvas: np.ndarray, shake: np.ndarray) -> np.ndarray:
    """Move a canvas (H, W, 3) by (T, 2) fractions of a pixel, x then y, bilinearly, borders repeated; (T, H, W, 3)."""
    height, width, _ = canvas.shape
    padded = np.pad(canvas, ((1, 1), (1, 1), (0, 0)), mode="edge")
    neighbors = np.stack([padded[y : y + height, x : x + width].ravel() for y in range(3) for x in range(3)])
    weights = np.stack([np.maximum(shake, 0), 1 - np.abs(shake), np.maximum(-shake, 0)], axis=-1)  # (T, 2, 3)
    weights = (weights[:, 1, :, None] * weights[:, 0, None, :]).reshape(len(shake), 9).astype(np.float32)
    moved: np.ndarray = (weights @ neighbors).reshape(-1, height, width, 3)
    return moved


# Files ----------------------------------------------------------------------------------------------------------------


def write_h264(path: Path, frames: Iterable[np.ndarray], fps: int, gop: int) -> None:
    """Write RGB frames, each (H, W, 3) uint8, as H.264 (libx264, yuv420p, crf 23) in MP4, a key frame every `gop`."""

    # One thread and no mbtree: the same bytes every time (with mbtree x264 writes small pictures differently from run
    # to run). No scene cuts: where a loop restarts is not a key frame.
    options = {"crf": "23", "preset": "veryfast", "threads": "1", "mbtree": "0", "sc_threshold": "0"}
    with atomic_write(path) as temporary, av.open(str(temporary), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=fps, options=options)
        frames = iter(frames)
        first = next(frames)
        stream.height, stream.width = first.shape[:2]
        stream.pix_fmt = "yuv420p"
        stream.gop_size = gop
        for frame in chain([first], frames):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def _label(settings: Settings, split: str, index: int, label_set: str) -> str:
    if settings.digits > 1:
        return "|".join(map(str, digits_present(settings, split, index)))
    return str(labels(settings, split, index)[label_set])


def _write_manifests(out: Path, settings: Settings) -> None:
    for name, classes in settings.label_sets.items():
        for split in SPLITS:
            rows = (
                f"../videos/{split}/{index:05d}.mp4,{_label(settings, split, index, name)}\n"
                for index in range(getattr(settings, split))
            )
            write_text(out / name / f"{split}.csv", "path,label\n" + "".join(rows))
        write_text(out / name / "classes.txt", "".join(f"{label}\n" for label in classes))


def _write_joined(out: Path, settings: Settings) -> None:
    """Write all test videos one after the other as one file, and where each is in it, in seconds: joined.csv.

    Every other one, at random, lacks its first frame, so that changes lie anywhere in a tubelet.
    """
    lacking = _rng(settings.seed, 7).integers(0, 2, settings.test).tolist()

    def frames() -> Iterator[np.ndarray]:
        for index, first in enumerate(progress(lacking, total=settings.test, label="joining", unit="videos")):
            yield from make_video(settings, "test", index)[first:]

    write_h264(out / "videos" / "joined.mp4", frames(), fps=settings.fps, gop=settings.fps)
    spans: list[list[int]] = []
    for index, end in enumerate(np.cumsum(settings.frames - np.array(lacking)).tolist()):
        label = labels(settings, "test", index)["order"]
        if spans and spans[-1][0] == label:
            spans[-1][2] = end
        else:
            spans.append([label, spans[-1][2] if spans else 0, end])
    rows = (f"../videos/joined.mp4,{label},{start / settings.fps:.6f},{end / settings.fps:.6f}\n"
            for label, start, end in spans)  # fmt: skip
    write_text(out / "order" / "joined.csv", "path,label,start,end\n" + "".join(rows))


# The data set ---------------------------------------------------------------------------------------------------------


def make_video(settings: Settings, split: str, index: int) -> np.ndarray:
    """Return video `index` of a split as RGB frames (T, H, W, 3) uint8; it depends on nothing else."""
    images, targets = load_digits()
    pool = split_digits(settings.seed)[split]
    label = labels(settings, split, index)
    rng = _rng(settings.seed, 0, SPLITS.index(split), index)
    if settings.digits == 1:
        shown, motions = [label["digit"]], [label["motion"]]
    else:
        shown = digits_present(settings, split, index)
        motions = rng.integers(len(MOTIONS), size=len(shown)).tolist()
    chosen = [rng.choice(pool[targets[pool] == digit]) for digit in shown]
    if settings.labels == "order":
        paths = [ordered_trajectory(ORDER_SETS["order"][label["order"]], settings.frames, rng)]
    else:
        paths = [trajectory(MOTIONS[motion], settings.frames, rng) for motion in motions]
    others = images[pool[~np.isin(pool, chosen)]]
    own_stream = _rng(settings.seed, 5, SPLITS.index(split), index)  # all else is as without distractors
    distractors = draw_distractors(settings.distractors, others, settings.frames, own_stream)
    return render(list(images[chosen]), paths, others, settings.size, rng, distractors)


def _video_path(out: Path, split: str, index: int) -> Path:
    return out / "videos" / split / f"{index:05d}.mp4"


def _write_video(video: tuple[str, int], out: Path, settings: Settings) -> None:
    split, index = video
    frames = make_video(settings, split, index)
    write_h264(_video_path(out, split, index), frames, fps=settings.fps, gop=settings.fps)


def _limit_threads() -> Any:
    """Let BLAS use one thread: the matrices are small, and pools of several processes slow each other down."""
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    return threadpool_limits(1)


def _write_videos(out: Path, settings: Settings, videos: list[tuple[str, int]], processes: int) -> None:
    for split in SPLITS:
        (out / "videos" / split).mkdir(parents=True, exist_ok=True)
    write = partial(_write_video, out=out, settings=settings)
    if processes == 1:
        with _limit_threads():
            for _ in progress(map(write, videos), total=len(videos), label="making", unit="videos"):
                pass
        return
    # Spawned, not forked: the caller may hold threads (PyTorch's do not survive a fork).
    with ProcessPoolExecutor(processes, get_context("spawn"), _limit_threads) as workers:
        with deaf_to("SIGINT"):
            results = workers.map(write, videos, chunksize=16)
        try:
            for _ in progress(results, total=len(videos), label="making", unit="videos"):
                pass
        except KeyboardInterrupt:
            end_children()  # rather than wait for what they are doing
            raise


def _remove(out: Path) -> None:
    """Remove a data set; the settings last, so that an interrupted removal is still recognized."""
    for name in (*LABEL_SETS, "order", "digits", "videos"):
        shutil.rmtree(out / name, ignore_errors=True)
    for name in ("settings.json", "settings.partial.json"):
        (out / name).unlink(missing_ok=True)


def _prepare_folder(out: Path, settings: Settings, overwrite: bool) -> bool:
    """Return whether `out` already holds the complete data set; else prepare it to be written or resumed.

    `settings.partial.json` marks a data set that is being written; it becomes `settings.json` at the end.
    """
    complete, begun = out / "settings.json", out / "settings.partial.json"
    known = next((file for file in (complete, begun) if file.exists()), None)
    if known is None and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} holds something other than Moving Digits; choose another --out")
    if known and overwrite:
        _remove(out)
    elif known:
        try:
            found = json.loads(known.read_text(encoding="utf-8"))
        except ValueError:
            found = None
        if not isinstance(found, dict) or ADDED_LATER | found != asdict(settings):
            raise UserError(
                f"{out} holds Moving Digits made with other settings ({known.name}: {found}); "
                "choose another --out or pass --overwrite"
            )
        if known == complete:
            return True
    write_json(begun, asdict(settings), indent=2)
    return False


def make_moving_digits(
    out: str | Path,
    *,
    train: int = 4800,
    val: int = 160,
    test: int = 480,
    size: int = 64,
    frames: int = 24,
    fps: int = 12,
    seed: int = 0,
    digits: int = 1,
    distractors: int = 0,
    labels: str = "motion",
    processes: int | None = None,
    overwrite: bool = False,
) -> bool:
    """Write Moving Digits into the folder `out`; return False where it was complete already and nothing was written.

    train, val, test: videos per split; size: pixels per side; fps: frames per second, and the distance of key frames;
    digits, distractors: in a video, see ``Settings``.
    labels: "motion", or "order", whose test videos are joined to one long video too, with its list order/joined.csv.
    processes: default one per core; the files do not depend on it. An interrupted data set is resumed.
    Raises UserError for a setting that is out of range, and where `out` holds something else or, without `overwrite`,
    the data set with other settings.
    """
    out = Path(out)
    settings = Settings(
        train, val, test, size, frames, fps, seed, digits=digits, distractors=distractors, labels=labels
    )
    settings.validate()
    processes = (os.cpu_count() or 1) if processes is None else processes
    if processes < 1:
        raise UserError(f"processes must be at least 1, not {processes}")
    if _prepare_folder(out, settings, overwrite):
        return False
    videos = [(split, index) for split in SPLITS for index in range(getattr(settings, split))]
    # A video gets its name once it is complete, so those that exist are not made again.
    missing = [video for video in videos if not _video_path(out, *video).exists()]
    _write_videos(out, settings, missing, processes)
    _write_manifests(out, settings)
    if settings.labels == "order":
        _write_joined(out, settings)
    os.replace(out / "settings.partial.json", out / "settings.json")
    return True
