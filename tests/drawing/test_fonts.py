"""Names in any script, with the fonts of this machine replaced by one that has a single letter."""

import logging
import warnings

import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib.font_manager import fontManager

from lookupvit_video.drawing import fonts
from lookupvit_video.drawing.figures import new_figure, save_figure
from lookupvit_video.drawing.fonts import REGULAR, class_label, drawable, font_of


def make_font(path, letters):
    pen = TTGlyphPen(None)
    for move, place in [(pen.moveTo, (100, 0)), (pen.lineTo, (100, 700)), (pen.lineTo, (900, 0))]:
        move(place)
    pen.closePath()
    names = {letter: f"u{ord(letter):04X}" for letter in letters}
    glyphs = [".notdef", *names.values()]
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder(glyphs)
    builder.setupCharacterMap({ord(letter): name for letter, name in names.items()})
    builder.setupGlyf(dict.fromkeys(glyphs, pen.glyph()))
    builder.setupHorizontalMetrics(dict.fromkeys(glyphs, (1000, 100)))
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({"familyName": "Single", "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    builder.save(path)
    return str(path)


@pytest.fixture
def system(monkeypatch):
    """The font files of the system; none at first."""
    files, known = [], list(fontManager.ttflist)
    caches = (fonts.font_of, fonts._system_letters, fonts._note_missing)
    monkeypatch.setattr(fonts, "findSystemFonts", lambda: list(files))
    monkeypatch.setattr(fonts, "extra_families", [])
    monkeypatch.setattr("lookupvit_video.drawing.figures.extra_families", fonts.extra_families)
    for function in caches:
        function.cache_clear()
    yield files
    fontManager.ttflist[:] = known
    for function in caches:
        function.cache_clear()


def test_most_alphabets_need_no_font_of_the_system(monkeypatch):
    monkeypatch.setattr(fonts, "_system_letters", lambda: pytest.fail("looked for"))
    name = "Ångström, ходьба, Περπατώ, مشی, می\u200cخواهم"  # noqa: RUF001 - other alphabets
    assert drawable(name) == name
    assert {font_of(letter) for letter in name} == {REGULAR}


def test_a_letter_without_a_font_is_its_code_with_one_note_a_script(system, caplog):
    with caplog.at_level(logging.WARNING):
        assert drawable("a 牛乳\n") == r"a \u725b\u4e73?"
        assert class_label("牛乳", 7) == r"7: \u725b\u4e73"
        assert class_label("चल", 2) == r"2: \u091a\u0932"
    assert class_label("a\n", 3) == "a?"
    assert class_label("牛" * 20, 7) == "7: " + r"\u725b" * 4 + "…"
    assert [message.partition(" letters")[0] for message in caplog.messages] == [
        "no font of this machine has some CJK", "no font of this machine has some DEVANAGARI",
    ]  # fmt: skip


def test_a_font_of_the_system_draws_what_the_default_lacks(system, tmp_path, caplog):
    (tmp_path / "broken.ttf").write_bytes(b"no font")
    system += [str(tmp_path / "broken.ttf"), make_font(tmp_path / "Single.ttf", "牛")]
    assert drawable("a牛乳") == r"a牛\u4e73"
    assert (font_of("牛"), font_of("a")) == (system[1], REGULAR)
    caplog.clear()
    figure = new_figure(2, 2)
    axis = figure.subplots()
    axis.set_yticks([0], ["牛"])
    axis.set_title("a牛", weight="bold")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # "Glyph 29275 missing from font(s)"
        with caplog.at_level(logging.WARNING):
            save_figure(figure, tmp_path / "x.png")
    assert not caplog.messages  # "Failed to find font weight bold"
    assert axis.title.get_fontfamily()[-1] == axis.get_yticklabels()[0].get_fontfamily()[-1] == "Single"


def test_an_upright_regular_font_is_preferred(system, tmp_path):
    system += [make_font(tmp_path / name, "牛") for name in ("Regular.ttf", "Black.ttf", "Thin.ttf")]
    assert font_of("牛") == system[0]
