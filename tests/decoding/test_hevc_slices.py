"""Pictures of which the last bytes are never read are found in damaged HEVC, and none in sound files."""

import random
from pathlib import Path

import av
import pytest

from lookupvit_video.decoding import hevc_slices, pyav_reader
from lookupvit_video.decoding.backends import open_video
from lookupvit_video.decoding.hevc_slices import pictures_not_read_to_their_end
from tests.decoding.test_damaged_videos import first_picture_ends, flip
from tests.videos import write_video

HEVC = {"codec": "libx265", "size": (128, 96), "frames": 20, "gop": 10, "b_frames": 2}


def packets_of(path):
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        return [packet for packet in container.demux(stream) if packet.size], stream.codec_context.extradata


@pytest.mark.parametrize("suffix", [".mp4", ".ts"])
def test_sound_pictures_change_with_the_last_bytes_of_their_slices(tmp_path, suffix, monkeypatch):
    packets, setup = packets_of(write_video(tmp_path / f"a{suffix}", **HEVC))
    tried, plain = [], hevc_slices._with_other_ends
    monkeypatch.setattr(hevc_slices, "_with_other_ends", lambda *given: tried.append(plain(*given)) or tried[-1])
    assert pictures_not_read_to_their_end(packets, setup, 4 if suffix == ".mp4" else 0) == 0
    unreferenced = [other for other, is_unreferenced in tried if other is not None and is_unreferenced]
    assert unreferenced, "key frames are tried, and these"


def test_a_picture_whose_data_goes_on_past_its_end_is_found(tmp_path):
    """As if its decoder had come to the last block too early: bytes are left over."""
    packets, setup = packets_of(write_video(tmp_path / "a.mp4", **HEVC))
    found = []
    for number, packet in enumerate(packets):
        data = bytes(packet)
        length = int.from_bytes(data[-_last_unit(data) - 4 : -_last_unit(data)], "big")
        longer = data[: -length - 4] + (length + 40).to_bytes(4, "big") + data[-length:] + bytes(range(1, 41))
        other = av.Packet(longer)
        other.pts, other.dts, other.time_base, other.is_keyframe = packet.pts, packet.dts, packet.time_base, number == 0
        found.append(pictures_not_read_to_their_end([packets[0], other] if number else [other], setup, 4))
    assert found[0] == 1


def _last_unit(data):
    at = length = 0
    while at + 4 < len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        at += 4 + length
    return length


def test_a_thorough_look_reports_it(tmp_path, monkeypatch):
    path = Path(write_video(tmp_path / "a.mp4", **(HEVC | {"frames": 30})))
    with open_video(path) as video:
        video.look_at_all()
        assert not video.damage
    given, plain = [], pyav_reader.pictures_not_read_to_their_end
    monkeypatch.setattr(pyav_reader, "pictures_not_read_to_their_end", lambda *a: given.append(a[1:]) or plain(*a))
    with open_video(path) as video:
        video.look_at_all()
    assert given == [(packets_of(path)[1], 4)]
    data, first = path.read_bytes(), first_picture_ends(path)
    found = 0
    for seed in range(12):
        path.write_bytes(flip(data, first, random.Random(seed)))
        packets, setup = packets_of(path)
        found += pictures_not_read_to_their_end(packets, setup, 4) > 0
    assert found >= 3
