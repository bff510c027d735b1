"""Saved features: .npy, .safetensors or Parquet; collected in a folder next to the file, so that a kill loses little.

Shape letters: R rows (clips of all videos), N tokens, D width.
"""

import logging
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import simplejson
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from lookupvit_video.distributed.world import World, gather_objects
from lookupvit_video.errors import UserError
from lookupvit_video.files import atomic_write, write_json
from lookupvit_video.inference.features.extract import VideoFeatures
from lookupvit_video.processes.lock import only_writer

logger = logging.getLogger(__name__)
SUFFIXES = (".npy", ".safetensors", ".parquet")
_BLOCK = 4096  # rows copied at once
_EVERY = 1.0  # seconds from one writing to the disk to the next


@dataclass(frozen=True)
class SavedFeatures:
    """The features in a file."""

    about: dict[str, Any]
    """Which features they are: ``tokens``, ``grid``, ``model`` (a hash of its weights), how videos were read."""
    paths: list[str]
    """(R,): the video of each row; the rows of a video follow each other."""
    times: np.ndarray
    """(R, 2) float64: seconds of the first and the last frame of each clip."""
    rows: np.ndarray
    """(R, D) or (R, N, D) float32 or float16; of a .npy file read from disk as needed."""

    def videos(self) -> Iterator[VideoFeatures]:
        """Yield the features of one video after the other."""
        for path, group in groupby(range(len(self.paths)), key=self.paths.__getitem__):
            first, *others = group
            chosen = slice(first, first + 1 + len(others))
            yield VideoFeatures(path, self.times[chosen], self.rows[chosen])


def check_name(path: str | Path) -> None:
    """Raise UserError where features cannot be written to, or read from, a file of this name."""
    if Path(path).suffix.lower() not in SUFFIXES:
        raise UserError(f"{path}: a file of features ends in {', '.join(SUFFIXES)}")
    if Path(path).suffix.lower() == ".parquet":
        _pyarrow()


def _pyarrow() -> Any:
    try:
        import pyarrow.parquet
    except ImportError:
        raise UserError('Parquet needs pyarrow: pip install "lookupvit_video[parquet]", or write .npy') from None
    return pyarrow


# The finished file ----------------------------------------------------------------------------------------------------


def load_features(path: str | Path) -> SavedFeatures:
    """Read a file of ``FeatureFile``.

    Raises:
        UserError: it is not one, or it is damaged.
    """
    check_name(path)
    reader = {".npy": _read_npy, ".safetensors": _read_safetensors, ".parquet": _read_parquet}[_suffix(path)]
    try:
        facts, rows = reader(str(path))
        saved = SavedFeatures(facts["about"], facts["paths"], np.array(facts["times"], np.float64).reshape(-1, 2), rows)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from None
    except (ValueError, KeyError, TypeError, SafetensorError) as error:
        raise UserError(f"{path}: no features of this project, or damaged ({error})") from None
    if not len(saved.paths) == len(saved.times) == len(rows):
        raise UserError(f"{path}: damaged: {len(saved.paths)} paths and {len(rows)} rows")
    return saved


def _suffix(path: str | Path) -> str:
    return Path(path).suffix.lower()


def _facts_file(path: str | Path) -> str:
    return f"{path}.json"


def _read_npy(path: str) -> tuple[Mapping[str, Any], np.ndarray]:
    with open(_facts_file(path), encoding="utf-8") as file:
        return simplejson.load(file), np.load(path, mmap_mode="r", allow_pickle=False)


def _read_safetensors(path: str) -> tuple[Mapping[str, Any], np.ndarray]:
    with safe_open(path, "numpy") as file:
        return simplejson.loads((file.metadata() or {})["features"]), file.get_tensor("features")


