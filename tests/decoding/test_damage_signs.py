"""Each sign of damage is read by itself, and hides nothing from others who listen to libav."""

import logging
from fractions import Fraction
from pathlib import Path

import av
import av.logging
import numpy as np
import pytest

from lookupvit_video.decoding import damage
from lookupvit_video.decoding.backends import DecodeError, open_video
from lookupvit_video.decoding.damage import UnfilledWatch, arm_hevc, count_errors, errors_so_far, listening
from lookupvit_video.decoding.reader import DamageList
from tests.videos import draw_frame, write_video


@pytest.fixture
def silent():
    """PyAV as it is when nobody has asked for libav's messages."""
    level = av.logging.get_level()
    av.logging.set_level(None)
    yield
    av.logging.set_level(level)


def test_errors_are_counted_without_being_passed_on(silent, caplog):
    count_errors()
    before = errors_so_far()
    av.logging.log(av.logging.ERROR, "h264", "one")
    av.logging.log(av.logging.WARNING, "h264", "two")
    assert errors_so_far() == before + 1
    assert not caplog.records


def test_who_listens_to_libav_hears_all_of_it_while_a_reader_listens(silent, caplog):
    av.logging.set_level(av.logging.WARNING)
    with caplog.at_level(logging.WARNING, logger="libav"), listening() as said:
        av.logging.log(av.logging.ERROR, "h264", "first")
        av.logging.log(av.logging.WARNING, "h264", "second")
    assert said == ["h264: first"]
    assert [record.message for record in caplog.records] == ["first", "second"]
    assert av.logging.get_level() == av.logging.WARNING


def test_a_level_of_none_comes_back(silent):
    with listening(), listening() as inner:
        av.logging.log(av.logging.ERROR, "h264", "x")
    assert inner == ["h264: x"]
    assert av.logging.get_level() is None


def test_how_often_an_earlier_file_repeated_a_line_is_no_sign_of_the_next(silent, caplog):
    for _ in range(2):
        with listening() as earlier:
            for _ in range(3):
                av.logging.log(av.logging.ERROR, "h264", "of the earlier file")
    assert earlier == ["h264: of the earlier file"]
    with listening() as said:
        av.logging.log(av.logging.ERROR, "h264", "of this file")
    assert said == ["h264: of this file"]


def test_of_each_kind_the_first_find_counts():
    found = DamageList()
    found.note("a", "1")
    found.note("b", "2")
    found.note("a", "3")
    assert str(found) == "a: 1; b: 2"


def hevc_packets(path):
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        setup = stream.codec_context.extradata
        return [packet for packet in container.demux(stream) if packet.size], setup


@pytest.mark.parametrize("suffix", [".mp4", ".ts"])
def test_a_tail_changes_no_sound_picture(tmp_path, suffix):
    path = write_video(tmp_path / f"a{suffix}", codec="libx265", b_frames=2, frames=12)
    pictures = []
    for armed in (False, True):
        packets, setup = hevc_packets(path)
        decoder = av.CodecContext.create("hevc", "r")
        if suffix == ".mp4":
            decoder.extradata = setup
        size = 4 if suffix == ".mp4" else 0
        sent = [arm_hevc(packet, size) if armed else packet for packet in packets]
        assert all((a.size > b.size) == armed for a, b in zip(sent, packets, strict=True))
        assert [(p.pts, p.dts, p.is_keyframe) for p in sent] == [(p.pts, p.dts, p.is_keyframe) for p in packets]
        frames = [frame for packet in [*sent, None] for frame in decoder.decode(packet)]
        pictures.append(np.stack([frame.to_ndarray() for frame in frames]))
    assert np.array_equal(*pictures)


@pytest.mark.parametrize("data", [b"", b"\0\0\0\x05\x02\x01", b"\0\0\0\x04\x02\x01ab", b"\xff" * 9])
def test_a_damaged_packet_keeps_its_bytes(data):
    kept = damage._with_tails(data, 4).replace(damage._TAIL, b"")
    assert kept[4:] == data[4:], "but for the length of a sound unit"
    assert damage._with_tails_between_codes(data) == data


