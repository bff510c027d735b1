import colorsys

import numpy as np
import pytest
import torch

from lookupvit_video.config import load_config
from lookupvit_video.decoding.backends import open_video
from lookupvit_video.inference import draw
from lookupvit_video.inference.annotate import Panel, annotate_video, as_clock, open_writer, write_overlay
from lookupvit_video.inference.draw import class_colors, draw_prediction, draw_timeline
from lookupvit_video.inference.predictor import Prediction
from lookupvit_video.inference.timeline import Segment, Timeline
from lookupvit_video.inference.views import make_plan
from lookupvit_video.text import shortened
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
        draw_prediction(prediction_of(frames, classes, "_x$.mp4"), maps[:count], tmp_path / "s.png")
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


def test_every_label_has_a_color_of_its_own():
    many = Timeline("x", 2.0, 2.0, np.zeros(1), np.full((1, 40), 0.025), [str(i) for i in range(40)])
    colors = class_colors(many, [Segment(0, 1, str(i), 1.0) for i in range(40)])
    assert len(set(colors.values())) == len(colors) == 40


def test_the_panel_tells_label_probability_and_place():
    panel = Panel(timeline(), SEGMENTS, 480)
    assert panel.segment_at(0).label == CLASSES[0]
    assert panel.segment_at(5.4).label == CLASSES[0]
    assert panel.segment_at(5.7) is None  # left out as unsure
    assert panel.segment_at(6.0).label == panel.segment_at(10.0).label == CLASSES[1]
    early, late, unsure = (panel.draw(seconds) for seconds in (1.0, 9.0, 5.7))
    assert early.shape == (panel.height, 480, 3)
    bar = (early[40] == panel.colors[CLASSES[0]]).all(-1).sum()
    assert bar == pytest.approx(0.9 * 464, abs=3)
    assert (late[40] == panel.colors[CLASSES[1]]).all(-1).sum() == pytest.approx(0.9 * 464, abs=3)
    assert not (unsure[:50] > 100).any()  # no label, no bar
    strip = early[59, 8:-8]
    assert (strip[100] == panel.colors[CLASSES[0]]).all()
    assert (strip[-30] == panel.colors[CLASSES[1]]).all()
    cursors = [np.flatnonzero((picture[52] > 200).all(-1)).mean() for picture in (early, late)]
    assert cursors == pytest.approx([8 + 46.3, 8 + 416.7], abs=1)


def test_an_annotated_video_keeps_pictures_and_times(tmp_path):
    times = [0.0, 0.04, 0.1, 0.3, 0.34, 1.0, 1.7, 1.74]  # pictures that are not evenly spread
    path = write_video(tmp_path / "x.mp4", frames=8, size=(66, 48), times=times)
    plan = make_plan(load_config(None, []))
    annotate_video(timeline(path, 1.8), [Segment(0, 1.8, CLASSES[0], 0.9)], plan, tmp_path / "a.mp4")
    with open_video(tmp_path / "a.mp4") as reader:
        assert reader.times.tolist() == pytest.approx(times, abs=1e-4)
        assert reader.info.codec == "h264"
        assert (reader.info.width, reader.info.height) == (8 * 66, 8 * 48 + round(84 * max(1, 528 / 720)))
        frames = reader.frames_at(reader.times.tolist()).numpy()
    assert [read_number(frame[: 8 * 48]) for frame in frames] == list(range(8))
    assert (frames[0, 8 * 48 :, :].max(), frames[0, 8 * 48 :, :].min()) > (200, 40)


def test_an_annotated_video_of_odd_size_has_its_frame_rate(tmp_path):
    path = write_video(tmp_path / "x.mkv", frames=12, size=(501, 333), fps=30, pix_fmt="yuv444p")
    annotate_video(
        timeline(path, 0.4), [Segment(0, 0.4, CLASSES[0], 0.9)], make_plan(load_config(None, [])), tmp_path / "a.mp4"
    )
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
        pytest.raises(ValueError, match=r"x\.gif: an output video's name must end in \.mp4"),
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