def _read_parquet(path: str) -> tuple[Mapping[str, Any], np.ndarray]:
    pyarrow = _pyarrow()
    try:
        table = pyarrow.parquet.read_table(path)
        facts = simplejson.loads((table.schema.metadata or {})[b"features"])
    except pyarrow.ArrowException as error:
        raise ValueError(str(error).splitlines()[0]) from None
    rows = table["features"].combine_chunks().values.to_numpy(zero_copy_only=False).reshape(-1, *facts["shape"])
    times = np.stack([table["start"].to_numpy(), table["end"].to_numpy()], axis=1)
    return {"about": facts["about"], "paths": table["path"].to_pylist(), "times": times}, rows


def _write_npy(path: Path, saved: SavedFeatures, order_R: np.ndarray) -> None:
    facts = {"about": saved.about, "paths": [saved.paths[row] for row in order_R], "times": saved.times[order_R]}
    shape = (len(order_R), *saved.rows.shape[1:])
    with atomic_write(path) as temporary:
        out = np.lib.format.open_memmap(temporary, "w+", saved.rows.dtype, shape)
        for first in range(0, len(order_R), _BLOCK):
            out[first : first + _BLOCK] = saved.rows[order_R[first : first + _BLOCK]]
        out.flush()
        write_json(_facts_file(path), facts | {"times": facts["times"].tolist()}, indent=None)


def _write_safetensors(path: Path, saved: SavedFeatures, order_R: np.ndarray) -> None:
    facts = {"about": saved.about, "paths": [saved.paths[row] for row in order_R]}
    text = simplejson.dumps(facts | {"times": saved.times[order_R].tolist()})
    with atomic_write(path) as temporary:
        save_file({"features": saved.rows[order_R]}, str(temporary), {"features": text})


def _write_parquet(path: Path, saved: SavedFeatures, order_R: np.ndarray) -> None:
    pyarrow, shape = _pyarrow(), list(saved.rows.shape[1:])
    width = int(np.prod(shape))
    kind = pyarrow.list_(pyarrow.from_numpy_dtype(saved.rows.dtype), width)
    columns = [("path", pyarrow.string()), ("start", pyarrow.float64()), ("end", pyarrow.float64()), ("features", kind)]
    schema = pyarrow.schema(columns, {"features": simplejson.dumps({"about": saved.about, "shape": shape})})
    with atomic_write(path) as temporary, pyarrow.parquet.ParquetWriter(temporary, schema) as writer:
        for first in range(0, len(order_R), _BLOCK):
            part = order_R[first : first + _BLOCK]
            flat = pyarrow.array(saved.rows[part].reshape(-1))
            values = [
                [saved.paths[row].encode("utf-8", "backslashreplace").decode() for row in part],
                saved.times[part, 0], saved.times[part, 1],
                pyarrow.FixedSizeListArray.from_arrays(flat, width),
            ]  # fmt: skip
            writer.write_table(pyarrow.table(values, schema=schema))


# While it is made -----------------------------------------------------------------------------------------------------


