"""What the page shows, without a browser; tests/commands/test_app.py has one."""

import time
from dataclasses import replace

import pytest
import torch

from lookupvit_video.checkpoints.checkpoint import save_checkpoint
from lookupvit_video.config import load_config
from lookupvit_video.decoding.backends import open_video
from lookupvit_video.errors import UserError
from lookupvit_video.inference.budget import Cascade, save_cascade
from lookupvit_video.inference.page import page as page_module
from lookupvit_video.inference.page.page import Page, Shown
from lookupvit_video.inference.page.upload import Limits
from lookupvit_video.inference.predictor import load_model
from lookupvit_video.models.build import build_model
from tests.damage import FEW, tree, write_byte_damage, write_no_videos, write_originals
from tests.inference.test_batch import mistaken_plan
from tests.models.test_models import FACTORISED, IMAGE, SMALL
from tests.videos import write_video

GRIDS = ["1x1x1", "1x2x2", "2x4x4"]


def save(folder, *overrides):
    cfg = load_config(None, [*SMALL, "DATA.SAMPLING_RATE", "2", "DATA.TARGET_FPS", "24", *overrides])
    torch.manual_seed(3)
    save_checkpoint(folder / "model.pt", cfg=cfg, classes=["a", "b<b>", "c", "d", "e"], model=build_model(cfg))
    return load_model(folder / "model.pt", "cpu")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Its clip lasts a third of a second."""
    return save(tmp_path_factory.mktemp("model"), "MODEL.COMPRESSED_GRIDS", "[[1,1,1],[1,2,2],[2,4,4]]")


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    return write_video(tmp_path_factory.mktemp("video") / "x.mp4", frames=48)  # 2 s


@pytest.fixture(autouse=True)
def one_thread():
    """More would wait for each other on a busy machine, for a model this small."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def last(page, path, budget, folder):
    folder.mkdir(exist_ok=True)
    return list(page.answer(path, budget, folder))[-1]


def test_answer_pictures_and_the_time_of_each_step(model, video, tmp_path):
    page = Page(model, Limits(), topk=3, num_views=2, num_crops=3)
    shown = list(page.answer(video, "2x4x4", tmp_path))
    expected = model.predict(video, 3, num_views=2, num_crops=3, grid="2x4x4")
    assert [state.status.split()[1] for state in shown] == [
        "reading",
        "answering",
        "drawing",
        "timeline",
        f"{expected.label},",
    ]
    assert shown[-1].status == f"x.mp4: {expected.label}, {expected.probability:.0%} (mean of 2 clips over time)"
    assert not any(state.failed for state in shown)
    assert shown[-1].classes == pytest.approx(dict(zip(expected.labels, expected.probabilities, strict=True)), abs=1e-5)
    assert [name.split(":")[0] for name, _ in shown[-1].steps] == [
        "read", "answer on grid 2x4x4", "draw where the model looked", "timeline",
    ]  # fmt: skip
    assert "read: 6 clips of 4 frames" in shown[-1].steps[0][0]
    assert all(0 < seconds < 60 for _, seconds in shown[-1].steps)
    assert shown[-1].sheet.read_bytes()[:4] == shown[-1].timeline.read_bytes()[:4] == b"\x89PNG"
    with open_video(shown[-1].overlay) as reader:
        assert len(reader.times) == 4


def test_a_video_of_one_clip_has_no_time_line(model, tmp_path):
    short = write_video(tmp_path / "short.mp4", frames=6)
    shown = last(Page(model, Limits()), short, None, tmp_path / "out")
    assert (shown.failed, shown.timeline) == (False, None)
    assert "its last frame is repeated" in shown.status


def test_a_time_line_has_a_bounded_number_of_windows(model, video, tmp_path, monkeypatch):
    monkeypatch.setattr(page_module, "MAX_WINDOWS", 5)
    shown = last(Page(model, Limits()), video, None, tmp_path / "out")
    assert shown.steps[-1][0] == "timeline: 5 windows of 0.333333 s"


