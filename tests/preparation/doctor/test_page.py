"""The page holds all that it shows, and takes any name."""

import re

import numpy as np

from lookupvit_video.preparation.doctor.page import Card, Section, write_page


def test_names_are_text_and_pictures_are_inside(tmp_path):
    card = Card("<b>run</b>", 'a"&<script>.mp4\udcff', "likely 'jump'", np.zeros((8, 16, 3), np.uint8))
    sections = [
        Section("likely label errors: 1", "look", [card, Card("x", "y", "z")]),
        Section("t", "", table=[["a"], ["<"]]),
    ]
    write_page(tmp_path / "p.html", "a & b", [("videos", "2")], sections)
    text = (tmp_path / "p.html").read_text(encoding="utf-8")
    assert "<script>" not in text
    assert "&lt;b&gt;run&lt;/b&gt;" in text
    assert "<td>&lt;</td>" in text
    assert len(re.findall('src="data:image/jpeg;base64,/9j/', text)) == 1
    assert not re.search('(src|href)="(?!data:)', text)


def test_nothing_to_look_at(tmp_path):
    write_page(tmp_path / "p.html", "t", [], [])
    assert "no problem was found" in (tmp_path / "p.html").read_text()
