"""What is drawn below a video's pictures, and how videos are written."""

from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from PIL import ImageDraw

from lookupvit_video.decoding.backends import open_video
from lookupvit_video.drawing.fonts import REGULAR
from lookupvit_video.inference import annotate
from lookupvit_video.inference.annotate import (
    Panel,
    annotate_video,
    as_clock,
    check_video_name,
    even,
    open_writer,
    write_overlay,
)
from lookupvit_video.inference.draw import overlay
from lookupvit_video.inference.timeline import Segment, Timeline
from tests.videos import read_number, write_video

CLASSES = ["a", "b"]


def timeline(duration=10.0, share=0.75):
    starts = np.array([0.0, duration / 2])
    return Timeline("x.mp4", duration, duration / 2, starts, np.array([[share, 0.25], [0.25, share]]), CLASSES)


SEGMENTS = [Segment(1.0, 5.0, "a", 0.9), Segment(5.0, 9.0, "b", 0.9)]


# Writing ------------------------------------------------------------------------------------------------------------


class FakeContainer:
    """What would be written: streams, and (time stamp, time base) of each picture."""

    def __init__(self):
        self.streams, self.muxed, self.context = [], [], type("Context", (), {})()

    def add_stream(self, *given, **options):
        self.streams.append((given, options))
        self.codec_context = self.context
        self.encode = lambda frame: frame
        return self

    def mux(self, frame):
        self.muxed.append(frame if frame is None else (frame.pts, frame.time_base, frame.to_ndarray()))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


@pytest.fixture
def container(monkeypatch):
    fake = FakeContainer()
    monkeypatch.setattr(annotate.av, "open", lambda path, mode: open(path, "wb").close() or fake)
    return fake


def test_a_video_is_written_as_h264_at_its_own_times(container, tmp_path):
    picture = np.arange(2 * 4 * 3, dtype=np.uint8).reshape(2, 4, 3)
    with open_writer(tmp_path / "x.mp4", width=4, height=2, fps=29.97002997) as writer:
        for seconds in (0.0, 0.04, 1 / 3):
            writer.write(picture[:, ::-1], seconds)
    options = {"rate": Fraction(30000, 1001), "options": {"crf": "20", "preset": "veryfast"}}
    assert container.streams == [(("libx264",), options)]
    assert (container.width, container.height, container.pix_fmt) == (4, 2, "yuv420p")
    assert container.context.time_base == Fraction(1, 90_000)
    *written, last = container.muxed
    assert [(pts, base) for pts, base, _ in written] == [(n, Fraction(1, 90_000)) for n in (0, 3600, 30_000)]
    assert all((pixels == picture[:, ::-1]).all() for _, _, pixels in written)
    assert last is None  # what the encoder holds back


@pytest.mark.parametrize("name", ["x.mp4", "x.mov", "x.MKV"])
def test_names_of_videos_that_can_be_written(name):
    check_video_name(name)


@pytest.mark.parametrize("name", ["x.webm", "x.avi", "mp4", "x"])
def test_names_of_videos_that_cannot(name):
    with pytest.raises(ValueError, match=rf"{name}: .* must end in \.mp4, \.mov, \.mkv"):
        check_video_name(name)


def test_odd_pictures_repeat_their_last_row_and_column():
    for height, width in ((2, 4), (3, 4), (2, 5), (3, 5)):
        picture = np.arange(height * width * 3, dtype=np.uint8).reshape(height, width, 3)
        found = even(picture)
        assert found.shape == (height + height % 2, width + width % 2, 3)
        assert (found[:height, :width] == picture).all()
        assert (found[-1, :width] == picture[-1]).all()
        assert (found[:height, -1] == picture[:, -1]).all()


@pytest.mark.parametrize(
    ("size", "factor"), [((16, 12), 30), ((160, 120), 3), ((478, 20), 2), ((480, 20), 1), ((482, 21), 1)]
)
def test_narrow_videos_are_enlarged_to_480_pixels(container, monkeypatch, size, factor):
    width, height = size
    picture = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)

    class Reader:
        info = type("Info", (), {"width": width, "height": height, "fps": 25.0})
        times = np.array([0.0, 0.5])

        def walk(self, times):
            assert times == [0.0, 0.5]
            return iter([picture, 255 - picture])

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

    monkeypatch.setattr(annotate, "open_forward", lambda path, plan: Reader())
    monkeypatch.setattr(annotate, "atomic_write", lambda path: open_writer_nowhere())
    monkeypatch.setattr(annotate.av, "open", lambda path, mode: container)
    annotate_video(timeline(1.0), [], None, "out.mp4")
    panel = Panel(timeline(1.0), [], width * factor)
    assert container.streams[0][1]["rate"] == 25
    full = height * factor + panel.height
    assert (container.width, container.height) == (width * factor, full + full % 2)
    first, second, _ = container.muxed
    assert (first[0], second[0]) == (0, 45_000)
    enlarged = picture.repeat(factor, 0).repeat(factor, 1)
    assert (first[2][: height * factor] == enlarged).all()
    assert (second[2][: height * factor] == 255 - enlarged).all()
    assert (first[2][height * factor : full] == panel.draw(0.0)).all()
    assert (second[2][height * factor : full] == panel.draw(0.5)).all()