def prediction_of(frames, classes, path="x.mp4"):
    clip = torch.from_numpy(frames).permute(3, 0, 1, 2)
    return Prediction(path, [name for name, _ in classes], [share for _, share in classes], clip)


# What is in a picture -----------------------------------------------------------------------------------------------


@pytest.fixture
def figures(monkeypatch):
    """The figures that would be saved."""
    saved = []
    monkeypatch.setattr(draw, "save_figure", lambda figure, path: saved.append(figure))
    return saved


def test_a_sheet_shows_up_to_eight_frames_from_the_first_to_the_last(figures):
    for count, shown in (
        (3, [0, 1, 2]),
        (8, list(range(8))),
        (9, [0, 1, 2, 3, 5, 6, 7, 8]),
        (16, [0, 2, 4, 6, 9, 11, 13, 15]),
    ):
        frames = np.stack([np.full((4, 4, 3), number, dtype=np.uint8) for number in range(count)])
        draw_prediction(prediction_of(frames, [("a", 0.7)]), [], None)
        pictures = [axis for axis in figures.pop().axes if axis.images]
        assert [axis.get_title() for axis in pictures] == [f"frame {number}" for number in shown]
        assert [int(axis.images[0].get_array()[0, 0, 0]) for axis in pictures] == shown


def test_a_sheet_has_the_heat_of_each_frame_and_bars_of_the_classes(figures):
    frames = np.full((4, 8, 8, 3), 100, dtype=np.uint8)
    heat = torch.zeros(2, 2, 2)
    heat[1, 0, 0] = 4.0
    draw_prediction(
        prediction_of(frames, [("cat", 0.756), ("dog_$", 0.2)]), [("one", heat), ("two", heat.flip(0))], None
    )
    (figure,) = figures
    assert figure.get_suptitle() == "x.mp4: cat (76%)"
    assert figure.get_size_inches().tolist() == [1.5 * 4 + 3.2, 1.6 * 3 + 0.5]
    *pictures, bars = figure.axes
    assert [axis.get_title(loc="left") for axis in pictures[4::4]] == ["one", "two"]
    assert not any(axis.axison for axis in pictures)
    corners = [int(axis.images[0].get_array()[0, 0, 0]) for axis in pictures]
    assert corners == [100] * 4 + [40, 40, 202, 202] + [202, 202, 40, 40]
    assert [bar.get_width() for bar in bars.patches] == [0.756, 0.2]
    assert bars.patches[0].get_facecolor() != bars.patches[1].get_facecolor()
    assert [label.get_text() for label in bars.get_yticklabels()] == ["cat", r"dog_\$"]
    assert bars.get_xlim() == (0, 1)
    assert bars.yaxis_inverted()


def test_names_are_drawn_as_they_stand(figures):
    """A dollar in a name starts no formula, wherever the name is drawn."""
    frames, heat = np.zeros((2, 4, 4, 3), dtype=np.uint8), torch.ones(1, 2, 2)
    for rows in (0, 1, 2):
        draw_prediction(prediction_of(frames, [("$a", 0.7)], "$x.mp4"), [("$map", heat)] * rows, None)
        figure = figures[-1]
        assert not figure._suptitle.get_parse_math()
        titles = [axis.title if axis.get_title() else axis._left_title for axis in figure.axes]
        assert not any(title.get_parse_math() for title in titles if title.get_text() == "$map")
        assert sum(title.get_text() == "$map" for title in titles) == rows
        assert len(figure.subfigs[1].subfigs) == 2 * (rows > 1)  # bars take no more room than two rows
    draw_timeline(timeline("$.mp4"), [], None)
    assert not figures[-1]._suptitle.get_parse_math()


