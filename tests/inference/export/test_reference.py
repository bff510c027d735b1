"""The script next to an exported model: what it gives the model is what this package gives it, to the bit."""

import json
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import functional as F

from lookupvit_video.checkpoints.checkpoint import save_checkpoint
from lookupvit_video.config import load_config
from lookupvit_video.inference.export import reference
from lookupvit_video.inference.export.description import preprocessing
from lookupvit_video.inference.export.vectors import add_reference, set_display_matrix
from lookupvit_video.inference.predictor import load_model
from lookupvit_video.inference.views import make_plan, read_views
from lookupvit_video.models.build import build_model
from tests.models.test_models import SMALL
from tests.small import call_tool, run_command
from tests.videos import draw_frame, write_video

RATE = "DATA.SAMPLING_RATE 2 DATA.TARGET_FPS 12"  # clips of 8 frames: 1.33 s
IRREGULAR = np.cumsum([0.0, *np.resize([0.04, 0.3, 0.011, 0.1, 0.055], 40)])
EVERY_12TH = np.arange(48) / 12
FILES = {
    "plain.mp4": {},
    "b_frames.mkv": {"b_frames": 2},
    "mpeg4.avi": {"codec": "mpeg4", "b_frames": 2},
    "vp9.webm": {"codec": "libvpx-vp9"},
    "hevc.mp4": {"codec": "libx265", "b_frames": 3},
    "stream.ts": {"b_frames": 2, "with_audio": True},
    "no_stamps.h264": {"b_frames": 2},
    "program.mpg": {"codec": "mpeg2video", "b_frames": 2},
    "portrait.mp4": {"size": (48, 70)},
    "odd.mp4": {"size": (71, 49), "pix_fmt": "yuv444p"},
    "square.mp4": {"size": (64, 64)},
    "turned_90.mp4": {"rotation": 90},
    "turned_180.mp4": {"rotation": 180},
    "turned_270.mov": {"rotation": 270, "pixel_shape": Fraction(4, 3)},
    "wide_pixels.mp4": {"pixel_shape": Fraction(16, 11)},
    "narrow_pixels.mkv": {"pixel_shape": Fraction(8, 9)},
    "nearly_square.mp4": {"pixel_shape": Fraction(60, 59)},  # 1.017: left alone
    "not_quite_square.mp4": {"pixel_shape": Fraction(39, 40)},  # 0.975: scaled
    "widest_pixels.mp4": {"pixel_shape": Fraction(3, 1)},
    "too_wide_pixels.mp4": {"pixel_shape": Fraction(4, 1)},  # nobody shows that: the header is damaged
    "irregular.mkv": {"times": IRREGULAR, "frames": 41},
    "irregular.mp4": {"times": IRREGULAR, "frames": 41, "b_frames": 2},
    "on_the_dot.webm": {"times": EVERY_12TH, "codec": "libvpx-vp9"},  # stamps in ms: some fall before the time asked
    "cut_start.mp4": {"start": -5, "b_frames": 1},
    "late_start.mkv": {"start": 31},
    "short.mp4": {"frames": 9},
    "one.mp4": {"frames": 1},
    "bt709.mp4": {"matrix": 1},
    "full_range.mp4": {"colour_range": 2},
    "three_streams.mp4": {"decoys": 1},
}
SETTINGS = {
    "one view": RATE,
    "views": f"{RATE} TEST.NUM_ENSEMBLE_VIEWS 4 TEST.NUM_SPATIAL_CROPS 3 DATA.TEST_SHORT_SIDE 37",
    "segments": "DATA.SAMPLING segments TEST.NUM_ENSEMBLE_VIEWS 2 TEST.NUM_SPATIAL_CROPS 3",
    "single frame": f"{RATE} DATA.SINGLE_FRAME True TEST.NUM_ENSEMBLE_VIEWS 3",
}


def config(overrides: str = RATE):
    frames = "DATA.NUM_FRAMES 8 TEST.NUM_ENSEMBLE_VIEWS 1 TEST.NUM_SPATIAL_CROPS 1"
    return load_config(None, [*SMALL, *frames.split(), *overrides.split()])


def rules_of(overrides: str = RATE):
    return preprocessing(make_plan(config(overrides)), [0.5] * 3, [0.5] * 3)


def both(path: str, overrides: str = RATE) -> tuple[np.ndarray, np.ndarray]:
    """The clips of a video as this package and as the reference read them."""
    return read_views(path, make_plan(config(overrides))).clips, reference.read_clips(path, rules_of(overrides))


@pytest.mark.parametrize("name", FILES)
def test_the_clips_are_those_of_this_package(tmp_path, name):
    path = write_video(tmp_path / name, **FILES[name])
    for overrides in (SETTINGS["one view"], SETTINGS["views"]):
        own, others = both(path, overrides)
        np.testing.assert_array_equal(others, own)
    assert own.std() > 20


