"""Names of sources, what they may open, and their time stamps."""

import sys

import pytest

from lookupvit_video.decoding.reader import DecodeError
from lookupvit_video.errors import UserError
from lookupvit_video.inference.streaming.source import (
    Source,
    SourceClock,
    decoded_frames,
    open_source,
    parse_source,
)
from tests.inference.streaming.servers import serving_files, write_colors


def seconds_of(source):
    with open_source(source, 5.0) as container:
        return [frame.time for frame in decoded_frames(container, source.name)]


def test_what_names_stand_for(tmp_path, monkeypatch):
    (tmp_path / "x.mp4").write_bytes(b"x")
    kinds = {"-": "pipe", "0": "camera", "12": "camera", "rtsp://u:p@h/x": "rtsp", "HTTPS://h/x.m3u8": "http",
             str(tmp_path / "x.mp4"): "file"}  # fmt: skip
    monkeypatch.setattr(sys, "platform", "linux")
    assert {name: parse_source(name).kind for name in kinds} == kinds
    assert [parse_source(name).is_live for name in kinds] == [False, True, True, True, True, False]
    assert parse_source("rtsp://u:p@h/x").shown_name == "rtsp://h/x"
    monkeypatch.setattr(sys, "platform", "win32")
    for name, message in (
        ("0", "cameras are read on Linux and macOS only"), ("ftp://h/x", "a URL must begin with http://, https://"),
        ("file:///etc/passwd", "a URL must begin with"), (str(tmp_path / "none.mp4"), "none.mp4: no such file"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=f"--source .*{message}"):
            parse_source(name)


def test_a_playlist_of_the_network_opens_no_file_and_a_file_no_network(tmp_path):
    (tmp_path / "web").mkdir()
    write_colors(tmp_path / "secret.ts", ["red"])
    write_colors(tmp_path / "web" / "open.ts", ["red"])
    playlist = "#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\n{}\n#EXT-X-ENDLIST\n"
    with serving_files(tmp_path / "web") as address:
        for name, entry in (("open", "open.ts"), ("secret", f"file://{tmp_path}/secret.ts")):
            (tmp_path / "web" / f"{name}.m3u8").write_text(playlist.format(entry))
        assert len(seconds_of(Source(f"{address}/open.m3u8", "http"))) == 32
        with pytest.raises(DecodeError):
            assert seconds_of(Source(f"{address}/secret.m3u8", "http")) == ["nothing"]
        (tmp_path / "local.m3u8").write_text(playlist.format(f"{address}/open.ts"))
        with pytest.raises(DecodeError, match="is text, not a video"):
            seconds_of(Source(str(tmp_path / "local.m3u8"), "file"))
        with pytest.raises(DecodeError, match="cannot be opened"):
            open_source(Source(f"{address}/none.m3u8", "http"), 5.0)


def test_seconds_count_from_the_first_frame():
    clock = SourceClock()
    assert [clock.seconds(stamp) for stamp in (100.0, 100.5, 100.25, None)] == [
        (0.0, False), (0.5, False), (None, False), (1.0, False)
    ]  # fmt: skip
    assert clock.seconds(130.0) == (30.0, False)  # a long frame of a file


def test_an_interruption_is_as_long_as_it_lasted():
    clock = SourceClock()
    clock.is_endless = True
    clock.interrupted(3.0)  # before the first frame: nothing was cut
    for number in range(3):
        clock.seconds(50 + number * 0.5)
    clock.interrupted(7.0)
    assert clock.seconds(0.25) == (8.0, True)
    assert clock.seconds(0.75) == (8.5, False)
    assert clock.seconds(99.0) == (9.0, True)  # its time stamps jump
    assert clock.seconds(99.5) == (9.5, False)
    assert clock.seconds(0.0) == (10.0, True)
    clock.interrupted(0.01)
    assert clock.seconds(77.0) == (10.5, True)  # a period at least
