import numpy as np
import pytest
import torch

from lookupvit_video.config import load_config
from lookupvit_video.data.decode import open_video
from lookupvit_video.inference.annotate import Panel, annotate_video, as_clock, open_writer, write_overlay
from lookupvit_video.inference.draw import class_colours, draw_sheet, draw_timeline, shortened
from lookupvit_video.inference.timeline import Segment, Timeline
from tests.videos import draw_frame, read_number, write_video

CLASSES = ["pouring $5 of _milk_", "a very long name of a class that has no room at all anywhere here", "牛乳を注ぐ"]


def timeline(path="x.mp4", duration=10.0):
    starts = np.arange(0, max(duration - 1.9, 0.1), 0.5)
    probabilities = np.full((len(starts), 3), 0.05, dtype=np.float32)
    probabilities[np.arange(len(starts)), (starts > duration / 2).astype(int)] = 0.9
    return Timeline(str(path), duration, 2.0, starts, probabilities, CLASSES)


SEGMENTS = [Segment(0, 5.5, CLASSES[0], 0.9), Segment(6.0, 10.0, CLASSES[1], 0.9)]


def test_a_sheet_has_a_row_for_each_heat_map(tmp_path):
    frames = np.stack([draw_frame(i, size=(32, 32)) for i in range(10)])
    maps = [(f"map $ {i}", torch.rand(5, 4, 4)) for i in range(3)]
    classes = [(name, 0.3) for name in CLASSES]
    sizes = []
    for count in (0, 1, 3):
        draw_sheet(frames, maps[:count], classes, "_x$.mp4", tmp_path / "s.png")
        data = (tmp_path / "s.png").read_bytes()
        assert data.startswith(b"\x89PNG")
        sizes.append((int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")))
    assert sizes[0][0] == sizes[2][0] == 120 * 15.2
    assert [height for _, height in sizes] == [120 * (1.6 * rows + 0.5) for rows in (1, 2, 4)]


def test_a_time_line_of_any_length_is_drawn(tmp_path):
    for duration in (2.0, 10.0, 4000.0):
        found = timeline(duration=duration)
        draw_timeline(found, [Segment(0, duration, CLASSES[0], 0.9)], tmp_path / "t.png")
        assert (tmp_path / "t.png").stat().st_size > 10_000


def test_every_label_has_a_colour_of_its_own():
    many = Timeline("x", 2.0, 2.0, np.zeros(1), np.full((1, 40), 0.025), [str(i) for i in range(40)])
    colours = class_colours(many, [Segment(0, 1, str(i), 1.0) for i in range(40)])
    assert len(set(colours.values())) == len(colours) == 40


def test_the_panel_tells_label_probability_and_place():
    panel = Panel(timeline(), SEGMENTS, 480)
    assert panel.segment_at(0).label == CLASSES[0]
    assert panel.segment_at(5.4).label == CLASSES[0]
    assert panel.segment_at(5.7) is None  # left out as unsure
    assert panel.segment_at(6.0).label == panel.segment_at(10.0).label == CLASSES[1]
    early, late, unsure = (panel.draw(seconds) for seconds in (1.0, 9.0, 5.7))
    assert early.shape == (panel.height, 480, 3)
    bar = (early[40] == panel.colours[CLASSES[0]]).all(-1).sum()
    assert bar == pytest.approx(0.9 * 464, abs=3)
    assert (late[40] == panel.colours[CLASSES[1]]).all(-1).sum() == pytest.approx(0.9 * 464, abs=3)
    assert not (unsure[:50] > 100).any()  # no label, no bar
    strip = early[59, 8:-8]
    assert (strip[100] == panel.colours[CLASSES[0]]).all()
    assert (strip[-30] == panel.colours[CLASSES[1]]).all()
    cursors = [np.flatnonzero((picture[52] > 200).all(-1)).mean() for picture in (early, late)]
    assert cursors == pytest.approx([8 + 46.3, 8 + 416.7], abs=1)


def test_an_annotated_video_keeps_pictures_and_times(tmp_path):
    times = [0.0, 0.04, 0.1, 0.3, 0.34, 1.0, 1.7, 1.74]  # pictures that are not evenly spread
    path = write_video(tmp_path / "x.mp4", frames=8, size=(66, 48), times=times)
    cfg = load_config(None, [])
    annotate_video(timeline(path, 1.8), [Segment(0, 1.8, CLASSES[0], 0.9)], cfg, tmp_path / "a.mp4")
    with open_video(tmp_path / "a.mp4") as reader:
        assert reader.times.tolist() == pytest.approx(times, abs=1e-4)
        assert reader.info.codec == "h264"
        assert (reader.info.width, reader.info.height) == (8 * 66, 8 * 48 + round(84 * max(1, 528 / 720)))
        frames = reader.frames_at(reader.times.tolist()).numpy()
    assert [read_number(frame[: 8 * 48]) for frame in frames] == list(range(8))
    assert (frames[0, 8 * 48 :, :].max(), frames[0, 8 * 48 :, :].min()) > (200, 40)


def test_an_annotated_video_of_odd_size_has_its_frame_rate(tmp_path):
    path = write_video(tmp_path / "x.mkv", frames=12, size=(501, 333), fps=30, pix_fmt="yuv444p")
    annotate_video(timeline(path, 0.4), [Segment(0, 0.4, CLASSES[0], 0.9)], load_config(None, []), tmp_path / "a.mp4")
    with open_video(tmp_path / "a.mp4") as reader, open_video(path) as original:
        assert reader.info.fps == pytest.approx(original.info.fps, rel=2e-3)  # mkv counts in milliseconds
        assert len(reader.times) == 12
        assert (reader.info.width, reader.info.height) == (502, 418)


def test_an_overlay_has_the_frames_beside_the_heat(tmp_path):
    frames = np.full((6, 24, 24, 3), 120, dtype=np.uint8)
    heat = torch.zeros(3, 4, 4)
    heat[2, 0, 0] = 1.0
    write_overlay(frames, heat, tmp_path / "o.mp4", fps=4)
    with open_video(tmp_path / "o.mp4") as reader:
        assert len(reader.times) == 6
        assert reader.info.fps == pytest.approx(4)
        pictures = reader.frames_at([0.0, 1.25]).numpy().astype(int)
    height, width = pictures.shape[1:3]
    assert width == 2 * height == 480
    assert abs(pictures[:, 5, 5] - 120).max() < 6  # the frame itself
    assert pictures[1, 5, 245, 0] > 180 > 80 > pictures[0, 5, 245, 0]


def test_names_of_videos_and_clocks(tmp_path):
    with (
        pytest.raises(ValueError, match=r"x\.gif: the name of a video to be written must end in \.mp4"),
        open_writer(tmp_path / "x.gif", width=64, height=48, fps=8),
    ):
        pass
    assert [as_clock(seconds) for seconds in (0, 75.9, 3700)] == ["0:00", "1:15", "1:01:40"]
    assert shortened("a\nb", 10) == "a?b"
    assert shortened("abcdef", 4) == "abc…"


def test_a_video_that_fails_midway_leaves_nothing(tmp_path):
    def write_half():
        with open_writer(tmp_path / "x.mp4", width=64, height=48, fps=8) as writer:
            writer.write(draw_frame(0), 0.0)
            writer.write(draw_frame(1, size=(32, 16))[0], 0.1)

    with pytest.raises((ValueError, OSError)):
        write_half()
    assert not list(tmp_path.iterdir())
