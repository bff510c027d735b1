"""A folder of numbered pictures (jpg, png), read as a video: picture k is shown from (k - first) / rate seconds on."""

import os
import re
from collections.abc import Callable, Sequence
from functools import cached_property
from itertools import pairwise

import numpy as np
import torch
from PIL import Image, ImageOps

from lookupvit_video.decoding.reader import (
    LOST_FRAMES,
    PICTURE_DATA,
    PICTURE_SIZE,
    Box,
    Damage,
    DamageList,
    Deadline,
    DecodeError,
    VideoInfo,
    VideoReader,
    checked_times,
    shown_at,
)

_PICTURE = re.compile(r"(.*?)(\d+)\.(jpg|jpeg|png)", re.IGNORECASE | re.DOTALL)
_EIGHT_BITS = frozenset({"1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr"})


def holds_pictures(folder: str) -> bool:
    """Whether there is a numbered picture in a folder; what is wrong with them is for the reader to say."""
    try:
        with os.scandir(folder) as found:
            return any(_PICTURE.fullmatch(entry.name) and entry.name[0] != "." for entry in found)
    except OSError:
        return False


def numbered_pictures(folder: str) -> tuple[list[int], list[str]]:
    """Return the numbers, ascending, and the file names of the pictures in a folder; none: empty lists.

    Raises:
        DecodeError: the folder cannot be read, holds several series of pictures, or a number twice.
    """
    try:
        with os.scandir(folder) as found:
            matches = [match for entry in found if (match := _PICTURE.fullmatch(entry.name)) and entry.name[0] != "."]
    except OSError as error:
        raise DecodeError(folder, error.strerror or str(error)) from error
    series = sorted({(match[1], match[3].lower()) for match in matches})
    if len(series) > 1:
        names = ", ".join(f"{stem}*.{suffix}" for stem, suffix in series[:3])
        raise DecodeError(folder, f"holds several series of pictures ({names}); put each into a folder of its own")
    of_number = {int(match[2]): match[0] for match in matches}
    if len(of_number) < len(matches):
        raise DecodeError(folder, "holds two pictures of the same number, such as 1 and 01; remove one of them")
    numbers = sorted(of_number)
    return numbers, [of_number[number] for number in numbers]


class FrameFolder(VideoReader):
    """Reads the pictures of a folder.

    What is wrong is damage as in a video: a missing number is a lost frame, and a picture that cannot be decoded is
    replaced by the last one before it that can. A picture of another size than the first is brought to its size.

    Args:
        rate: pictures a second.
        timeout: see ``open_video``.

    Raises:
        DecodeError: there are no numbered pictures in it, or no rate is given.
    """

    def __init__(self, path: str, rate: float, timeout: float = 0.0):
        self.path = path
        numbers, self._names = numbered_pictures(path)
        if not numbers:
            raise DecodeError(path, "is a directory without numbered pictures (00001.jpg, 00002.jpg), not a video")
        if not rate:
            raise DecodeError(
                path, "is a folder of pictures, and their rate is not known: a column fps, or DATA.FRAME_RATE"
            )
        self.rate, self._deadline, self._damage = rate, Deadline(path, timeout), DamageList()
        self.times = (np.array(numbers) - numbers[0]) / rate
        count = numbers[-1] - numbers[0] + 1
        self.duration = count / rate
        if count > len(numbers):
            gap = next(a + 1 for a, b in pairwise(numbers) if b > a + 1)
            self._damage.note(LOST_FRAMES, f"{count - len(numbers)} of {count} pictures are missing, the first {gap}")

    @cached_property
    def _size(self) -> tuple[int, int]:
        """Width and height of the first picture that can be decoded.

        Raises:
            DecodeError: none can.
        """
        for index in range(len(self._names)):
            picture = self._decoded(index)
            if picture is not None:
                return picture.size
        raise DecodeError(self.path, f"none of its {len(self._names)} pictures can be decoded")

    @property
    def info(self) -> VideoInfo:
        """See `VideoReader.info`."""
        suffix = os.path.splitext(self._names[0])[1].lower().lstrip(".")
        codec = "png" if suffix == "png" else "jpeg"
        return VideoInfo(codec, *self._size, self.rate, self.duration, len(self._names))

    @property
    def damage(self) -> Sequence[Damage]:
        """See `VideoReader.damage`."""
        return tuple(self._damage)

    def frames_at(self, seconds: Sequence[float], window: Callable[[int, int], Box] | None = None) -> torch.Tensor:
        """See `VideoReader.frames_at`."""
        self._deadline.restart()
        indices = shown_at(self.times, checked_times(self.path, seconds)).tolist()
        wanted = sorted(set(indices))
        width, height = self._size
        box = window(height, width) if window else Box(0, 0, height, width)
        frames = np.empty((len(wanted), box.height, box.width, 3), dtype=np.uint8)
        for slot, index in zip(frames, wanted, strict=True):
            slot[...] = box.cut(np.asarray(self._picture(index)))
        return torch.from_numpy(frames if indices == wanted else frames[np.searchsorted(wanted, indices)])

    def look_at_all(self) -> None:
        """See `VideoReader.look_at_all`."""
        for index in range(len(self._names)):
            self._picture(index)

    def close(self) -> None:
        """See `VideoReader.close`."""

    def _picture(self, index: int) -> Image.Image:
        """Return the picture at an index, or what is shown in its place, in the size of the first."""
        size = self._size
        for at in [*range(index, -1, -1), *range(index + 1, len(self._names))]:
            picture = self._decoded(at)
            if picture is None:
                continue
            if picture.size != size:
                self._damage.note(PICTURE_SIZE, f"{self._names[at]} is {picture.size}, the first {size}")
                return picture.resize(size, Image.Resampling.BILINEAR)
            return picture
        raise DecodeError(self.path, f"none of its {len(self._names)} pictures can be decoded")

    def _decoded(self, index: int) -> Image.Image | None:
        """Return a picture in RGB and upright; None where it cannot be decoded."""
        self._deadline.check()
        name = self._names[index]
        try:
            with Image.open(os.path.join(self.path, name), formats=("JPEG", "PNG")) as file:
                if file.mode not in _EIGHT_BITS:
                    raise DecodeError(self.path, f"{name} has more than 8 bits a color ({file.mode}); convert it")
                return ImageOps.exif_transpose(file).convert("RGB")
        except DecodeError:
            raise
        except Exception as error:  # a damaged picture makes Pillow and zlib raise all sorts of errors
            self._damage.note(PICTURE_DATA, f"{name} cannot be decoded: {error}")
            return None
