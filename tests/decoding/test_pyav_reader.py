"""What the PyAV reader promises about opening files: no other address is read, nothing is missing, no time is lost."""

import itertools
import os
from pathlib import Path

import av
import pytest

from lookupvit_video.decoding import opening, reader
from lookupvit_video.decoding.backends import DecodeError, open_video
from lookupvit_video.decoding.pyav_reader import PyAVReader
from lookupvit_video.decoding.timeline import index_path
from lookupvit_video.inference.export import reference
from lookupvit_video.preparation import reencode as reencode_module
from lookupvit_video.preparation.inspect_file import inspect_file
from lookupvit_video.preparation.labelling import clock
from tests.videos import write_video

# name: how the file is written; each is opened by another way through the reader
KINDS = {
    "plain.mp4": {},
    "b.mkv": {"b_frames": 2},
    "vp9.webm": {"codec": "libvpx-vp9"},
    "mpeg4.avi": {"codec": "mpeg4"},
    "edit_list.mp4": {"b_frames": 2, "start": -7},
    "raw.h264": {"b_frames": 2},
}


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    return {name: write_video(folder / name, frames=24, **settings) for name, settings in KINDS.items()}


def _opened_for_the_exported_script(path):
    with reference.open_video(path):
        pass


def _read_by_check(path):
    assert inspect_file(path).width


# every way of this package to open a video, whose tags may be in any encoding
OPENINGS = {
    "reader": lambda path: open_video(path).frames_at([0.1]),
    "check": _read_by_check,
    "labels": clock._seconds_before_the_picture,
    "reencode": lambda path: reencode_module._open(Path(path)).close(),
    "exported script": _opened_for_the_exported_script,
}


@pytest.mark.parametrize("name", OPENINGS)
def test_tags_that_are_not_utf_8_do_not_keep_a_file_from_being_opened(videos, tmp_path, name):
    path, data = tmp_path / "tags.mp4", Path(videos["plain.mp4"]).read_bytes()
    assert data.count(b"Lavf") == 1  # the name of what wrote the file
    path.write_bytes(data.replace(b"Lavf", b"\xe9\xff\xe8\xfe"))
    OPENINGS[name](str(path))