def open_writer_nowhere():
    import contextlib

    return contextlib.nullcontext("nowhere.mp4")


@pytest.mark.parametrize(
    ("size", "factor"), [((24, 24), 10), ((23, 15), 11), ((240, 3), 1), ((239, 3), 2), ((300, 5), 1)]
)
def test_an_overlay_is_enlarged_and_has_the_heat_of_each_frame(container, tmp_path, size, factor):
    width, height = size
    frames = np.stack([np.full((height, width, 3), 40 * number, dtype=np.uint8) for number in range(4)])
    heat = torch.stack([torch.zeros(2, 2), torch.ones(2, 2)])
    write_overlay(frames, heat, tmp_path / "x.mp4")
    *written, _ = container.muxed
    assert [pts for pts, _, _ in written] == [0, 22_500, 45_000, 67_500]  # four a second
    assert container.streams[0][1]["rate"] == 4
    for number, (_, _, pixels) in enumerate(written):
        assert pixels.shape[:2] == (container.height, container.width)
        assert pixels.shape[:2] == (height * factor + height * factor % 2, 2 * width * factor)
        left, right = pixels[:, : width * factor], pixels[:, width * factor :]
        assert (left == 40 * number).all()
        share = number // 2
        assert (right == overlay(left[:1, :1], torch.full((1, 1), float(share)))).all()


def test_an_overlay_at_another_rate(container, tmp_path):
    frames = np.zeros((2, 4, 4, 3), dtype=np.uint8)
    write_overlay(frames, torch.ones(1, 2, 2), tmp_path / "x.mp4", fps=10)
    assert [picture[0] for picture in container.muxed[:-1]] == [0, 9000]


# The panel ----------------------------------------------------------------------------------------------------------


def test_a_time_lies_in_the_segment_that_begins_with_it():
    panel = Panel(timeline(), SEGMENTS, 480)
    named = {seconds: getattr(panel.segment_at(seconds), "label", None) for seconds in
             (0.0, 0.99, 1.0, 4.99, 5.0, 8.99, 9.0, 9.99, 10.0, 11.0)}  # fmt: skip
    assert named == {0.0: None, 0.99: None, 1.0: "a", 4.99: "a", 5.0: "b", 8.99: "b", 9.0: None, 9.99: None,
                     10.0: "b", 11.0: "b"}  # fmt: skip
    assert Panel(timeline(), [], 480).segment_at(10.0) is None
    gap = Panel(timeline(), [Segment(0.0, 2.0, "a", 1.0), Segment(5.0, 10.0, "b", 1.0)], 480)
    assert gap.segment_at(3.0) is None


@pytest.mark.parametrize(("width", "height"), [(480, 84), (720, 84), (960, 112), (1440, 168)])
def test_letters_grow_less_than_the_picture(width, height):
    assert Panel(timeline(), SEGMENTS, width).height == height


def place(panel, name):
    """Where the parts of a panel are, at its scale."""
    return round({"bar": 36, "bar end": 45, "strip": 54, "strip end": 64, "left": 8}[name] * panel.scale)


@pytest.mark.parametrize("width", [480, 960])
def test_the_bar_is_as_long_as_the_segment_is_probable(width):
    panel = Panel(timeline(share=0.5), [replace(segment, probability=0.75) for segment in SEGMENTS], width)
    left, right = place(panel, "left"), width - place(panel, "left")
    for seconds, color in ((2.0, panel.colors["a"]), (7.0, panel.colors["b"])):
        drawn = panel.draw(seconds)
        assert drawn.shape == (panel.height, width, 3)
        row = drawn[place(panel, "bar") + 2]
        filled = (row == color).all(-1)
        assert np.flatnonzero(filled)[[0, -1]].tolist() == [left, left + round(0.75 * (right - left))]
        assert (row[left : right + 1][~filled[left : right + 1]] == (90, 90, 96)).all()
        assert (row[:left] == (22, 22, 26)).all()
        column = (drawn[:, left] == color).all(-1)
        assert np.flatnonzero(column)[[0, -1]].tolist()[0] == place(panel, "bar")
        assert column[place(panel, "bar") : place(panel, "bar end") + 1].all()
        assert not column[place(panel, "bar end") + 1]


