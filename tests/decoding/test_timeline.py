"""Time lines from packets that a test makes up, and where they are kept; of real files: test_backends.py."""

import itertools
import os
from types import SimpleNamespace

import numpy as np
import pytest

from lookupvit_video.decoding import timeline
from lookupvit_video.decoding.reader import DamageList
from lookupvit_video.decoding.timeline import (
    FrameTimeline,
    Key,
    announced_stamps,
    index_path,
    is_unreferenced,
    length_size,
    load_timeline,
    longest_rise,
    nal_layout,
    note_packets,
    packet_end,
    save_timeline,
    timeline_of_frames,
    timeline_of_packets,
)

# Kept on disk -----------------------------------------------------------------------------------------------------


@pytest.fixture
def video(tmp_path):
    path = tmp_path / "a.mp4"
    path.write_bytes(b"x" * 10)
    os.utime(path, ns=(1_000_000_000, 1_000_000_000))
    return path


def test_a_video_that_changed_has_another_index(video, tmp_path, monkeypatch):
    folder, first = tmp_path / "index", index_path(tmp_path / "index", str(video))
    assert index_path(folder, str(video)) == first
    os.utime(video, ns=(9_000_000_000, 1_000_000_000))  # read, not written
    assert index_path(folder, str(video)) == first
    os.utime(video, ns=(1_000_000_000, 1_000_000_001))  # replaced by another of the same size
    changed = [index_path(folder, str(video))]
    os.utime(video, ns=(1_000_000_000, 1_000_000_000))
    assert index_path(folder, str(video)) == first
    video.write_bytes(b"x" * 11)
    os.utime(video, ns=(1_000_000_000, 1_000_000_000))
    changed.append(index_path(folder, str(video)))
    video.write_bytes(b"x" * 10)
    os.utime(video, ns=(1_000_000_000, 1_000_000_000))
    other = tmp_path / "b.mp4"
    other.write_bytes(b"x" * 10)
    os.utime(other, ns=(1_000_000_000, 1_000_000_000))
    changed.append(index_path(folder, str(other)))
    with monkeypatch.context() as patched:
        patched.setattr(timeline.av, "library_versions", {"libavcodec": (1, 2, 3)})
        changed.append(index_path(folder, str(video)))
    assert len({first, *changed}) == 5


def test_an_index_lies_in_one_of_256_folders_and_does_not_depend_on_where_one_stands(video, tmp_path, monkeypatch):
    path = index_path("index", str(video))
    assert path.parts[0] == "index"
    assert [len(part) for part in path.parts[1:]] == [2, 30 + len(".npz")]
    assert set(path.parent.name + path.stem) <= set("0123456789abcdef")
    monkeypatch.chdir(tmp_path)
    assert index_path("index", "a.mp4") == path


@pytest.mark.parametrize("sequential", [False, True])
@pytest.mark.parametrize("closed", [False, True])
def test_a_time_line_comes_back_as_it_was(tmp_path, sequential, closed):
    keys = [Key(0, None, ()), Key(2, -5, (7,)), Key(3, 9, (1, 2, 3))]
    kept = FrameTimeline([None, -5, 7, 9], np.array([0.0, 0.1, 0.25, 1e6]), keys, sequential, closed)
    save_timeline(tmp_path / "deep" / "x.npz", kept)
    found = load_timeline(tmp_path / "deep" / "x.npz")
    assert (found.pts, found.keys, found.sequential, found.closed) == (kept.pts, keys, sequential, closed)
    assert found.times.tolist() == kept.times.tolist()
    assert found.times.dtype == np.float64
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["x.npz"]
    assert load_timeline(tmp_path / "none.npz") is None


# Of a full decode -------------------------------------------------------------------------------------------------


def decoded(pts, announced=None, average=None, guessed=None):
    """Return (stamps, times, damage) of frames as they were decoded, half a second a unit."""
    damage = DamageList()
    stream = SimpleNamespace(time_base=0.5, average_rate=average, guessed_rate=guessed)
    found = timeline_of_frames(pts, announced, stream, damage)
    if found is not None:
        assert (found.sequential, found.closed, found.keys) == (True, False, [Key(0, None, ())])
        found = (found.pts, found.times.tolist())
    return found, str(damage)