@pytest.mark.parametrize("overrides", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("frames", [61, 20])
def test_the_clips_are_those_of_every_kind_of_sampling(tmp_path, overrides, frames):
    own, others = both(write_video(tmp_path / "a.mp4", frames=frames, fps=Fraction(30000, 1001)), overrides)
    np.testing.assert_array_equal(others, own)
    assert len({clip.tobytes() for clip in own}) >= (2 if "VIEWS" in overrides and frames == 61 else 1)


MATRICES = {  # of ISO 14496-12: (a, b, c, d), and what a player makes of a stored picture
    (1, 0, 0, 1): lambda p: p,
    (-1, 0, 0, 1): lambda p: p[:, ::-1],
    (1, 0, 0, -1): lambda p: p[::-1],
    (-1, 0, 0, -1): lambda p: p[::-1, ::-1],
    (0, 1, 1, 0): lambda p: p.transpose(1, 0, 2),
    (0, 1, -1, 0): lambda p: np.rot90(p, -1),  # phones, held upright
    (0, -1, 1, 0): lambda p: np.rot90(p, 1),
    (0, -1, -1, 0): lambda p: p[::-1, ::-1].transpose(1, 0, 2),
}


@pytest.mark.parametrize("matrix", MATRICES, ids=str)
def test_all_eight_orientations_are_upright(tmp_path, matrix):
    path = write_video(tmp_path / "a.mp4", frames=3, codec_options={"qp": "0"})
    rules = rules_of()
    [(_, stored)] = reference.frames_at(path, [1], rules)
    assert np.abs(stored.astype(int) - draw_frame(1)).mean() < 12
    set_display_matrix(Path(path), matrix)
    [(_, shown)] = reference.frames_at(path, [1], rules)
    np.testing.assert_array_equal(shown, MATRICES[matrix](stored))


def test_other_matrices_are_rounded_or_left_alone():
    flip = (False, False, True)
    assert reference.orientation((-65536, 300, -200, 65536)) == flip
    assert reference.orientation((-131072, 0, 0, 32768)) == flip  # scaled
    assert reference.orientation((40000, 52000, -52000, 40000)) == (True, False, True)  # 52 degrees: a quarter turn
    assert reference.orientation((0, 0, 0, 0)) == (False, False, False)


def test_interlaced_frames_are_converted_as_progressive_ones(tmp_path):
    rules = rules_of()
    same = {"codec_options": {"qp": "0"}, "frames": 4, "size": (64, 64)}
    plain = write_video(tmp_path / "a.mp4", **same)
    same["codec_options"] |= {"x264-params": "tff=1"}
    interlaced = write_video(tmp_path / "b.mp4", **same)
    with reference.open_video(interlaced) as (container, stream):
        assert next(reference.decoded(container, stream)).interlaced_frame
    key_frame = [next(reference.frames_at(path, [0], rules))[1] for path in (plain, interlaced)]
    np.testing.assert_array_equal(*key_frame)


def test_the_resize_is_that_of_torch_to_the_bit():
    random = np.random.default_rng(0)
    tolerance = 0 if torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512") else 1
    for _ in range(60):
        side, size = random.integers(1, 300), int(random.integers(1, 240))
        picture = random.integers(0, 256, (side, side, 3), dtype=np.uint8)
        frames = torch.from_numpy(picture).permute(2, 0, 1)[None]
        expected = F.resize_image(frames, [size, size], antialias=True)[0].permute(1, 2, 0).numpy()
        difference = np.abs(reference.resized(picture, size).astype(int) - expected)
        assert difference.max() <= tolerance, (side, size)


def test_a_frame_whose_stamp_is_out_of_order_is_left_out(tmp_path):
    path = Path(write_video(tmp_path / "a.mkv", codec="mjpeg", pix_fmt="yuvj420p", frames=30))
    data = path.read_bytes()
    block = b"\x81" + (167).to_bytes(2, "big") + b"\x80"  # of track 1, 167 ms after its cluster: the fifth picture
    path.write_bytes(data.replace(block, b"\x81" + (900).to_bytes(2, "big") + b"\x80", 1))
    positions, times, _ = reference.timeline(str(path), rules_of())
    assert positions == [*range(4), *range(5, 30)]
    assert times[3:5].tolist() == pytest.approx([0.125, 0.208])
    own, others = both(str(path))
    np.testing.assert_array_equal(others, own)


def test_the_longest_rise():
    assert reference.longest_rise([1, 2, 9, None, 3, 4]) == [0, 1, 4, 5]
    assert reference.longest_rise([3, 2, 1]) in ([0], [1], [2])
    assert reference.longest_rise([None]) == []


def test_damage_and_missing_ends_are_reported(tmp_path):
    path = write_video(tmp_path / "a.mp4", frames=60, gop=60)
    rules = rules_of()
    data = Path(path).read_bytes()
    middle = data.index(b"mdat") + 3000
    Path(path).write_bytes(data[:middle] + bytes(400) + data[middle + 400 :])
    with pytest.warns(UserWarning, match="is damaged; using the frames that can be decoded"):
        reference.read_clips(path, rules)
    path = write_video(tmp_path / "b.mkv", frames=120)
    data = Path(path).read_bytes()
    Path(path).write_bytes(data[: len(data) // 3])
    with pytest.warns(UserWarning, match=r"b\.mkv: its video ends at \d\.\d of 5\.0 s; truncated\?"):
        reference.read_clips(path, rules)


# With a model --------------------------------------------------------------------------------------------------------

CLASSES = ["a", "b", "c", "d", "é"]
ALONE = """
import runpy, sys
for name in ("lookupvit_video", "torch", "torchvision", "fvcore", "simplejson"):
    sys.modules[name] = None  # importing it fails
sys.argv = ["reference.py", *sys.argv[1:]]
runpy.run_path("reference.py", run_name="__main__")
"""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A model whose answers depend much on what it sees."""
    cfg = config(f"{RATE} TEST.NUM_ENSEMBLE_VIEWS 2 TEST.NUM_SPATIAL_CROPS 3 MODEL.NUM_CLASSES 5")
    torch.manual_seed(3)
    model = build_model(cfg)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.5)
    path = tmp_path_factory.mktemp("checkpoint") / "model.pt"
    save_checkpoint(path, cfg=cfg, classes=CLASSES, model=model)
    return path


def export(checkpoint, out, *options):
    done = call_tool("tools/export.py", "--checkpoint", checkpoint, "--out", out, *options)
    assert done.returncode == 0, done.stderr
    return done.stdout


def alone(folder, *arguments):
    """Run the reference in its folder, where nothing of this project and no torch can be imported."""
    return run_command([sys.executable, "-I", "-c", ALONE, *arguments], cwd=folder)


def test_a_stranger_gets_the_same_probabilities(checkpoint, tmp_path):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    export(checkpoint, tmp_path / "out", "--format", "onnx")
    checked = alone(tmp_path / "out")
    assert checked.returncode == 0, checked.stderr
    assert checked.stdout.count(": same, a probability differs by") == 2
    model = load_model(checkpoint, "cpu")
    answers = []
    for name in ("turned_90.mp4", "mpeg4.avi", "short.mp4"):
        path = write_video(tmp_path / name, **FILES[name])
        done = alone(tmp_path / "out", path, "--clips", tmp_path / "clips.npy")
        answer = model.predict(path)
        best = ", ".join(f"{label} {p:.4f}" for label, p in zip(answer.labels, answer.probabilities, strict=True))
        assert done.stdout == f"{path}: {best}\n"
        np.testing.assert_array_equal(np.load(tmp_path / "clips.npy"), read_views(path, model.plan).clips)
        answers.append(sorted(zip(answer.labels, answer.probabilities, strict=True)))
    assert np.ptp([[p for _, p in answer] for answer in answers], axis=0).max() > 0.02  # they depend on the video
    for arguments, message in (
        (["no.mp4"], "error: no.mp4: cannot be opened (No such file or directory)"),
        (["model.onnx"], "error: model.onnx: cannot be opened"),
        (["--model", "model.pt2"], "error: model.pt2 needs torch: pip install torch"),
    ):
        done = alone(tmp_path / "out", *arguments)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
        assert done.stderr.startswith(message)


def test_the_test_vectors_notice_other_answers(checkpoint, tmp_path, monkeypatch):
    export(checkpoint, tmp_path, "--batch", "4")  # which 6 views are not divisible by
    facts = json.loads((tmp_path / "model.json").read_text(encoding="utf-8"))
    assert [vector["file"] for vector in facts["test_vectors"]] == ["test_long.mp4", "test_short.mp4"]
    run = reference.load_run(tmp_path, facts)
    assert max(difference for _, difference, _ in reference.check_vectors(tmp_path, facts, run)) < 1e-5
    one, other = (np.array(vector["probabilities"]) for vector in facts["test_vectors"])
    assert np.abs(one - other).max() > 0.01
    for key, value in (("step_seconds", 0.1), ("short_side", 40)):
        changed = {**facts, "preprocessing": {**facts["preprocessing"], key: value}}
        assert reference.check_vectors(tmp_path, changed, run)[0][1] > 1e-3
    with monkeypatch.context() as changed:  # the long one lies on its side, the short one is mirrored
        changed.setattr(reference, "orientation", lambda matrix: (False, False, False))
        assert min(difference for _, difference, _ in reference.check_vectors(tmp_path, facts, run)) > 1e-3
    facts["test_vectors"][1]["probabilities"][2] += 0.002
    with pytest.raises(ValueError, match=r"test_short\.mp4: the reference and this package differ by 0\.002"):
        add_reference(tmp_path, facts)


def test_videos_are_compared(checkpoint, tmp_path):
    video = write_video(tmp_path / "a.mp4")
    printed = export(checkpoint, tmp_path / "out", "--compare", video, tmp_path / "no.mp4")
    assert f"refused by both: {tmp_path / 'no.mp4'} (no such file)" in printed
    assert "1 of 2 videos answered by both: probabilities equal to" in printed
    assert float(printed.split(f"  {video}")[0].split()[-1]) < 1e-5