def test_the_sheet_of_a_prediction_names_the_file_and_shows_its_clip(figures):
    clip = torch.arange(3 * 2 * 4 * 5, dtype=torch.uint8).view(3, 2, 4, 5)
    draw_prediction(Prediction("/videos/x.mp4", ["a", "b"], [0.75, 0.25], clip), [], None)
    (figure,) = figures
    assert figure.get_suptitle() == "x.mp4: a (75%)"
    pictures = [axis.images[0].get_array() for axis in figure.axes if axis.images]
    assert np.array_equal(np.stack(pictures), clip.permute(1, 2, 3, 0).numpy())


def test_heat_darkens_and_warms():
    frame = np.full((2, 2, 3), 100, dtype=np.uint8)
    heat = torch.tensor([[0.0, 0.5], [1.0, 0.25]])
    drawn = draw.overlay(frame, heat)
    assert drawn.dtype == np.uint8
    for row, column, share in ((0, 0, 0.0), (0, 1, 0.5), (1, 0, 1.0), (1, 1, 0.25)):
        expected = [100 * (0.4 + 0.35 * share) + 0.5 * share * warm for warm in (255, 90, 0)]
        assert drawn[row, column].tolist() == [int(value) for value in expected]
    assert draw.overlay(np.full((2, 2, 3), 255, dtype=np.uint8), torch.ones(2, 2))[0, 0].tolist() == [255, 236, 191]
    smooth = draw.overlay(np.zeros((1, 8, 3), dtype=np.uint8), torch.tensor([[0.0, 1.0]]))[0, :, 0]
    assert (np.diff(smooth.astype(int)) >= 0).all()
    assert len(set(smooth.tolist())) > 3


@pytest.mark.parametrize(
    ("num_frames", "times", "expected"), [(4, 2, [0, 0, 1, 1]), (5, 2, [0, 0, 0, 1, 1]), (3, 3, [0, 1, 2])]
)
def test_a_frame_has_the_attention_of_its_tubelet(num_frames, times, expected):
    heat = (torch.arange(times) + 1.0).view(-1, 1, 1).expand(-1, 2, 3)
    for frame, index in enumerate(expected):
        assert torch.equal(draw.attention_at(heat, frame, num_frames), torch.full((2, 3), (index + 1) / times))


def test_text_is_cut_where_it_has_no_room():
    assert [shortened("abcdef", length) for length in (7, 6, 5, 1)] == ["abcdef", "abcdef", "abcd…", "…"]
    assert draw._plain("_a$b") == r" _a\$b"
    assert draw._plain("a_b") == "a_b"
    assert draw._plain("x" * 28) == "x" * 28
    assert draw._plain("x" * 29) == "x" * 27 + "…"


def test_colors_step_around_the_circle_of_hues_by_the_golden_ratio():
    found = Timeline("x", 2.0, 2.0, np.zeros(1), np.linspace(1, 0, 12)[None], list("abcdefghijkl"))
    colors = class_colors(found, [Segment(0, 1, "l", 1.0), Segment(1, 2, "b", 1.0)])
    assert list(colors) == [*"abcdefghij", "l"]  # ten leading ones and what segments bear
    assert colors["a"] == pytest.approx(colorsys.hls_to_rgb(0.58, 0.45, 0.75))
    assert colors["b"] == pytest.approx(colorsys.hls_to_rgb(0.198034, 0.55, 0.75))
    assert colors["c"] == pytest.approx(colorsys.hls_to_rgb(0.816068, 0.45, 0.75))