class FeatureFile:
    """A file of features in the making: a killed run keeps what it has, and ``resume`` adds the missing videos.

    Until ``finish`` the rows are in a folder next to the file, ``NAME.partial``. Rows are in the order of the videos
    given to ``finish``, so that the file has the same bytes in whatever order, and in how many runs, they came.

    Args:
        path: ends in one of ``SUFFIXES``. A .npy file gets paths and times in NAME.npy.json.
        about: see ``SavedFeatures``; on resume those in the file must be the same.
        resume: keep the features of an earlier run, finished or not.
        half: store float16.

    Raises:
        UserError: another process writes to the file, its name has no known suffix, or ``about`` differs.
    """

    def __init__(self, path: str | Path, about: Mapping[str, Any], *, resume: bool = False, half: bool = False):
        check_name(path)
        self.path, self.dtype = Path(path), np.dtype(np.float16 if half else np.float32)
        self.about = {**about, "dtype": self.dtype.name}
        self.folder = self.folder_of(self.path)
        self._shape: tuple[int, ...] | None = None
        self._videos: list[tuple[str, list[list[float]]]] = []
        self._lines, self._saved = "", time.monotonic()  # of the index that are not written yet, and since when
        with ExitStack() as stack:
            lock_file = self.path.with_name(f".{self.path.name}.lock")
            stack.enter_context(only_writer(str(lock_file), str(path), "choose another file or stop it"))
            self._open(resume, stack)
            self._stack = stack.pop_all()

    @staticmethod
    def folder_of(path: Path) -> Path:
        """The folder of a file in the making."""
        return path.with_name(f"{path.name}.partial")

    @property
    def done(self) -> set[str]:
        """The videos whose features it has."""
        return {path for path, _ in self._videos}

    def _open(self, resume: bool, stack: ExitStack) -> None:
        index = self.folder / "videos.jsonl"
        lines = _complete_lines(index) if resume else []
        self.folder.mkdir(parents=True, exist_ok=True)
        if lines:
            self._check_same(lines[0]["about"])
            self._shape = tuple(lines[0]["shape"])
            self._videos = [(path, times) for line in lines[1:] for path, times in line["videos"]]
        self._rows = stack.enter_context((self.folder / "rows.bin").open("ab"))
        self._index = stack.enter_context(index.open("a", encoding="ascii"))
        kept = sum(len(times) for _, times in self._videos)
        self._rows.truncate(kept * int(np.prod(self._shape or ())) * self.dtype.itemsize)
        self._index.truncate(sum(len(line["text"]) for line in lines))
        if resume and not lines and self.path.exists():
            saved = load_features(self.path)
            self._check_same(saved.about)
            for video in saved.videos():
                self.add([video])
        for part in _part_folders(self.path):
            if resume:
                self.take(part)
            shutil.rmtree(part)

    def _check_same(self, about: Mapping[str, Any]) -> None:
        for name in sorted({*about, *self.about}):
            if about.get(name) != self.about.get(name):
                now, then = self.about.get(name), about.get(name)
                raise UserError(f"{self.path}: --resume: made with {name} {then}, now {now}; write to another file")

    def add(self, videos: Sequence[VideoFeatures]) -> None:
        """Add the features of some videos: all of them, or after a kill none; a kill loses the last second."""
        for video in videos:
            if self._shape is None:
                self._shape = video.rows.shape[1:]
                self._write_line({"about": self.about, "shape": list(self._shape)})
            self._rows.write(np.ascontiguousarray(video.rows, self.dtype).tobytes())
        added = [(video.path, video.times.tolist()) for video in videos]
        if added:
            self._write_line({"videos": added})
        self._videos += added
        if time.monotonic() > self._saved + _EVERY:
            self.save()

    def take(self, folder: Path) -> None:
        """Add what another process has collected in its folder, each video once."""
        lines = _complete_lines(folder / "videos.jsonl")
        if not lines:
            return
        self._check_same(lines[0]["about"])
        videos = [(path, times) for line in lines[1:] for path, times in line["videos"]]
        if not videos:
            return
        rows, first, done = _mapped_rows(folder, self.dtype, lines[0]["shape"], videos), 0, self.done
        for path, times in videos:
            if path not in done:
                self.add([VideoFeatures(path, np.array(times, np.float64), rows[first : first + len(times)])])
            first += len(times)
        self.save()

    def _write_line(self, content: Mapping[str, Any]) -> None:
        self._lines += simplejson.dumps(content) + "\n"

    def save(self) -> None:
        """Write what was added: rows first, then the lines that count on them."""
        self._rows.flush()
        os.fsync(self._rows.fileno())
        self._index.write(self._lines)
        self._index.flush()
        self._lines, self._saved = "", time.monotonic()

    def finish(self, videos: Sequence[str]) -> int:
        """Write the file with the rows in the order of some videos, then those of others; return their number.

        Without any rows there is no file.
        """
        places, start = {}, 0
        for path, times in self._videos:
            places[path] = range(start, start + len(times))
            start += len(times)
        if not start:
            return 0
        self.save()
        assert self._shape is not None
        paths = [path for path, times in self._videos for _ in times]
        times_R2 = np.array([pair for _, times in self._videos for pair in times], np.float64)
        rows = _mapped_rows(self.folder, self.dtype, self._shape, self._videos)
        saved = SavedFeatures(self.about, paths, times_R2, rows)
        names = [name for name in dict.fromkeys([*videos, *places]) if name in places]
        order_R = np.concatenate([np.arange(places[name].start, places[name].stop) for name in names])
        write = {".npy": _write_npy, ".safetensors": _write_safetensors, ".parquet": _write_parquet}
        write[_suffix(self.path)](self.path, saved, order_R)
        return start

    def __enter__(self) -> "FeatureFile":
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self.save()
        if kind is None:
            for name in ("rows.bin", "videos.jsonl"):
                (self.folder / name).unlink()
            self.folder.rmdir()
        self._stack.close()