def test_frames_have_their_stamps_which_count_from_the_first_announced():
    assert decoded([4, 5, 7]) == (([4, 5, 7], [0, 0.5, 1.5]), "")
    assert decoded([4, 5, 7], [4, 5, 7]) == (([4, 5, 7], [0, 0.5, 1.5]), "")
    found, damage = decoded([5, 7], [4, 5, 6, 7])
    assert found == ([5, 7], [0, 1.5])  # the first decoded is shown from the start on
    assert "2 of 4 frames are not decoded" in damage


def test_a_few_stamps_out_of_order_are_damage_and_many_are_none():
    found, damage = decoded([0, 1, 9, 2, 3, 4, 5])
    assert found == ([0, 1, 2, 3, 4, 5], [0, 0.5, 1, 1.5, 2, 2.5])
    assert "1 of 7 frames have none, or out of order" in damage
    many = [0, 1, None, 2, 3]  # four fifths, no more
    assert decoded(many) == (None, "")
    assert decoded(many, average=4) == ((many, [0, 0.25, 0.5, 0.75, 1]), "")
    assert decoded(many, guessed=2) == ((many, [0, 0.5, 1, 1.5, 2]), "")
    assert decoded(many, average=4, guessed=2)[0][1][1] == 0.25
    assert decoded([None, None], average=4) == (([None, None], [0, 0.25]), "")
    assert decoded([0, 1, None, 2, 3], [0, 1, 2, 3])[0][0] == [0, 1, 2, 3]  # announced, so they are times


# Packets of H.264 -------------------------------------------------------------------------------------------------


def stream_of(codec="h264", extradata=b"\x01\x64\x00\x1f\xff", b_frames=False):
    context = SimpleNamespace(
        codec=SimpleNamespace(canonical_name=codec), extradata=extradata, has_b_frames=b_frames
    )  # fmt: skip
    return SimpleNamespace(codec_context=context, time_base=0.5)


@pytest.mark.parametrize(
    ("codec", "extradata", "expected"),
    [
        ("h264", b"\x01\x64\x00\x1f\xff\xe1", 4), ("h264", b"\x01\x64\x00\x1f\xfd", 2),
        ("h264", b"\x01\x64\x00\x1f\xfc", 1),
        ("h264", b"\x01\x64\x00\x1f", 0), ("h264", b"\0\0\0\x01\x67", 0), ("h264", b"", 0), ("h264", None, 0),
        ("vp9", b"\x01\x64\x00\x1f\xff", None), ("hevc", b"", None),
    ],
)  # fmt: skip
def test_how_long_the_lengths_before_nal_units_are(codec, extradata, expected):
    assert nal_layout(stream_of(codec, extradata)) == expected


@pytest.mark.parametrize("size", [1, 2, 4])
def test_of_hevc_the_length_is_said_further_on(size):
    assert length_size(stream_of("hevc", b"\x01" + bytes(20) + bytes([0xFC | size - 1]))) == size
    assert length_size(stream_of("hevc", b"\x01" + bytes(20))) == 0


def units(*headers, length=4):
    """NAL units of two bytes, each behind its length or (0) a start code."""
    return b"".join((b"\0\0\0\x01" if not length else (2).to_bytes(length, "big")) + bytes([h, 0x88]) for h in headers)


SLICE, IDR, SEI, PARAMETERS = 0x01, 0x05, 0x06, 0x67  # nal_unit_type (ITU-T H.264, table 7-1), nal_ref_idc 0


@pytest.mark.parametrize("length", [0, 1, 2, 4])
@pytest.mark.parametrize(
    ("headers", "unreferenced"),
    [
        ([SLICE], True), ([SEI, SLICE], True), ([SLICE, SLICE], True), ([SLICE | 0x20], False), ([SLICE | 0x40], False),
        ([SLICE | 0x60], False), ([SLICE, SLICE | 0x20], False), ([SEI], False), ([0x60 | SEI, SLICE], True),
        ([], False),
    ],
)  # fmt: skip
def test_pictures_that_no_other_is_predicted_from(length, headers, unreferenced):
    assert is_unreferenced(units(*headers, length=length), length) == unreferenced


def test_of_other_codecs_it_is_not_known():
    assert is_unreferenced(units(SLICE), None) is False
    assert is_unreferenced(b"", 4) is False
    assert is_unreferenced(b"\0\0\0", 4) is False