def test_parts_that_are_not_decoded_are_found(tmp_path):
    frame = av.VideoFrame.from_ndarray(draw_frame(1), format="rgb24").reformat(format="yuv420p")
    assert not UnfilledWatch().has_unfilled([frame])
    for plane in frame.planes:  # its lower half, as if the slice had ended there
        lines = np.frombuffer(plane, np.uint8).reshape(plane.height, -1).copy()
        lines[plane.height // 2 :] = 0
        plane.update(lines.tobytes())
    assert UnfilledWatch().has_unfilled([frame])


def test_damaged_hevc_is_refused_with_what_the_decoder_says(tmp_path):
    path = Path(write_video(tmp_path / "a.mp4", codec="libx265", size=(128, 96), b_frames=2, frames=20))
    data = bytearray(path.read_bytes())
    hit = hevc_packets(path)[0][6]
    data[hit.pos : hit.pos + 4] = b"\xff\xff\xff\xff"  # the length of its first unit
    path.write_bytes(data)
    for _ in range(2):
        with (
            open_video(path) as video,
            pytest.raises(DecodeError, match="damaged: picture data: the decoder reports"),
        ):
            video.frames_at(video.times.tolist())


def test_vp9_is_decoded_by_the_library_that_compares_where_data_ends(tmp_path):
    path = Path(write_video(tmp_path / "a.webm", codec="libvpx-vp9", size=(128, 96), frames=30))
    with open_video(path) as video:
        video.frames_at([0.5])
        assert video.file.decoder.name == "libvpx-vp9"
        assert not video.damage
    with av.open(str(path)) as container:
        hit = [packet for packet in container.demux(video=0) if packet.size][10]
    data = bytearray(path.read_bytes())
    data[hit.pos + hit.size // 2] ^= 0x10
    path.write_bytes(data)
    with open_video(path) as video:
        video.frames_at(video.times.tolist())
        assert [found.kind for found in video.damage][:1] == ["picture data"]


def test_frames_that_vanish_are_counted_and_shift_no_other(tmp_path):
    """The frames that are left keep their times; in the place of a lost one the one before is shown."""
    path = Path(write_video(tmp_path / "a.mp4", frames=30, gop=10, size=(128, 96)))
    with av.open(str(path)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
    data = bytearray(path.read_bytes())
    for packet in [*packets[0:5], *packets[15:20], *packets[25:30]]:
        data[packet.pos : packet.pos + packet.size] = bytes(packet.size)
    with open_video(path) as sound:
        duration, shown = sound.duration, sound.frames_at([12 / 24, 14 / 24, 23 / 24])
    path.write_bytes(data)
    with open_video(path) as video:
        left = video.frames_at([12 / 24, 14 / 24, 23 / 24])
        assert np.array_equal(left.numpy(), shown.numpy())
        assert np.array_equal(video.frames_at([17 / 24])[0].numpy(), shown[1].numpy()), "the last before the gap"
        assert video.duration == pytest.approx(duration)
        assert video.times[0] == 0
        lost = next(found.detail for found in video.damage if found.kind == "lost frames")
        assert int(lost.split()[0]) >= 15
        assert lost.endswith("of 30 frames are not decoded")


def test_a_file_joined_from_two_that_count_from_zero_is_named(tmp_path):
    parts = [Path(write_video(tmp_path / f"{i}.ts", first_number=100 * i, frames=24)).read_bytes() for i in range(2)]
    path = tmp_path / "joined.ts"
    path.write_bytes(b"".join(parts))
    with open_video(path) as video:
        video.frames_at(video.times.tolist())
        assert "time stamps" in [found.kind for found in video.damage]


def test_a_size_or_pixel_shape_that_cannot_be_is_reported_and_not_followed(tmp_path):
    path = Path(write_video(tmp_path / "a.webm", codec="libvpx-vp9", size=(128, 96), frames=8))
    data = path.read_bytes()
    at = data.index(b"\xb0\x81\x80\xba\x81\x60")  # PixelWidth 128, PixelHeight 96
    path.write_bytes(data[: at + 2] + b"\xf0" + data[at + 3 :])
    with open_video(path) as video:
        assert video.frames_at([0.0]).shape == (1, 96, 128, 3)
        assert [found.kind for found in video.damage] == ["picture size"]


def test_an_odd_pixel_is_taken_for_square_and_reported(tmp_path):
    path = write_video(tmp_path / "a.mp4", size=(128, 96), frames=8, pixel_shape=Fraction(33, 8))
    with open_video(path) as video:
        assert video.frames_at([0.0]).shape == (1, 96, 128, 3), "not 528 wide"
        assert [found.kind for found in video.damage] == ["pixel shape"]
