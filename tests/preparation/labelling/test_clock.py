"""What numbers of tools mean, checked with frames that carry their own numbers; what is ambiguous is refused."""

from fractions import Fraction

import pytest

from lookupvit_video.decoding.backends import open_video
from lookupvit_video.errors import UserError
from lookupvit_video.preparation.labelling.clock import Clock, Convention, Mark, Span
from tests.videos import read_number, write_video

UNEVEN = [0, 0.02, 0.05, 0.3, 0.31, 0.7, 0.75, 1.0]


def shown(span):
    """The numbers on the first and last frame of a span, as training would read them."""
    with open_video(span.path) as reader:
        end = reader.duration if span.end is None else span.end
        first, last = reader.frames_at([span.start, end - 1e-4])
    return read_number(first.numpy()), read_number(last.numpy())


@pytest.fixture(scope="module")
def uneven(tmp_path_factory):
    return Clock(write_video(tmp_path_factory.mktemp("v") / "v.mp4", frames=8, times=UNEVEN, b_frames=2))


@pytest.mark.parametrize(
    ("how", "start", "end"),
    [
        (Convention("frames"), 2, 6),
        (Convention("frames", base=1), 3, 7),
        (Convention("frames", base=1, inclusive=True), 3, 6),
        (Convention("frames", inclusive=True), 2, 5),
        (Convention("frames", rate=100), 5, 75),
        (Convention("frames", rate=100, base=1, inclusive=True), 6, 75),
        (Convention("frames", rate=50), 2, 38),  # 0.04 is nearest to 0.05, 0.76 to 0.75
        (Convention("seconds"), 0.05, 0.75),
    ],
)
def test_every_way_to_count_names_the_same_frames(uneven, how, start, end):
    assert shown(uneven.span(Mark("v", "a", start, end), how)) == (2, 5)


def test_seconds_between_frames_stay_as_they_are(uneven):
    assert uneven.span(Mark("v", "a", 0.4, 0.6), Convention("seconds"))[2:4] == (0.4, 0.6)


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts"])
@pytest.mark.parametrize("origin", ["file", "first-frame"])
def test_seconds_count_from_the_file_or_its_first_frame(tmp_path, suffix, origin):
    path = write_video(tmp_path / f"v.{suffix}", frames=24, fps=24, start=6, with_audio=suffix != "ts")
    clock, late = Clock(path), 0.25 if suffix != "ts" else 0.0  # without sound, a stream begins with its picture
    assert clock.offset == pytest.approx(late, abs=0.03)
    shift = clock.offset if origin == "file" else 0.0
    how = Convention("seconds", origin=origin)
    assert shown(clock.span(Mark("v", "a", round(shift + 4 / 24, 3), round(shift + 9 / 24, 3)), how)) == (4, 8)
    if late:
        with pytest.raises(UserError, match="--origin"):
            clock.span(Mark("v", "a", 0.5, 0.9), Convention("seconds"))
    assert clock.span(Mark("v", "a", 4, 9), Convention("frames")).start == pytest.approx(4 / 24, abs=1e-3)


@pytest.mark.parametrize(
    ("how", "start", "end"),
    [
        (Convention("frames"), 2, 9),  # eight frames
        (Convention("frames", base=1), 0, 4),
        (Convention("frames"), 1.5, 4),
        (Convention("frames"), 4, 4),
        (Convention("seconds"), 3, 4),
        (Convention("frames", rate=25), 100, 120),
    ],
)
def test_what_is_not_in_the_video_is_refused(uneven, how, start, end):
    with pytest.raises(UserError, match=r"v\.mp4: 'a'"):
        uneven.span(Mark("v", "a", start, end), how)


def test_frames_too_near_for_a_rate_are_refused(uneven):
    span = Span(uneven.path, "a", UNEVEN[3], UNEVEN[4])
    assert uneven.mark(span, Convention("frames"))[2:4] == (3, 4)
    assert uneven.mark(span, Convention("frames", rate=200))[2:4] == (60, 62)
    with pytest.raises(UserError, match="choose a larger --rate"):
        uneven.mark(span, Convention("frames", rate=24))


def test_the_complete_video(uneven):
    assert uneven.mark(Span(uneven.path, "a"), Convention("frames", base=1, inclusive=True))[2:4] == (1, 8)
    assert uneven.mark(Span(uneven.path, "a"), Convention("seconds"))[2:4] == (None, None)


@pytest.mark.parametrize(("field", "value"), [("origin", "middle"), ("rate", 0.0)])
def test_options_out_of_range(field, value):
    with pytest.raises(UserError, match=f"--{field}"):
        Convention("frames", **{field: value}).validate()


def test_times_of_other_rates(tmp_path):
    clock = Clock(write_video(tmp_path / "v.mp4", frames=40, fps=Fraction(24000, 1001), b_frames=2))
    for frame in range(39):
        second = round(frame * 1001 / 24000, 3)
        assert clock.frames(clock.span(Mark("v", "a", second, second + 0.042), Convention("seconds")))[0] == frame
