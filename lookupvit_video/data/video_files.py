"""Which files below a folder are videos, by their suffix: all suffixes of what the installed libav opens as a video.

One rule for training's class folders, the check, predictions and the preparation of data sets. What is left out is
counted by suffix and logged. Files given by name are opened whatever they are called.
"""

import logging
import os
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

from av.format import ContainerFormat

from lookupvit_video.errors import UserError

logger = logging.getLogger(__name__)

# libav's demuxers of video, and suffixes that libav does not list for them. Sound, pictures, text and raw pixels
# without a header are none of them; a demuxer that the installed libav lacks adds nothing.
_DEMUXERS = {
    "mov": ".qt .mqv .insv .lrv .360", "matroska": "", "avi": ".divx .amv", "flv": "", "live_flv": "", "kux": "",
    "asf": ".asf .wmv", "mpegts": ".ts .m2ts .mts .m2t .trp .tp .tod",
    "mpeg": ".mpg .mpeg .mpe .m2p .vob .dvd .evo .vro",
    "mpegvideo": ".m1v .m2v .mpv", "ogg": ".ogv .ogm", "rm": ".rm .rmvb", "mxf": ".mxf", "dv": "", "gxf": ".gxf",
    "gif": "", "apng": ".apng", "nut": "", "nsv": ".nsv", "nuv": ".nuv", "ivf": ".ivf", "wtv": ".wtv", "dhav": "",
    "h261": "", "h263": ".h263", "h264": "", "hevc": "", "vvc": "", "evc": "", "apv": "", "av1": "", "obu": "",
    "m4v": "", "mjpeg": "", "smjpeg": "", "cavsvideo": ".cavs", "avs2": "", "avs3": "", "dirac": ".drc .vc2",
    "dnxhd": ".dnxhd .dnxhr", "vc1": "", "vc1test": "", "yuv4mpegpipe": "", "film_cpk": ".cpk", "flic": ".fli .flc",
    "filmstrip": "", "bink": ".bik", "smk": ".smk", "roq": ".roq", "thp": ".thp", "vmd": ".vmd", "rpl": ".rpl",
    "ipmovie": ".mve", "vivo": "", "usm": "", "ser": "", "mlv": ".mlv", "cine": ".cine", "lxf": ".lxf", "pva": ".pva",
    "ty": "", "ifv": "", "simbiosis_imx": "", "xmv": "", "moflex": "", "mods": "", "pdv": "", "cdxl": "", "ipu": "",
    "pmp": ".pmp", "mtv": ".mtv", "mvi": "", "4xm": ".4xm", "gdv": ".gdv", "iv8": ".iv8",
}  # fmt: skip
# Listed by libav for these demuxers, and seldom or never a video by itself: sound, subtitles, pictures, scripts.
_OTHERS = frozenset({".m4a", ".m4b", ".ism", ".isma", ".mka", ".mks", ".ogg", ".heic", ".heif", ".avif", ".mpo",
                     ".avs", ".dif", ".xl", ".ty+"})  # fmt: skip
_SHOWN = 6  # suffixes named in one line


@cache
def video_suffixes() -> frozenset[str]:
    """All suffixes of videos, in lower case and with their dot."""
    found: set[str] = set()
    for name, more in _DEMUXERS.items():
        try:
            listed = ContainerFormat(name, "r").extensions
        except ValueError:  # not in this build
            continue
        found.update(f".{suffix}" for suffix in listed)
        found.update(more.split())
    return frozenset(found - _OTHERS)


def is_video_name(name: str | os.PathLike[str]) -> bool:
    """Whether a file has the suffix of a video; hidden files have none."""
    base = os.path.basename(os.fspath(name))
    return not base.startswith(".") and os.path.splitext(base)[1].lower() in video_suffixes()


class VideoFiles(NamedTuple):
    """The videos below a folder, and how many files of each suffix are none."""

    videos: list[Path]
    """Sorted."""
    left_out: Counter[str]
    """Suffix in lower case, or "" where a file has none -> files."""


