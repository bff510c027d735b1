"""One static HTML page with what a person should look at: each kind of problem with thumbnails of its videos."""

import base64
import html
import io
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from lookupvit_video.text import printable, write_text

_STYLE = """body{font:14px/1.45 system-ui,sans-serif;margin:2rem auto;max-width:75rem;padding:0 1rem;color:#222}
h1{font-size:1.4rem}h2{font-size:1.1rem;margin:2rem 0 .2rem}p{margin:.2rem 0 .8rem;color:#555}
.videos{display:grid;grid-template-columns:repeat(auto-fill,minmax(22rem,1fr));gap:1rem}
figure{margin:0;border:1px solid #ddd;border-radius:6px;overflow:hidden;background:#fafafa}
figure img{width:100%;display:block}figcaption{padding:.4rem .6rem;overflow-wrap:anywhere}
small{color:#666}table{border-collapse:collapse}td,th{padding:.15rem .9rem .15rem 0;text-align:left}"""


class Card(NamedTuple):
    """A video on the page."""

    title: str
    path: str
    detail: str
    picture: np.ndarray | None = None
    """uint8 (H, W, 3): frames side by side; None: it cannot be read."""


class Section(NamedTuple):
    """A kind of problem."""

    title: str
    advice: str
    cards: Sequence[Card] = ()
    table: Sequence[Sequence[str]] = ()
    """Rows, the first one a header."""


def write_page(path: Path, title: str, facts: Sequence[tuple[str, str]], sections: Sequence[Section]) -> None:
    """Write the page, completely or not at all.

    Args:
        facts: name and value of each line below the title.
    """
    parts = [f"<h1>{_text(title)}</h1>", _table([[name, value] for name, value in facts])]
    for section in sections:
        parts.append(f"<h2>{_text(section.title)}</h2><p>{_text(section.advice)}</p>")
        if section.table:
            parts.append(_table(section.table[1:], section.table[0]))
        if section.cards:
            parts.append(f'<div class="videos">{"".join(map(_card, section.cards))}</div>')
    if not sections:
        parts.append("<p>Nothing to look at: no problem was found.</p>")
    head = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{_text(title)}</title><style>{_STYLE}</style>'
    write_text(path, head + "\n".join(parts) + "</html>\n")


def _card(card: Card) -> str:
    picture = ""
    if card.picture is not None:
        data = io.BytesIO()
        Image.fromarray(card.picture).save(data, "JPEG", quality=80)
        picture = f'<img alt="" src="data:image/jpeg;base64,{base64.b64encode(data.getvalue()).decode()}">'
    return (f"<figure>{picture}<figcaption><b>{_text(card.title)}</b> {_text(card.detail)}<br>"
            f"<small>{_text(card.path)}</small></figcaption></figure>")  # fmt: skip


def _table(rows: Sequence[Sequence[str]], header: Sequence[str] = ()) -> str:
    lines = [f"<tr>{''.join(f'<th>{_text(cell)}</th>' for cell in header)}</tr>"] if header else []
    lines += [f"<tr>{''.join(f'<td>{_text(cell)}</td>' for cell in row)}</tr>" for row in rows]
    return f"<table>{''.join(lines)}</table>"


def _text(text: str) -> str:
    return html.escape(printable(text))