class Packet(bytes):
    """A packet of PyAV: its data, and what it says of itself."""

    def __new__(cls, data=b"", **facts):
        packet = super().__new__(cls, data)
        defaults = {"pts": 3, "dts": 2, "duration": 1, "is_keyframe": False, "is_discard": False, "is_corrupt": False}
        vars(packet).update(defaults | facts)
        return packet


def test_packets_are_noted():
    packets = [
        Packet(units(SEI, IDR), is_keyframe=True), Packet(units(SLICE | 0x60), is_keyframe=True),
        Packet(units(IDR)), Packet(units(SLICE), is_discard=True, pts=None, dts=4, duration=None),
        Packet(b"", is_corrupt=True, pts=None, dts=None),
    ]  # fmt: skip
    notes = note_packets(packets, stream_of())
    assert [(n.key, n.entry) for n in notes] == [
        (True, True), (True, False), (False, False), (False, False), (False, False),
    ]  # fmt: skip
    assert [(n.pts, n.dts, n.discard, n.corrupt) for n in notes[2:]] == [
        (3, 2, False, False), (None, 4, True, False), (None, None, False, True),
    ]  # fmt: skip
    assert [n.end for n in notes] == [2.0, 2.0, 2.0, 2.0, 0.5]
    assert [n.entry for n in note_packets(packets[:3], stream_of("vp9"))] == [True, True, False]


def test_when_a_packet_stops_being_shown():
    assert packet_end(Packet(pts=6, dts=1, duration=3), 0.5) == 4.5
    assert packet_end(Packet(pts=0, dts=9, duration=3), 0.5) == 1.5
    assert packet_end(Packet(pts=None, dts=4, duration=3), 0.5) == 3.5
    assert packet_end(Packet(pts=None, dts=None, duration=None), 0.5) == 0


# Time lines -------------------------------------------------------------------------------------------------------


def noted(*packets):
    """Notes of (pts, dts, flags): k key, n a key that is no entry, d discarded."""
    found = [Packet(pts=pts, dts=dts, is_keyframe=bool({*"kn"} & {*flags}), is_discard="d" in flags)
             for pts, dts, flags in packets]  # fmt: skip
    notes = note_packets(found, stream_of("vp9"))
    return [note._replace(entry="k" in flags) for note, (_, _, flags) in zip(notes, packets, strict=True)]


def line(*packets, container="mov,mp4", codec="vp9", b_frames=False):
    there = SimpleNamespace(format=SimpleNamespace(name=container))
    return timeline_of_packets(noted(*packets), there, stream_of(codec, b_frames=b_frames))


GOP = [(10, 8, "k"), (16, 10, ""), (12, 12, ""), (14, 14, ""), (18, 16, "k"), (20, 18, "")]


def test_frames_are_in_the_order_shown_and_times_count_from_the_first():
    found = line(*GOP, b_frames=True)
    assert found.pts == [10, 12, 14, 16, 18, 20]
    assert found.times.tolist() == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]
    assert (found.sequential, found.closed) == (False, True)


@pytest.mark.parametrize(
    ("container", "codec", "keys"),
    [
        ("mov,mp4", "vp9", [Key(0, 10, (10, 8, 8)), Key(4, 18, (18, 16, 8))]),
        ("matroska,webm", "h264", [Key(0, 10, (10, 8, 8)), Key(4, 18, (18, 16, 8))]),
        ("mpegts", "hevc", [Key(0, 10, (8, 8)), Key(4, 18, (16, 8))]),  # there libav seeks by decoding time
        ("avi", "mpeg4", [Key(0, 10, (8, 8))]),  # its times are guessed: from the start only
        ("mov,mp4", "theora", [Key(0, 10, (10, 8, 8))]),  # key frames of other codecs may need what came before
    ],
)
def test_where_decoding_can_begin(container, codec, keys):
    assert line(*GOP, container=container, codec=codec, b_frames=True).keys == keys


@pytest.mark.parametrize("codec", ["h264", "hevc", "vp8", "vp9", "av1", "mpeg4", "mpeg2video", "mjpeg"])
@pytest.mark.parametrize("container", ["mov", "mp4", "matroska", "webm", "mpegts", "flv"])
def test_codecs_and_containers_that_are_seeked_in(codec, container):
    assert len(line(*GOP, container=container, codec=codec, b_frames=True).keys) == 2