@pytest.mark.parametrize("name", [*KINDS, "text.mp4", "cut.mkv", "cut.mp4"])
def test_every_opening_is_limited_to_local_files(videos, tmp_path, monkeypatch, name):
    """A file may name others, on the network too (playlists, references in mov): libav must not follow."""
    opened, plain = [], av.open

    def note(file, *given, **options):
        opened.append((file, options))
        return plain(file, *given, **options)

    path = videos.get(name)
    if path is None:
        path = tmp_path / name
        source = videos["b.mkv" if name.endswith("mkv") else "plain.mp4"]
        data = Path(source).read_bytes()
        path.write_bytes(data[: len(data) // 2] if name.startswith("cut") else bytes(range(256)) * 4)
    monkeypatch.setattr(av, "open", note)
    try:
        with open_video(path, timeout=50.0) as video:
            video.frames_at([0.9, 0.1])
    except DecodeError:
        assert name not in KINDS
    assert opened
    for file, options in opened:
        assert file == f"file:{path}"
        assert options["container_options"]["protocol_whitelist"] == "file"
        if options["format"] is None:
            assert "hls" not in options["container_options"]["format_whitelist"].split(",")
        assert options["timeout"] == 50.0


def test_a_playlist_that_does_not_look_like_text_is_not_followed(videos, tmp_path):
    """libav would open the local file that it names."""
    path = tmp_path / "list.m3u8"
    path.write_bytes(b"#EXTM3U\n#\x01\n#EXTINF:10,\n" + str(videos["plain.mp4"]).encode() + b"\n#EXT-X-ENDLIST\n")
    with pytest.raises(DecodeError, match="cannot be opened"):
        open_video(path)


def test_no_limit_of_time_is_none(videos, monkeypatch):
    given, plain = [], av.open
    monkeypatch.setattr(
        av, "open", lambda *args, **options: given.append(options["timeout"]) or plain(*args, **options)
    )
    open_video(videos["plain.mp4"], timeout=0).close()
    assert set(given) == {None}
    given.clear()
    PyAVReader(videos["plain.mp4"]).close()  # no limit unless told
    assert set(given) == {None}
    given.clear()
    open_video(videos["plain.mp4"]).close()
    assert set(given) == {60.0}


@pytest.mark.parametrize("name", KINDS)
def test_reading_the_packets_is_within_the_deadline(videos, monkeypatch, name):
    """A file that trickles in, packet by packet, each of them in time."""
    monkeypatch.setattr(reader.time, "monotonic", itertools.count().__next__)
    with pytest.raises(DecodeError, match=r"took longer than 9 s to decode \(DATA\.DECODE_TIMEOUT\)"):
        open_video(videos[name], timeout=9)
    open_video(videos[name], timeout=0).close()


@pytest.mark.parametrize(("threads", "kind"), [(None, "NONE"), (1, "NONE"), (0, "AUTO")])
def test_a_reader_decodes_on_one_thread_where_nothing_else_is_asked_for(videos, threads, kind):
    with PyAVReader(videos["plain.mp4"], **({} if threads is None else {"threads": threads})) as video:
        video.frames_at([0.1])
        assert video.file.threads == (1 if threads is None else threads)
        assert video.file.decoder.thread_type.name == kind


def test_an_index_of_another_file_is_forgotten_and_is_no_damage(tmp_path):
    """As if a file had been replaced by another of the same size at the same time."""
    path, other = (write_video(tmp_path / f"{start}.mp4", frames=24, start=start) for start in (0, 30))
    with open_video(path) as video:
        times, expected = video.times, video.frames_at([0.5])
    open_video(other, index_cache=tmp_path).close()
    wrong = index_path(tmp_path, path)
    wrong.parent.mkdir(exist_ok=True)
    index_path(tmp_path, other).replace(wrong)
    with open_video(path, index_cache=tmp_path) as video:
        assert (video.frames_at([0.5]) == expected).all()
        assert video.times.tolist() == times.tolist()
        assert not video.damage


def test_one_missing_frame_is_missing(tmp_path):
    path = tmp_path / "a.mp4"
    write_video(path, frames=24, container_options={"movflags": "faststart"})
    sound = path.read_bytes()
    with av.open(str(path)) as container:
        packets = [(p.pos, p.size) for p in container.demux(video=0) if p.size]
    assert packets[-1][0] + packets[-1][1] == len(sound)
    open_video(path).close()
    for keep, left in ((packets[-1][0], 23), (packets[-2][0], 22), (packets[-1][0] + 1, None)):
        path.write_bytes(sound[:keep])
        with pytest.raises(DecodeError, match=rf"truncated: holds {left or '23'} of 24 frames"):
            open_video(path)


@pytest.mark.parametrize(("name", "reason"), [("a.mp4", "is not a regular file"), ("b.mp4", "no such file")])
def test_what_is_no_file(tmp_path, name, reason):
    os.mkfifo(tmp_path / "a.mp4")
    with pytest.raises(DecodeError, match=reason):
        open_video(tmp_path / name)


def test_the_first_bytes_say_what_they_leave_no_doubt_of(videos):
    kinds = {Path(path).suffix: opening._format_by_head(str(path)) for path in videos.values()}
    assert kinds[".mp4"] == "mp4"
    assert kinds.get(".webm", "matroska") == kinds.get(".mkv", "matroska") == "matroska"
    assert kinds.get(".avi") is None


def test_pictures_of_codecs_decoded_from_key_to_key_are_kept(tmp_path, monkeypatch):
    """So that a damaged one shows the same at each reading, see ``FrameKeeper``."""
    made, plain = [], opening.FrameKeeper
    monkeypatch.setattr(opening, "FrameKeeper", lambda: made.append(plain()) or made[-1])
    for codec, suffix in (("libx264", ".mp4"), ("libvpx", ".webm")):
        made.clear()
        with open_video(write_video(tmp_path / f"a{suffix}", codec=codec, frames=6)) as video:
            video.frames_at([0.1])
            assert bool(made) == video.file.from_key_to_key == (suffix == ".webm")
