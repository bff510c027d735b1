"""Folders of pictures: the bytes of the pictures, at the times of a video with the same frames."""

import numpy as np
import pytest
from PIL import Image

from lookupvit_video.benchmarks.videos import Geometry, make_video
from lookupvit_video.data.dataset import VideoDataset
from lookupvit_video.data.manifest import Video, load_split, read_manifest
from lookupvit_video.data.sampling import TimeSampler
from lookupvit_video.decoding.backends import DecodeError, open_video
from lookupvit_video.errors import UserError
from lookupvit_video.preparation.inspect_file import inspect_file
from tests.data.test_manifest import config_for


def write_pictures(folder, count=12, first=1, suffix="png", size=(24, 16)):
    folder.mkdir(parents=True, exist_ok=True)
    pictures = np.random.default_rng(0).integers(0, 256, (count, size[1], size[0], 3), dtype=np.uint8)
    for number, picture in enumerate(pictures, first):
        Image.fromarray(picture).save(folder / f"img_{number:05d}.{suffix}")
    return pictures


def test_png_frames_are_the_pictures_to_the_byte(tmp_path):
    pictures = write_pictures(tmp_path / "clip", first=8)
    with open_video(tmp_path / "clip", frame_rate=12.5) as reader:
        assert reader.times.tolist() == pytest.approx([k / 12.5 for k in range(12)])
        assert reader.duration == pytest.approx(12 / 12.5)
        info = reader.info
        assert (info.codec, info.width, info.height, info.fps, info.num_frames) == ("png", 24, 16, 12.5, 12)
        frames = reader.frames_at([*reader.times, 0.0, 99.0])
        assert np.array_equal(frames[:12].numpy(), pictures)
        assert np.array_equal(frames[12:].numpy(), pictures[[0, 11]])
        reader.look_at_all()
        assert not reader.damage


def test_jpg_frames_are_what_pillow_decodes(tmp_path):
    write_pictures(tmp_path / "clip", suffix="jpg")
    with open_video(tmp_path / "clip", frame_rate=30, in_memory=True) as reader:
        expected = np.asarray(Image.open(tmp_path / "clip" / "img_00003.jpg"))
        assert np.array_equal(reader.frames_at([2 / 30])[0].numpy(), expected)
        assert reader.info.codec == "jpeg"


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("mode", ["clip", "segments"])
def test_clips_are_those_of_a_video_with_the_same_frames(tmp_path, mode, training):
    video = tmp_path / "v.mkv"
    make_video(video, Geometry("", ".mkv", "libx264", (32, 24), 10, 30, 5, 4.0), 0)
    with open_video(video) as reader:
        frames, rate = reader.frames_at(reader.times.tolist()).numpy(), reader.info.fps
    (tmp_path / "v").mkdir()
    for number, frame in enumerate(frames):
        Image.fromarray(frame).save(tmp_path / "v" / f"{number}.png")
    times = TimeSampler(4, 0.2, mode=mode, num_clips=2, training=training)
    rows = [Video(str(video), 0, 0.5, 2.5), Video(str(tmp_path / "v"), 0, 0.5, 2.5, fps=rate)]
    clips = [
        VideoDataset([row], times=times, transform=lambda frames: [frames], shape=(2, 3, 4, 24, 32))[3, 0].clips
        for row in rows
    ]
    assert clips[0].float().std() > 0
    assert np.array_equal(*clips)


def test_a_list_names_folders_and_their_rate(tmp_path):
    write_pictures(tmp_path / "a")
    (tmp_path / "classes.txt").write_text("x\ny\nz\n")
    (tmp_path / "train.csv").write_text("path,label,fps\na,0,12\na,1,\n")
    classes = ["x", "y", "z"]
    with pytest.raises(UserError, match=r"line 3: video .*a is a folder of pictures without a rate"):
        load_split(config_for(tmp_path), "train", classes)
    (tmp_path / "a" / "another1.jpg").touch()  # a second series: the reader's word, once there is a rate
    with pytest.raises(UserError, match=r"line 3: video .*a is a folder of pictures without a rate"):
        load_split(config_for(tmp_path), "train", classes)
    (tmp_path / "a" / "another1.jpg").unlink()
    videos = load_split(config_for(tmp_path, "DATA.FRAME_RATE", "25"), "train", classes)
    assert [video.fps for video in videos] == [12.0, 25.0]
    assert [video.fps for video in read_manifest(tmp_path / "train.csv", classes)] == [12.0, None]


def test_missing_and_damaged_pictures_are_damage(tmp_path):
    pictures = write_pictures(tmp_path / "clip")
    (tmp_path / "clip" / "img_00005.png").unlink()
    file = tmp_path / "clip" / "img_00009.png"
    file.write_bytes(file.read_bytes()[:60])
    with open_video(tmp_path / "clip", frame_rate=10) as reader:
        assert [str(damage) for damage in reader.damage] == ["lost frames: 1 of 12 pictures are missing, the first 5"]
        frames = reader.frames_at([0.3, 0.4, 0.7, 0.8, 1.1]).numpy()
        assert np.array_equal(frames, pictures[[3, 3, 7, 7, 11]])
        assert [damage.kind for damage in reader.damage] == ["lost frames", "picture data"]
        assert reader.duration == pytest.approx(1.2)
    report = inspect_file(str(tmp_path / "clip"), thorough=True, frame_rate=10)
    assert [problem.kind for problem in report.problems] == ["damaged", "damaged"]
    assert (report.frames, report.width, report.codec) == (11, 24, "png")


def test_other_sizes_are_brought_to_the_first(tmp_path):
    write_pictures(tmp_path / "clip", count=2)
    Image.new("RGB", (48, 32), (9, 9, 9)).save(tmp_path / "clip" / "img_00003.png")
    with open_video(tmp_path / "clip", frame_rate=10) as reader:
        assert (reader.frames_at([0.2]).numpy() == 9).all()
        assert [damage.kind for damage in reader.damage] == ["picture size"]


@pytest.mark.parametrize(
    ("names", "rate", "reason"),
    [
        ([], 10, "without numbered pictures"),
        (["a.png"], 10, "without numbered pictures"),
        (["1.png"], 0, "rate is not known: a column fps, or DATA.FRAME_RATE"),
        (["x1.png", "y1.png"], 10, r"several series of pictures \(x\*.png, y\*.png\)"),
        (["1.png", "01.png"], 10, "two pictures of the same number"),
        (["1.png"], 10, "none of its 1 pictures can be decoded"),
    ],
)
def test_what_is_no_folder_of_pictures(tmp_path, names, rate, reason):
    for name in names:
        (tmp_path / name).write_bytes(b"no picture")
    with pytest.raises(DecodeError, match=reason), open_video(tmp_path, frame_rate=rate) as reader:
        reader.frames_at([0.0])


def test_sixteen_bits_are_refused(tmp_path):
    Image.fromarray(np.zeros((4, 4), np.uint16)).save(tmp_path / "1.png")
    with pytest.raises(DecodeError, match="more than 8 bits"), open_video(tmp_path, frame_rate=1) as reader:
        reader.frames_at([0.0])