def _mapped_rows(
    folder: Path, dtype: np.dtype, shape: Sequence[int], videos: Sequence[tuple[str, list[list[float]]]]
) -> np.ndarray:
    """Return the rows of some videos, the first ones in a folder."""
    count = sum(len(times) for _, times in videos)
    return np.memmap(folder / "rows.bin", dtype, "r", shape=(count, *shape))


def _part_file(path: Path, rank: int) -> Path:
    return path.with_name(f".{path.stem}.part-{rank:04d}{path.suffix}")


def _part_folders(path: Path) -> list[Path]:
    """The folders of processes that shared a file and were killed."""
    start, end = f".{path.stem}.part-", f"{path.suffix}.partial"
    return sorted(file for file in path.parent.glob(".*") if file.name.startswith(start) and file.name.endswith(end))


@contextmanager
def shared_feature_file(
    path: str | Path, about: Mapping[str, Any], videos: Sequence[str], *, resume: bool, half: bool, world: World
) -> Iterator[tuple[FeatureFile, set[str]]]:
    """Open a file that all processes add to, see ``FeatureFile``, and finish it; yield with it which videos it has.

    Each process has a folder of its own until all are finished; then the main one puts them together. What is left of a
    run that was killed is taken in by the next one with ``resume``, whatever the number of its processes.

    Args:
        videos: their order is that of the rows.
    """
    if world.size == 1:
        with FeatureFile(path, about, resume=resume, half=half) as file:
            yield file, file.done
            _finish(file, videos)
        return
    with ExitStack() as stack:
        main, error = None, None
        if world.is_main:
            try:
                main = stack.enter_context(FeatureFile(path, about, resume=resume, half=half))
            except UserError as raised:
                error = raised
        failed, done = gather_objects((str(error or ""), main.done if main else set[str]()), world)[0]
        if failed:
            raise error or UserError(failed)
        with FeatureFile(_part_file(Path(path), world.rank), about, half=half) as part:
            yield part, set(done)
            part.save()
            gather_objects(None, world)  # all are finished
            if main:
                for rank in range(world.size):
                    main.take(FeatureFile.folder_of(_part_file(Path(path), rank)))
                _finish(main, videos)
            gather_objects(None, world)  # all are taken


def _finish(file: FeatureFile, videos: Sequence[str]) -> None:
    if rows := file.finish(videos):
        logger.info("%s: %d rows", file.path, rows)


def _complete_lines(path: Path) -> list[dict[str, Any]]:
    """Return the lines of the index of an earlier run up to an incomplete one; ``text`` has each as it is."""
    lines: list[dict[str, Any]] = []
    if path.exists():
        for text in path.read_text(encoding="ascii", errors="replace").splitlines(keepends=True):
            if not text.endswith("\n"):
                break
            try:
                lines.append({**simplejson.loads(text), "text": text})
            except (ValueError, TypeError):
                break
    return lines