def test_a_time_line_draws_the_leading_classes_and_the_segments(figures):
    found = timeline(duration=10.0)
    draw_timeline(found, SEGMENTS, None, topk=2)
    (figure,) = figures
    upper, lower = figure.axes
    assert figure.get_suptitle() == "x.mp4"
    assert [line.get_color() for line in upper.lines] == [class_colors(found, SEGMENTS)[CLASSES[i]] for i in (0, 1)]
    for line, label in zip(upper.lines, (0, 1), strict=True):
        assert line.get_xdata() == pytest.approx(found.centers)
        assert line.get_ydata() == pytest.approx(found.probabilities[:, label])
        assert line.get_marker() == "None"
    assert upper.get_ylim() == (-0.02, 1.02)
    assert [(bar.get_x(), bar.get_width()) for bar in lower.patches] == [(0, 5.5), (6.0, 4.0)]
    assert (lower.get_xlim(), lower.get_xlabel()) == ((0, 10), "time, s")
    assert (upper.get_ylabel(), lower.get_ylabel(), len(lower.get_yticks())) == ("probability", "segments", 0)
    assert [text.get_text() for text in lower.texts] == [r"pouring \$5 of _milk_"]  # the other has no room
    assert [text.get_position() for text in lower.texts] == [(2.75, 0)]
    assert len(draw_lines(found, figures)) == 3  # of three classes; five by default


def draw_lines(found, figures):
    draw_timeline(found, [], None)
    return figures[-1].axes[0].lines


def test_a_time_line_counts_in_minutes_from_three_on_and_keeps_short_peaks(figures):
    for duration, unit, name in ((179.9, 1, "s"), (180.0, 60, "min")):
        draw_timeline(timeline(duration=duration), [Segment(0.0, duration, CLASSES[2], 0.9)], None)
        lower = figures[-1].axes[1]
        assert (lower.get_xlabel(), lower.get_xlim()[1]) == (f"time, {name}", pytest.approx(duration / unit))
        assert lower.patches[0].get_width() == pytest.approx(duration / unit)
        assert lower.texts[0].get_position()[0] == pytest.approx(duration / unit / 2)
    starts = 0.5 * np.arange(4500)
    shares = np.full((4500, 3), 0.1)
    shares[1234, 1] = 0.8
    draw_timeline(Timeline("x", 2252.0, 2.0, starts, shares, CLASSES), [], None, topk=3)
    line = figures[-1].axes[0].lines[0]
    assert len(line.get_xdata()) == 1500
    assert max(line.get_ydata()) == 0.8
    assert line.get_xdata()[0] == pytest.approx((1.0 + 1.5 + 2.0) / 3 / 60)
    draw_timeline(timeline(duration=2.0), [], None)  # a single window is a point
    assert figures[-1].axes[0].lines[0].get_marker() == "o"


def test_letters_are_light_on_dark_segments(figures, monkeypatch):
    for gray, ink in ((0.59, "white"), (0.61, "black")):
        monkeypatch.setattr(draw, "class_colors", lambda *_, gray=gray: dict.fromkeys(CLASSES, (gray,) * 3))
        draw_timeline(timeline(), [Segment(0, 10.0, CLASSES[2], 0.9)], None)
        assert figures[-1].axes[1].texts[0].get_color() == ink
    for color, ink in (((1.0, 0.5, 0.0), "white"), ((0.0, 1.0, 0.2), "black")):  # 0.595 and 0.612 of the brightness
        monkeypatch.setattr(draw, "class_colors", lambda *_, color=color: dict.fromkeys(CLASSES, color))
        draw_timeline(timeline(), [Segment(0, 10.0, CLASSES[2], 0.9)], None)
        assert figures[-1].axes[1].texts[0].get_color() == ink


@pytest.mark.parametrize(("count", "listed", "more"), [(16, 16, None), (17, 16, "and 1 more"), (40, 16, "and 24 more")])
def test_the_legend_names_sixteen_colors(count, listed, more):
    figure = draw.new_figure(4, 4)
    draw._add_legend(figure, {f"_{number}": (0.1, 0.2, 0.3) for number in range(count)})
    texts = [text.get_text() for text in figure.legends[0].get_texts()]
    assert texts == [f" _{number}" for number in range(listed)] + [more] * (more is not None)
    assert figure.legends[0].get_patches()[0].get_facecolor() == (0.1, 0.2, 0.3, 1.0)
