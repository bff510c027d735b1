import numpy as np
import pytest
import torch

from lookupvit_video.config import load_config
from lookupvit_video.decoding.backends import open_video
from lookupvit_video.drawing.figures import class_color
from lookupvit_video.inference import draw
from lookupvit_video.inference.annotate import Panel, annotate_video, as_clock, open_writer, write_overlay
from lookupvit_video.inference.draw import draw_prediction, draw_timeline
from lookupvit_video.inference.prediction import Prediction
from lookupvit_video.inference.timeline import Segment, Timeline
from lookupvit_video.inference.views import make_plan
from lookupvit_video.text import shortened
from tests.drawing.pictures import collisions
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
        draw_prediction(prediction_of(frames, classes, "_x$.mp4"), maps[:count], tmp_path / "s.png", CLASSES)
        data = (tmp_path / "s.png").read_bytes()
        assert data.startswith(b"\x89PNG")
        sizes.append((int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")))
    assert sizes[0][0] == sizes[2][0] == 120 * 15.2
    assert [height for _, height in sizes] == [258, 120 * 4.4, 120 * 7.9]


def test_a_time_line_of_any_length_is_drawn(tmp_path):
    for duration in (2.0, 10.0, 4000.0):
        found = timeline(duration=duration)
        draw_timeline(found, [Segment(0, duration, CLASSES[0], 0.9)], tmp_path / "t.png")
        assert (tmp_path / "t.png").stat().st_size > 10_000


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
    assert abs(pictures[0, 5, 245] - 120).max() < 6 < 60 < abs(pictures[1, 5, 245] - 120).max()


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


def prediction_of(frames, classes, path="x.mp4", seconds=()):
    clip = torch.from_numpy(frames).permute(3, 0, 1, 2)
    return Prediction(path, [name for name, _ in classes], [share for _, share in classes], clip, seconds=seconds)


# What is in a picture -----------------------------------------------------------------------------------------------


@pytest.fixture
def figures(monkeypatch):
    """The figures that would be saved."""
    saved = []
    monkeypatch.setattr(draw, "save_figure", lambda figure, path: saved.append(figure))
    return saved


def test_a_sheet_shows_up_to_eight_frames_from_the_first_to_the_last_and_their_times(figures):
    for count, shown in (
        (3, [0, 1, 2]),
        (8, list(range(8))),
        (9, [0, 1, 2, 3, 5, 6, 7, 8]),
        (16, [0, 2, 4, 6, 9, 11, 13, 15]),
    ):
        frames = np.stack([np.full((4, 4, 3), number, dtype=np.uint8) for number in range(count)])
        for seconds in ((), [5 + number / 4 for number in range(count)]):
            draw_prediction(prediction_of(frames, [("a", 0.7)], seconds=seconds), [], None, ["a"])
            pictures = [axis for axis in figures.pop().axes if axis.images]
            titles = [f"{seconds[number]:.2f} s" if seconds else f"frame {number}" for number in shown]
            assert [axis.get_title() for axis in pictures] == titles
            assert [int(axis.images[0].get_array()[0, 0, 0]) for axis in pictures] == shown


def test_a_sheet_has_the_heat_of_each_frame_its_maxima_a_scale_and_bars_of_the_classes(figures):
    frames = np.full((4, 8, 8, 3), 100, dtype=np.uint8)
    heat = torch.zeros(2, 2, 2)
    heat[1, 0, 0], heat[0, 1, 1] = 4.0, 1.0
    answer = prediction_of(frames, [("cat", 0.756), ("dog_$", 0.2)], seconds=[1.0, 1.5, 2.0, 2.5])
    draw_prediction(answer, [("one", heat), ("two", heat.flip(0))], None, ["dog_$", "cat"])
    (figure,) = figures
    assert figure.get_suptitle() == "x.mp4: cat (76%)"
    grid, scale = figure.axes[:15], figure.axes[15]
    pictures, right = [axis for axis in grid if axis.images], [axis for axis in grid if not axis.images]
    assert [axis.texts[0].get_text() for axis in pictures[4::4]] == [
        f"{name}  (100 %: 80.0% of the clip's attention)" for name in ("one", "two")
    ]
    assert [axis.get_xlabel() for axis in pictures[4:]] == ["25%", "25%", "100%", "100%", "100%", "100%", "25%", "25%"]
    changed = [axis.images[0].get_array()[0, 0].tolist() != [100] * 3 for axis in pictures]
    assert changed == [False] * 4 + [False, False, True, True] + [True, True, False, False]
    rings = [axis.lines[-1] for axis in pictures[4:8]]
    assert [line.get_marker() for line in rings] == ["o", "o", "s", "s"]
    assert [line.get_xydata().tolist()[0] for line in rings] == [[5.5, 5.5]] * 2 + [[1.5, 1.5]] * 2  # pixels
    assert [bar.get_height() for bar in right[1].patches] == [0.25, 0.25, 1, 1]
    assert [bar.get_x() + bar.get_width() / 2 for bar in right[1].patches] == pytest.approx([1.0, 1.5, 2.0, 2.5])
    assert right[1].get_title() == "maximum of each frame"
    assert "% of the clip's maximum" in scale.get_xlabel()
    assert scale.get_xlim() == (0, 100)
    bars = right[0]
    assert [bar.get_width() for bar in bars.patches] == [0.756, 0.2]
    assert [text.get_text() for text in bars.texts] == ["cat", "76%", "dog_$", "20%"]
    assert not any(text.get_parse_math() for text in bars.texts)
    assert bars.yaxis_inverted()


@pytest.mark.parametrize("num_maps", [0, 1, 6])
@pytest.mark.parametrize("topk", [1, 5, 12])
def test_texts_of_a_sheet_do_not_overlap(figures, num_maps, topk):
    frames = np.zeros((16, 8, 8, 3), dtype=np.uint8)
    names = [f"a class with a name that has number {number}" for number in range(12)]
    maps = [("rolled out: what the compressed tokens hold", torch.rand(4, 3, 3))] * num_maps
    seconds = [3605.2 + number / 3 for number in range(16)]
    draw_prediction(prediction_of(frames, [(name, 0.08) for name in names[:topk]], seconds=seconds), maps, None, names)
    assert collisions(figures[0]) == []


def test_names_are_drawn_as_they_stand(figures):
    """A dollar in a name starts no formula, wherever the name is drawn."""
    frames, heat = np.zeros((2, 4, 4, 3), dtype=np.uint8), torch.ones(1, 2, 2)
    for rows in (0, 1, 2):
        draw_prediction(prediction_of(frames, [("$a", 0.7)], "$x.mp4"), [("$map", heat)] * rows, None, ["$a"])
        figure = figures[-1]
        assert not figure._suptitle.get_parse_math()
        titles = [text for axis in figure.axes for text in axis.texts]
        assert not any(title.get_parse_math() for title in titles)
        assert sum(title.get_text().startswith("$map") for title in titles) == rows
    draw_timeline(timeline("$.mp4"), [], None)
    assert not figures[-1]._suptitle.get_parse_math()


def test_the_sheet_of_a_prediction_names_the_file_and_shows_its_clip(figures):
    clip = torch.arange(3 * 2 * 4 * 5, dtype=torch.uint8).view(3, 2, 4, 5)
    draw_prediction(Prediction("/videos/x.mp4", ["a", "b"], [0.75, 0.25], clip), [], None, ["a", "b"])
    (figure,) = figures
    assert figure.get_suptitle() == "x.mp4: a (75%)"
    pictures = [axis.images[0].get_array() for axis in figure.axes if axis.images]
    assert np.array_equal(np.stack(pictures), clip.permute(1, 2, 3, 0).numpy())


def test_heat_covers_without_darkening_where_there_is_none():
    frame = np.full((2, 2, 3), 100, dtype=np.uint8)
    drawn = draw.overlay(frame, torch.tensor([[0.0, 0.5], [1.0, 0.25]])).astype(float)
    assert drawn[0, 0].tolist() == [100] * 3
    full = np.round(0.25 * 100 + 0.75 * 255 * draw._HEAT[-1, :3])
    assert drawn[1, 0].tolist() == full.tolist()
    changes = [np.abs(drawn[place] - 100).sum() for place in ((0, 0), (1, 1), (0, 1), (1, 0))]
    assert (np.diff(changes) > 10).all()
    smooth = draw.overlay(np.zeros((1, 8, 3), dtype=np.uint8), torch.tensor([[0.0, 1.0]]))[0, :, 0]
    assert (np.diff(smooth.astype(int)) >= 0).all()


def test_a_time_line_draws_the_leading_classes_and_the_segments(figures):
    found = timeline(duration=10.0)
    draw_timeline(found, SEGMENTS, None, topk=2)
    (figure,) = figures
    upper, lower = figure.axes
    assert figure.get_suptitle() == "x.mp4"
    assert [line.get_color() for line in upper.lines] == [class_color(0), class_color(1)]
    assert [bar.get_facecolor()[:3] for bar in lower.patches] == [class_color(0), class_color(1)]
    for line, label in zip(upper.lines, (0, 1), strict=True):
        assert line.get_xdata() == pytest.approx(found.centers)
        assert line.get_ydata() == pytest.approx(found.probabilities[:, label])
        assert line.get_marker() == "None"
    assert upper.get_ylim() == (-0.02, 1.02)
    assert [(bar.get_x(), bar.get_width()) for bar in lower.patches] == [(0, 5.5), (6.0, 4.0)]
    assert (lower.get_xlim(), lower.get_xlabel()) == ((0, 10), "time, s")
    assert (upper.get_ylabel(), lower.get_ylabel(), len(lower.get_yticks())) == ("probability", "segments", 0)
    assert [text.get_text() for text in lower.texts] == [
        r"pouring \$5 of _milk_ 90%",
        "a very long name of a class… 90%",
    ]
    assert [text.get_position() for text in lower.texts] == [(2.75, 0), (8.0, 0)]
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


def test_a_class_has_its_color_whatever_its_rank(figures):
    """In lines, segments and bars, with other classes next to it."""
    names = [str(number) for number in range(30)]
    for leading in ([5, 9, 20], [20, 5, 11]):
        shares = np.zeros((1, 30))
        shares[0, leading] = (0.5, 0.3, 0.2)
        draw_timeline(Timeline("x", 2.0, 2.0, np.zeros(1), shares, names), [Segment(0, 2, "20", 0.2)], None, topk=12)
        upper, lower = figures[-1].axes
        assert [line.get_color() for line in upper.lines[:3]] == [class_color(number) for number in leading]
        assert lower.patches[0].get_facecolor()[:3] == class_color(20)
        frames = np.zeros((2, 4, 4, 3), dtype=np.uint8)
        draw_prediction(prediction_of(frames, [(names[number], 0.3) for number in leading]), [], None, names)
        assert [bar.get_facecolor()[:3] for bar in figures[-1].axes[-1].patches] == [class_color(n) for n in leading]


@pytest.mark.parametrize(("count", "listed", "more"), [(16, 16, None), (17, 16, "and 1 more"), (40, 16, "and 24 more")])
def test_the_legend_names_sixteen_colors(count, listed, more):
    figure = draw.new_figure(4, 4)
    draw._add_legend(figure, {number + 3: f"_{number}" for number in range(count)})
    texts = [text.get_text() for text in figure.legends[0].get_texts()]
    assert texts == [f" _{number}" for number in range(listed)] + [more] * (more is not None)
    assert figure.legends[0].get_patches()[0].get_facecolor() == (*class_color(3), 1.0)