@pytest.mark.parametrize("width", [480, 960])
def test_the_strip_has_the_color_of_each_segment_and_a_cursor(width):
    panel = Panel(timeline(), SEGMENTS, width)
    left = place(panel, "left")
    length = width - 2 * left
    top, bottom = place(panel, "strip"), place(panel, "strip end")
    columns = np.full((length, 3), (90, 90, 96))
    for segment in SEGMENTS:
        middles = (np.arange(length) + 0.5) / length * 10.0
        columns[(middles >= segment.start) & (middles < segment.end)] = panel.colors[segment.label]
    for seconds in (0.0, 2.5, 10.0):
        drawn = panel.draw(seconds)
        cursor = left + round(seconds / 10.0 * (length - 1))
        ink = (drawn == (240, 240, 240)).all(-1)
        rise = round(3 * panel.scale)
        assert np.flatnonzero(ink[top - rise]).tolist() == [cursor - 1, cursor, cursor + 1]
        assert ink[top - rise : bottom + rise + 1, cursor].all()
        assert not ink[top - rise - 1, cursor]
        for row in (top, bottom - 1):
            found = drawn[row, left : left + length].astype(int)
            hidden = np.abs(np.arange(length) + left - cursor) < 2
            assert (found[~hidden] == columns[~hidden]).all()
        assert (drawn[bottom, left + 20] == (22, 22, 26)).all() or seconds == 0.0


def test_a_panel_has_the_name_the_percentage_and_the_clock(monkeypatch):
    written = []
    plain = ImageDraw.ImageDraw.text
    monkeypatch.setattr(
        ImageDraw.ImageDraw, "text",
        lambda pen, at, text, **options: written.append((at, text, options["font"].size, options.get("anchor"))) or
        plain(pen, at, text, **options),
    )  # fmt: skip
    panel = Panel(timeline(3700.0), [Segment(0.0, 3700.0, "a", 0.755)], 480)
    panel.draw(75.2)
    assert written == [
        ((8, 26), "a", 20, "ls"), ((472, 26), "76%", 20, "rs"), ((8, 68), "1:15 / 1:01:40", 11, None),
    ]  # fmt: skip
    written.clear()
    Panel(timeline(), [], 960).draw(5.0)
    assert written == [((round(8 * 4 / 3), round(68 * 4 / 3)), "0:05 / 0:10", round(11 * 4 / 3), None)]


def test_a_long_name_leaves_room_for_the_percentage():
    font = annotate._font(REGULAR, 20)
    room = 464 - font.getlength("75%  ")
    ((cut, _),) = annotate._fitted("w" * 99, 20, room)
    assert cut.endswith("…")
    assert font.getlength(cut) <= room < font.getlength("w" + cut)
    assert annotate._fitted("short", 20, room) == [("short", font)]
    assert annotate._fitted("abc", 20, font.getlength("abc")) == [("abc", font)]  # exactly its room
    assert annotate._fitted("abc", 20, 0.0) == [("…", font)]
    panel = Panel(replace(timeline(), classes=["w" * 99, "b"]), [Segment(0.0, 10.0, "w" * 99, 0.75)], 480)
    letters = (panel.draw(1.0)[10:30] == 240).all(-1).any(0)
    percent = int(font.getlength("75%"))
    assert not letters[472 - percent - 8 : 472 - percent - 2].any()  # a gap between name and percentage
    assert letters[: 472 - percent - 40].any()


def test_names_of_several_scripts_are_drawn_with_a_font_for_each(monkeypatch):
    other = str(Path(matplotlib.get_data_path(), "fonts", "ttf", "STIXGeneral.ttf"))
    monkeypatch.setattr(annotate, "font_of", lambda letter: other if letter in "xy" else REGULAR)
    runs = annotate._runs("a xy b", 20)
    assert [part for part, _ in runs] == ["a ", "xy", " b"]
    assert [font.getname()[0] for _, font in runs] == ["DejaVu Sans", "STIXGeneral", "DejaVu Sans"]
    panel = Panel(replace(timeline(), classes=["a xy b", "b"]), [Segment(0.0, 10.0, "a xy b", 0.75)], 480)
    assert (panel.draw(1.0)[10:30] == 240).any()


@pytest.mark.parametrize(("seconds", "clock"), [
    (0, "0:00"), (9.99, "0:09"), (59.999, "0:59"), (60, "1:00"), (3599, "59:59"), (3600, "1:00:00"),
    (36_061, "10:01:01"),
])  # fmt: skip
def test_a_clock(seconds, clock):
    assert as_clock(seconds) == clock


def test_a_written_video_can_be_read(tmp_path):
    with open_video(write_video(tmp_path / "x.mp4", frames=3, fps=12)) as reader:
        pictures = reader.frames_at(reader.times.tolist()).numpy()
    for name in ("y.mp4", "y.mov", "y.mkv"):
        with open_writer(tmp_path / name, width=64, height=48, fps=12) as writer:
            for number, picture in enumerate(pictures):
                writer.write(picture, number / 12)
        with open_video(tmp_path / name) as reader:
            assert reader.times.tolist() == pytest.approx([0, 1 / 12, 2 / 12], abs=1e-3)
            assert [read_number(frame) for frame in reader.frames_at(reader.times.tolist()).numpy()] == [0, 1, 2]
