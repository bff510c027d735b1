"""What `lookupvit benchmark loader` measures: the same frames, every stage, goals from the right ratios."""

import json

import av
import numpy as np
import pytest
import torch

from lookupvit_video.benchmarks import loader, pipelines, videos
from lookupvit_video.commands.benchmark import MADE
from lookupvit_video.config import load_config
from lookupvit_video.data.manifest import Video
from lookupvit_video.data.transforms import train_transform
from tests.small import call_tool, make_videos, settings

SAMPLINGS = ["random clip", "segments"]


@pytest.fixture(scope="module")
def geometry():
    """Six seconds of small pictures, five key frames."""
    return videos.Geometry("small", ".mp4", "libx264", (64, 48), 12, 72, 16, 3.0, videos.X264)


@pytest.fixture(scope="module")
def path(geometry, tmp_path_factory):
    path = tmp_path_factory.mktemp("videos") / "small.mp4"
    videos.make_video(path, geometry, 0)
    return path


@pytest.fixture(autouse=True)
def threads():
    """The tool takes one thread; the other tests of this process keep theirs."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def backends():
    return [backend for backend, reason in pipelines.usable_backends().items() if not reason]


def test_made_videos_are_what_their_title_says(path, geometry):
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.width, stream.height) == ("h264", 64, 48)
        assert stream.average_rate == 12
        packets = [packet for packet in container.demux(stream) if packet.size]
    by_time = sorted(packets, key=lambda packet: packet.pts)
    assert len(by_time) == 72
    assert [number for number, packet in enumerate(by_time) if packet.is_keyframe] == [0, 16, 32, 48, 64]


def test_titles_of_the_kinds():
    assert set(MADE) <= set(videos.GEOMETRIES)
    for kind in videos.GEOMETRIES.values():
        width, height = kind.size
        assert f"{width}x{height}, {kind.fps} fps" in kind.title
        assert f"{kind.frames // kind.fps} s, " in kind.title
        assert f"GOP {kind.gop}" in kind.title


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_the_baseline_is_exact(path, geometry, sampling):
    with av.open(str(path)) as container:
        whole = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    for request in loader.clip_requests([path], geometry, sampling, 10, 3):
        numbers = [max(n for n in range(72) if n / 12 <= t + 1e-6) for t in request.times]
        assert np.array_equal(pipelines.pyav_baseline(request), np.stack([whole[number] for number in numbers]))


def test_every_pipeline_ends_in_a_normalized_clip_of_the_same_frames(path, geometry):
    usable = backends()
    made = pipelines.all_pipelines(usable)
    assert set(made) >= {"bare PyAV", "this loader, pyav", "PyTorchVideo EncodedVideo, pyav"}
    for sampling in SAMPLINGS:
        requests = loader.clip_requests([path], geometry, sampling, 2, 0)
        for request in requests:
            loader.check_same_frames(request, usable)
            for name, pipeline in made.items():
                clip = pipeline(request)
                if name == "bare PyAV":
                    continue
                assert clip.shape == (1, 3, 16, 224, 224)
                assert clip.dtype == torch.float32
                assert clip.is_contiguous()
                assert -2.2 < clip.min() < clip.max() < 2.7  # 0 and 255 are -2.1 and 2.6
                expected = (pipelines.pyav_baseline(request) / 255).mean() - np.mean(pipelines.MEAN)
                assert abs(float(clip.mean()) * 0.226 - expected) < 0.1  # crops differ, the brightness hardly


def test_pipelines_that_decode_other_frames_are_reported(path):
    wrong = videos.Geometry("wrong", ".mp4", "libx264", (64, 48), 12, 8, 16, 3.0)  # "ends" after 8 pictures of 72
    request = pipelines.ClipRequest(str(path), wrong, "random clip", np.arange(16) / 4, 0)
    with pytest.raises(RuntimeError, match="pyav decodes other frames than bare PyAV"):
        loader.check_same_frames(request, ["pyav"])


def test_videos_are_made_once(tmp_path, geometry, monkeypatch):
    monkeypatch.setitem(videos.GEOMETRIES, "small", geometry)
    first = videos.make_videos(tmp_path, ["small"], 2)
    stamps = [path.stat().st_mtime_ns for path in first["small"]]
    assert len(stamps) == 2
    assert videos.make_videos(tmp_path, ["small"], 2) == first
    assert [path.stat().st_mtime_ns for path in first["small"]] == stamps
    assert first["small"][0].read_bytes() != first["small"][1].read_bytes()


def test_clips_follow_from_the_seed(path, geometry):
    def times(seed):
        return [request.times.tolist() for request in loader.clip_requests([path], geometry, "segments", 3, seed)]

    assert times(1) == times(1) != times(2)
    assert len({tuple(row) for row in times(1)}) == 3


def test_stages(path):
    times = pipelines.GivenTimes()
    times.times = np.arange(16) / 4
    for backend in backends():
        watches = loader.stage_seconds(Video(str(path), 0), times, train_transform(load_config()), backend)
        assert set(watches) == set(loader.STAGES) - (set() if backend == "pyav" else {"convert"})
        for stage, watch in watches.items():
            assert watch.wall > 0 or stage == "decode"
            assert watch.cpu >= 0


def test_goals_are_ratios_of_the_same_round():
    rates = {
        "bare PyAV": [100.0, 50.0, 80.0],
        "this loader, pyav": [90.0, 40.0, 80.0],
        "PyTorchVideo EncodedVideo, pyav": [30.0, 20.0, 10.0],
        "VideoMAE-style decord": [100.0, 41.0, 60.0],
    }
    assert loader.compare_with_goals(rates, "random clip") == [
        {"goal": "of bare PyAV", "ratio": 0.9, "at_least": 0.85, "met": True},
        {"goal": "times PyTorchVideo EncodedVideo, pyav", "ratio": 3.0, "at_least": 2.0, "met": True},
        {"goal": "times VideoMAE-style decord", "ratio": 0.976, "at_least": 1.0, "met": False},
    ]
    assert loader.compare_with_goals(rates, "segments")[1] == {
        "goal": "times PyTorchVideo EncodedVideo, pyav", "ratio": 3.0, "at_least": 4.0, "met": False,
    }  # fmt: skip


def test_command_on_made_videos(tmp_path):
    arguments = ["--only", "webm", "--rounds", 1, "--clips", 1, "--videos", 1, "--cache", tmp_path / "made"]
    done = call_tool("tools/benchmark.py", "loader", *arguments, "--json", tmp_path / "a.json")
    assert done.returncode == 0, done.stderr
    (made,) = (tmp_path / "made").iterdir()
    assert made.name.startswith("webm_")
    facts = json.loads((tmp_path / "a.json").read_text())
    assert [result["sampling"] for result in facts["results"]] == SAMPLINGS
    for result in facts["results"]:
        for name, rates in result["clips_per_second"].items():
            assert len(rates) == 1
            assert (
                f"| {result['sampling']} | {name} | {rates[0]:.1f} ({rates[0]:.1f} to {rates[0]:.1f}) |" in done.stdout
            )
        assert set(result["stages_ms"]["pyav"]) == {"open", "decode", "convert", "transform", "collate"}
        assert "| 100 % |" in done.stdout
        assert {goal["at_least"] for goal in result["goals"]} <= {0.85, 1.0, 2.0, 4.0}
    assert facts["packages"]["av"] in done.stdout


def test_command_on_own_videos(tmp_path):
    make_videos(tmp_path / "data", count=6)
    (tmp_path / "data" / "4.mp4").write_bytes(b"")
    overrides = settings(tmp_path / "data", tmp_path / "run", AUG__NUM_SAMPLE=2, DATA__MAX_BAD_FRACTION=0.5)
    options = ["--cfg", "tests/small.yaml", "--clips-per-second", 100, 1e6, "--json", tmp_path / "a.json"]
    done = call_tool("tools/benchmark.py", "loader", *options, *overrides)
    assert done.returncode == 0, done.stderr
    facts = json.loads((tmp_path / "a.json").read_text())
    assert (facts["videos"], facts["clips"]) == (5, 10)
    assert len(facts["bad"]) == 1
    assert "4.mp4: is empty" in facts["bad"][0]
    rate = facts["clips_per_second_and_worker"]
    assert rate == pytest.approx(1000 / sum(facts["stages_ms"].values()))
    assert facts["workers"]["1e+06"] == int(np.ceil(1e6 / rate))
    assert f"one worker: {rate:.1f} clips/s" in done.stdout
    assert "not read: " in done.stdout
    for stage, share in facts["stages_ms"].items():
        assert f"| {stage} | {share:.2f} |" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["loader", "DATA.NUM_FRAMES", "8"], "settings (DATA.NUM_FRAMES ...) are for a config; name it with --cfg"),
        (["loader", "--cfg", "tests/small.yaml", "DATA.NUM_FRAMS", "8"], "unknown key DATA.NUM_FRAMS"),
        (["loader", "--rounds", "0"], "must be at least 1, got 0"),
        ([], "the following arguments are required: COMMAND"),
    ],
)
def test_mistakes_are_one_line(arguments, message):
    done = call_tool("tools/benchmark.py", *arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