@pytest.mark.parametrize(
    "packets",
    [
        [], [(None, 8, "k"), (12, 10, "")], [(10, 8, "k"), (None, 10, "")], [(10, 8, ""), (12, 10, "k")],
        [(10, 8, "n"), (12, 10, "")], [(10, 8, "kd"), (12, 10, "d")], [(10, 8, "k"), (10, 10, "")],
        [(10, 6, "k"), (8, 8, ""), (12, 10, "")],  # shown before the first key frame
    ],
)  # fmt: skip
def test_packets_that_do_not_order_the_frames(packets):
    assert line(*packets) is None


@pytest.mark.parametrize(("container", "announced"), [("mov,mp4", [10, 12, 14]), ("mpegts", [12, 14])])
def test_a_recording_begins_with_its_first_key_frame_and_a_file_with_its_first(container, announced):
    there = SimpleNamespace(format=SimpleNamespace(name=container))
    packets = noted((10, 8, ""), (12, 10, "k"), (14, 12, ""))
    assert announced_stamps(packets, there, stream_of("hevc")) == announced
    assert announced_stamps(packets[:1], there, stream_of("hevc")) == (None if container == "mpegts" else [10])


def test_time_stamps_of_packets_are_none_of_pictures():
    """Frames are reordered and the time stamps are not: they were made up in the order of decoding."""
    rising = [(10, 10, "k"), (12, 12, ""), (14, 14, "")]
    assert line(*rising, b_frames=True) is None
    assert line(*rising, b_frames=False) is not None
    assert line((10, 8, "k"), (12, 10, ""), (14, 12, ""), b_frames=True) is not None  # pts are not dts: they are meant
    assert line((10, 8, "k"), (12, 10, ""), (14, 12, ""), b_frames=True, container="avi") is None
    assert line((10, 8, "k"), (14, 14, ""), (12, 12, ""), b_frames=True) is not None


def test_an_edit_list_cuts_frames_off():
    found = line((6, 6, "kd"), (8, 8, "d"), (10, 10, ""), (12, 12, "k"), (14, 14, ""))
    assert found.pts == [10, 12, 14]
    assert [key.frame for key in found.keys] == [0, 1]
    assert not found.closed
    late = line((10, 10, "k"), (12, 12, ""), (14, 14, "kd"))
    assert [key.frame for key in late.keys] == [0]  # a key that shows nothing is no place to begin


@pytest.mark.parametrize(
    ("packets", "closed"),
    [
        ([(10, 10, "k"), (12, 12, "k")], True), ([(10, 10, "k"), (12, 12, "n")], False),
        ([(10, 8, "k"), (16, 10, "k"), (14, 12, "")], False),  # shown before the key frame that it follows
        ([(10, 10, "k"), (12, 12, "d")], False),
    ],
)  # fmt: skip
def test_whether_no_picture_is_shown_before_its_key_frame(packets, closed):
    assert line(*packets).closed == closed


@pytest.mark.parametrize(
    ("stamps", "rise"),
    [
        ([], []), ([5], [5]), ([1, 2, 3], [1, 2, 3]), ([0, 1, 9, 2, 3, 3, 4], [0, 1, 2, 3, 4]), ([3, 2, 1], [1]),
        ([2, 2, 2], [2]), ([5, 1, 6, 2, 7, 3], [1, 2, 3]), ([1, 5, 2, 6, 3], [1, 2, 3]), ([-3, 7, -1, 8], [-3, -1, 8]),
    ],
)  # fmt: skip
def test_the_longest_rise(stamps, rise):
    assert longest_rise(stamps) == rise


def test_the_longest_rise_is_the_longest_there_is():
    rng = np.random.default_rng(0)
    for _ in range(50):
        stamps = rng.integers(0, 12, 9).tolist()
        found = longest_rise(stamps)
        assert all(a < b for a, b in itertools.pairwise(found))
        longest = [0] * 9
        for i, stamp in enumerate(stamps):
            longest[i] = 1 + max((longest[j] for j in range(i) if stamps[j] < stamp), default=0)
        assert len(found) == max(longest)
        rest = iter(stamps)
        assert all(stamp in rest for stamp in found)  # a subsequence
