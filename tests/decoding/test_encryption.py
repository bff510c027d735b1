"""Encrypted videos are named as such, in every form; headers without pictures as that."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from lookupvit_video.decoding.backends import BACKENDS, DecodeError, open_video
from lookupvit_video.preparation.inspect_file import inspect_file
from tests.damage import ORIGINALS
from tests.encrypted import FORMS, FRAGMENTED, PROTECTED, box
from tests.videos import read_number, write_video

USABLE = [name for name, reader in BACKENDS.items() if reader.missing() is None]


@pytest.mark.parametrize("name", FORMS)
def test_encrypted_videos_are_named_so(tmp_path, name):
    FORMS[name](tmp_path / name)
    for backend in USABLE:
        with pytest.raises(DecodeError, match=r"is encrypted \(.*\): there is no key") as caught:
            open_video(tmp_path / name, backend)
        assert "\n" not in str(caught.value)
    assert [problem.kind for problem in inspect_file(str(tmp_path / name)).problems] == ["encrypted"]


@pytest.mark.skipif(not shutil.which("ffmpeg"), reason="no ffmpeg on this machine")
def test_what_ffmpeg_encrypts_is_named_so(tmp_path):
    plain = write_video(tmp_path / "a.mp4")
    for number, flags in enumerate(([], ["-movflags", "frag_keyframe+empty_moov+default_base_moof"])):
        out = tmp_path / f"{number}.mp4"
        settings = [part for key, value in PROTECTED.items() for part in (f"-{key}", value)]
        command = ["ffmpeg", "-v", "error", "-i", plain, "-c", "copy", *settings, *flags, str(out)]
        subprocess.run(command, check=True)
        with pytest.raises(DecodeError, match="is encrypted"):
            open_video(out)


def test_encrypted_sound_does_not_count(tmp_path):
    """The sound's sample entry says it is encrypted; the pictures are clear."""
    path = Path(write_video(tmp_path / "a.mp4", with_audio=True, frames=12))
    data = path.read_bytes()
    path.write_bytes(data.replace(b"mp4a\0\0\0\0\0\0\0\1", b"enca\0\0\0\0\0\0\0\1"))
    with open_video(path) as video:
        assert read_number(video.frames_at([5 / 24])[0].numpy()) == 5


@pytest.mark.parametrize("name", ORIGINALS)
def test_sound_files_are_not_taken_for_encrypted(tmp_path, name):
    with open_video(write_video(tmp_path / name, **{"frames": 30, "gop": 10, **ORIGINALS[name]})) as video:
        assert len(video.times) == 30


def test_a_scrambled_packet_in_passing_is_damage(tmp_path):
    path = Path(write_video(tmp_path / "a.ts", frames=200))
    data = bytearray(path.read_bytes())
    data[188 * 20 + 3] |= 0x80
    path.write_bytes(data)
    open_video(path).close()


# Without pictures -----------------------------------------------------------------------------------------------------


def _cut_before(path, sign, back=0):
    data = path.read_bytes()
    path.write_bytes(data[: data.index(sign) - back])


def initial_segment(path):
    write_video(path, container_options=FRAGMENTED)
    _cut_before(path, b"moof", 4)


def empty_tables(path):
    write_video(path, frames=3)
    data = bytearray(path.read_bytes())
    for table in (b"stts", b"stsc", b"stsz", b"stco", b"stss"):
        at = data.index(table) + 8
        data[at + 4 * (table == b"stsz") : at + 4 + 4 * (table == b"stsz")] = bytes(4)
    path.write_bytes(data)


def lone_fragment(path):
    write_video(path, container_options=FRAGMENTED)
    data = path.read_bytes()
    path.write_bytes(box(b"styp", b"msdh\0\0\0\0msdh") + data[data.index(b"moof") - 4 :])


def matroska_header(path):
    write_video(path, container_options={"live": "1"})
    _cut_before(path, b"\x1f\x43\xb6\x75")


@pytest.mark.parametrize(
    ("name", "make", "reason", "kind"),
    [
        ("initial_segment.mp4", initial_segment, "holds no frames", "no frames"),
        ("empty_tables.mp4", empty_tables, "holds no frames", "no frames"),
        ("fragment.mp4", lone_fragment, r"is a fragment without its header \(moov\)", "no frames"),
        ("header.mkv", matroska_header, "holds no frames", "no frames"),
    ],
)
def test_headers_without_pictures_say_so(tmp_path, name, make, reason, kind):
    make(tmp_path / name)
    for backend in USABLE:
        with pytest.raises(DecodeError, match=reason):
            open_video(tmp_path / name, backend)
    assert [problem.kind for problem in inspect_file(os.fspath(tmp_path / name)).problems] == [kind]
