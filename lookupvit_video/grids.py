"""Grids of tokens as text: (4, 7, 7) and "4x7x7"."""

from collections.abc import Sequence

from lookupvit_video.errors import UserError


def grid_name(grid: Sequence[int]) -> str:
    """Return a grid as text: (4, 7, 7) -> "4x7x7"."""
    return "x".join(map(str, grid))


def parse_grid(text: str) -> tuple[int, ...]:
    """Return the grid that a text such as "4x7x7" names.

    Raises:
        UserError: it names none.
    """
    parts = text.split("x")
    if len(parts) not in (2, 3) or not all(part.isascii() and part.isdecimal() and len(part) < 6 for part in parts):
        raise UserError(f"grid {text!r}: write t x h x w as 4x7x7, or h x w as 7x7 for a factorised encoder")
    return tuple(map(int, parts))