def test_budgets_are_the_grids_and_the_calibration(model, video, tmp_path):
    cascade = Cascade(((1, 1, 1), (2, 4, 4)), (0.0,))
    save_cascade(tmp_path / "a.json", cascade, model.model, {})
    page = Page(model, Limits(), calibration=str(tmp_path / "a.json"))
    assert list(page.budgets) == [*GRIDS, "adaptive"]
    assert page.default_budget == "1x2x2"
    for budget, grid in [*zip(GRIDS, GRIDS, strict=True), ("adaptive", "1x1x1"), (None, "1x2x2")]:
        shown = last(page, video, budget, tmp_path / "out")
        assert shown.steps[1][0].startswith(f"answer on grid {grid}:"), budget
    assert "adaptive" not in Page(model, Limits()).budgets
    with pytest.raises(ValueError, match=r"none.json: no such file"):
        Page(model, Limits(), calibration=str(tmp_path / "none.json"))


@pytest.mark.parametrize("settings", [IMAGE, FACTORISED, "DATA.SAMPLING segments", "MODEL.HEADS ['lookup']"])
def test_every_lookupvit_has_a_page(video, tmp_path, settings):
    shown = last(Page(save(tmp_path, *settings.split()), Limits()), video, None, tmp_path / "out")
    assert not shown.failed, shown.status
    assert shown.overlay.exists()
    assert (shown.timeline is None) == ("segments" in settings)  # whose windows last 4 s


def test_a_dense_model_has_frames_and_no_budgets(video, tmp_path):
    page = Page(save(tmp_path, "MODEL.ARCH", "vit"), Limits())
    assert (page.budgets, page.default_budget) == ({}, None)
    shown = last(page, video, None, tmp_path / "out")
    assert (shown.failed, shown.overlay) == (False, None)
    assert shown.sheet.exists()
    assert shown.timeline.exists()


def test_no_index_is_kept_outside(video, tmp_path):
    page = Page(save(tmp_path, "DATA.INDEX_CACHE", str(tmp_path / "index")), Limits())
    assert not last(page, video, None, tmp_path / "out").failed
    assert not (tmp_path / "index").exists()


@pytest.mark.parametrize(
    ("limits", "timeout", "line"),
    [
        (Limits(seconds=1), 60.0, "x.mp4: lasts 2 s; the limit here is 1 s (--max-seconds)"),
        (Limits(megabytes=0), 60.0, "x.mp4: larger than 0 MB, the limit here (--max-mb)"),
        (Limits(), 1e-6, "x.mp4: took longer than 1e-06 s to decode (DATA.DECODE_TIMEOUT)"),
    ],
)
def test_what_breaks_a_limit_is_a_line(model, video, tmp_path, limits, timeout, line):
    shown = last(Page(model, limits, timeout=timeout), video, None, tmp_path / "out")
    assert shown == Shown(line, failed=True)


def test_an_answer_stays_where_the_time_line_takes_too_long(model, video, tmp_path, monkeypatch):
    page = Page(model, Limits())
    ticking = iter(range(0, 10**6, 100))
    monkeypatch.setattr("lookupvit_video.inference.timeline.monotonic", lambda: next(ticking))
    shown = last(page, video, None, tmp_path / "out")
    assert shown.failed
    assert shown.status == "x.mp4: a timeline of 2 s took longer than 60 s"
    assert len(shown.classes) == 5
    assert shown.sheet.exists()
    assert shown.timeline is None


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (KeyError("secret"), "x.mp4: internal error; see the server log"),
        (MemoryError(), "x.mp4: not enough memory"),
        (OSError(28, "No space left on device"), "[Errno 28] No space left on device"),
        (UserError("one\ntwo"), "one"),
        (ValueError("zip() argument 2 is shorter"), "x.mp4: internal error; see the server log"),
    ],
)
def test_whatever_goes_wrong_is_a_line(model, video, tmp_path, monkeypatch, caplog, error, line):
    def broken(*_):
        raise error

    monkeypatch.setattr(Page, "_predict", broken)
    shown = last(Page(model, Limits()), video, None, tmp_path / "out")
    assert replace(shown, steps=()) == Shown(line, failed=True)
    assert ("secret" in caplog.text) == isinstance(error, KeyError)  # for whoever runs the page