def find_video_files(
    folder: str | os.PathLike[str], seen: set[tuple[int, int]] | None = None, pictures: str = ""
) -> VideoFiles:
    """Look at every file below a folder; symbolic links are followed, each folder once; hidden files are skipped.

    Args:
        seen: see ``walk_files``.
        pictures: suffix of pictures; a folder that holds some counts as a video.

    Raises:
        UserError: a folder cannot be read.
    """
    videos, left_out = set[Path](), Counter[str]()
    for file in walk_files(Path(folder), set() if seen is None else seen):
        if is_video_name(file):
            videos.add(file)
        elif pictures and file.suffix.lower() == pictures:
            videos.add(file.parent)
        else:
            left_out[file.suffix.lower()] += 1
    return VideoFiles(sorted(videos), left_out)


def some_videos(folder: str | os.PathLike[str], found: VideoFiles, advice: str = "") -> list[Path]:
    """Return what was found below a folder, and log what was left out.

    Raises:
        UserError: no video was found; it ends with ``advice``.
    """
    line = left_out_line(found.left_out)
    if not found.videos:
        raise UserError(
            f"{os.fspath(folder)}: no video below it: no file has the suffix of one, such as .mp4, .webm, .mkv, .avi "
            f"or .mov ({line or 'there is no file at all'}){advice}"
        )
    if line:
        logger.info("%s: %s", folder, line)
    return found.videos


def video_names(folder: Path, left_out: Counter[str], changed: dict[str, int]) -> list[str]:
    """Return the videos below a folder, relative to it and in the order of ``find_video_files``.

    Args:
        left_out: other files are counted here, see ``VideoFiles``.
        changed: gets the time of the last change of each folder, in nanoseconds.

    Raises:
        UserError: a folder cannot be read.
    """
    names = []
    for name in _walk(str(folder), "", set(), changed):
        if is_video_name(name):
            names.append(name)
        else:
            left_out[os.path.splitext(name)[1].lower()] += 1
    return sorted(names, key=lambda name: name.replace("/", "\0"))  # part by part, as paths are


def walk_files(folder: Path, seen: set[tuple[int, int]]) -> Iterator[Path]:
    """Every file below a folder that is not hidden, in no order; ``seen``: folders that were looked at.

    Raises:
        UserError: a folder cannot be read.
    """
    return (folder / name for name in _walk(str(folder), "", seen, {}))


def _walk(root: str, below: str, seen: set[tuple[int, int]], changed: dict[str, int]) -> Iterator[str]:
    """Every file below a folder of ``root``, relative to it; see ``walk_files``."""
    folder = os.path.join(root, below) if below else root
    try:
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in seen:
            return
        seen.add((status.st_dev, status.st_ino))
        changed[folder] = status.st_mtime_ns
        with os.scandir(folder) as found:
            entries = [(entry.name, entry.is_dir()) for entry in found if not entry.name.startswith(".")]
    except OSError as error:
        raise UserError(f"{folder}: this folder cannot be read ({error.strerror}); make it readable") from None
    for name, is_folder in entries:
        path = f"{below}/{name}" if below else name
        if is_folder:
            yield from _walk(root, path, seen, changed)
        else:
            yield path


def left_out_line(left_out: Counter[str]) -> str:
    """What was left out, such as "left out 12 files without a video's suffix: 10 .txt, 2 .json"; nothing: empty."""
    if not left_out:
        return ""
    total = left_out.total()
    by_count = sorted(left_out.items(), key=lambda item: (-item[1], item[0]))
    kinds = [f"{count} {suffix or 'without any'}" for suffix, count in by_count]
    more = f", {len(kinds) - _SHOWN} more suffixes" if len(kinds) > _SHOWN else ""
    return f"left out {total} file{'s' * (total > 1)} without a video's suffix: {', '.join(kinds[:_SHOWN])}{more}"
