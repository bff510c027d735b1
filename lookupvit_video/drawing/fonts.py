"""Names in any script: which fonts of this machine have their letters, and what pictures show of letters that none has.

DejaVu Sans comes with matplotlib and has Latin, Greek, Cyrillic, Arabic and more. Chinese, Japanese, Korean, Indic and
other letters come from fonts of the system.
"""

import logging
import re
import unicodedata
from dataclasses import replace
from functools import cache
from pathlib import Path

import matplotlib
from matplotlib.font_manager import findSystemFonts, fontManager, ttfFontProperty
from matplotlib.ft2font import FT2Font

from lookupvit_video.text import printable, shortened

logger = logging.getLogger(__name__)
_FOLDER = Path(matplotlib.get_data_path(), "fonts", "ttf")
REGULAR, BOLD = str(_FOLDER / "DejaVuSans.ttf"), str(_FOLDER / "DejaVuSans-Bold.ttf")
extra_families: list[str] = []
"""Of the system's fonts that letters so far have needed."""


@cache
def font_of(letter: str) -> str | None:
    """Return the file of the font that draws a letter: DejaVu Sans where possible; None: no font here has it."""
    if ord(letter) in _default_letters():
        return REGULAR
    path = _system_letters().get(ord(letter))
    if path and (entry := ttfFontProperty(FT2Font(path))).name not in extra_families:
        # Its own list may be older than the font; the font serves for bold text too.
        fontManager.ttflist += [entry, replace(entry, weight=700)]
        extra_families.append(entry.name)
    return path


@cache
def _default_letters() -> frozenset[int]:
    return frozenset(FT2Font(REGULAR).get_charmap().keys() & FT2Font(BOLD).get_charmap().keys())


@cache
def _system_letters() -> dict[int, str]:
    """The file of a font for each letter, an upright one of regular weight where there is one."""
    fonts: dict[int, str] = {}
    for path in sorted(
        findSystemFonts(), key=lambda path: (bool(re.search("regular|book", Path(path).name, re.I)), path)
    ):
        try:
            font = FT2Font(path)
        except (OSError, RuntimeError):  # damaged, or of a kind that matplotlib cannot draw
            continue
        if font.scalable and "resort" not in font.family_name.lower():  # the Last Resort font draws boxes
            fonts |= dict.fromkeys(font.get_charmap(), path)
    return fonts


def drawable(text: str) -> str:
    r"""Return text that a picture can show: letters that no font here has as \u725b, those of no alphabet as "?"."""
    return "".join(letter if font_of(letter) else _escaped(letter) for letter in printable(text))


def _escaped(letter: str) -> str:
    _note_missing(unicodedata.name(letter, "unnamed").partition(" ")[0])
    return ascii(letter)[1:-1]


@cache
def _note_missing(script: str) -> None:
    """Log once for a script that its letters have no font."""
    logger.warning(
        "no font of this machine has some %s letters: pictures show their codes, such as \\u725b, and the numbers of "
        "classes; install a font that has them, such as Noto Sans", script,
    )  # fmt: skip


def class_label(name: str, number: int, length: int = 28) -> str:
    r"""Return a class's name as pictures show it; where letters have no font, its number first: "2: \u725b\u4e73"."""
    shown = drawable(name)
    return shortened(shown if shown == printable(name) else f"{number}: {shown}", length)