def test_a_bug_in_a_model_or_a_reading_process_is_in_the_log_alone(model, video, tmp_path, monkeypatch, caplog):
    line = Shown("x.mp4: internal error; see the server log", failed=True)
    page = Page(model, Limits())
    monkeypatch.setattr(type(model.model), "forward", lambda *_: [][0])
    assert replace(last(page, video, None, tmp_path / "out"), steps=()) == line
    assert "Traceback" in caplog.text
    assert "IndexError: list index out of range" in caplog.text
    caplog.clear()
    page.plan = mistaken_plan()
    assert last(page, video, None, tmp_path / "out") == line
    assert "internal error, ValueError: zip() argument 2 is shorter" in caplog.text


# Hostile and broken input -------------------------------------------------------------------------------------------


def assert_a_line(shown, *parts):
    assert shown.failed, shown
    assert shown.status.isprintable()
    assert len(shown.status) < 500
    assert "Traceback" not in shown.status
    assert all(part in shown.status for part in parts), shown.status


def test_odd_names_and_budgets_are_a_line_and_write_nothing(model, video, tmp_path, monkeypatch):
    (tmp_path / "home").mkdir()
    monkeypatch.chdir(tmp_path / "home")
    page, out = Page(model, Limits()), tmp_path / "out"
    out.mkdir()
    before = tree(tmp_path)
    for path, part in (
        (None, "choose a video"), ("", "choose a video"), ("nowhere.mp4", "no such file"), (".", ".: is a directory"),
        ("/dev/zero", "not a regular file"), ("/dev/null", "not a regular file"), ("x" * 5000, "too long"),
        ("http://localhost:9/a.mp4", "is a URL"), ("concat:a|b", "no such file"), ("a\0b.mp4", "a?b.mp4"),
        ("$(touch x).mp4", "no such file"), ("<img src=x onerror=alert(1)>", "no such file"), ("~", "no such file"),
        ("a\nb\x1b[31m.mp4", "a?b?[31m.mp4: no such file"), ("../../x", "x: no such file"), ("-x", "no such file"),
    ):  # fmt: skip
        assert_a_line(last(page, path, None, out), part)
    for budget in ("", "9x9x9", "adaptive", "x" * 10**6, "1x1x1\n", "<b>", "../1x1x1", "1X1X1", "\u0661x1x1"):
        assert_a_line(last(page, video, budget, out), "choose one of 1x1x1, 1x2x2, 2x4x4")
    assert tree(tmp_path) == before


def test_hostile_files_neither_crash_nor_hang_nor_write_outside(model, tmp_path, monkeypatch, caplog):
    made = write_byte_damage(tmp_path / "damaged", write_originals(tmp_path / "originals", FEW), times=2)
    made += write_no_videos(tmp_path / "none")
    assert len(made) > 100
    (tmp_path / "home").mkdir()
    monkeypatch.chdir(tmp_path / "home")
    for draw in (
        "draw_prediction",
        "draw_timeline",
    ):  # they see decoded pictures and answers only, and take most of the time
        monkeypatch.setattr(page_module, draw, lambda *_: None)
    page, out = Page(model, Limits(), num_views=1, num_crops=1, timeout=20), tmp_path / "out"
    out.mkdir()
    before, failed = tree(tmp_path), 0
    for number, damaged in enumerate(made):
        began = time.monotonic()
        shown = last(page, str(damaged.path), GRIDS[number % 3], out)
        assert time.monotonic() - began < 80, damaged
        if shown.failed:
            failed += 1
            assert_a_line(shown, damaged.path.name)
        else:
            assert len(shown.classes) == 5, damaged
    assert 40 < failed < len(made)
    assert "Traceback" not in caplog.text  # that would be a bug
    written = {path for path, facts in tree(tmp_path).items() if before.get(path) != facts}
    assert written <= {str(out), str(out / "overlay.mp4")}
