import io
import os
from pathlib import Path

import numpy as np
import pytest
import torch
import torch._inductor.config
from torch._dynamo.testing import CompileCounterWithBackend

from lookupvit_video.checkpoints.checkpoint import FORMAT, Checkpoint, save_checkpoint
from lookupvit_video.config import load_config
from lookupvit_video.data.dataset import read_clips
from lookupvit_video.data.manifest import Video
from lookupvit_video.data.transforms import eval_transform, normalize
from lookupvit_video.decoding.backends import BACKENDS, DecodeError, open_video
from lookupvit_video.errors import UserError
from lookupvit_video.inference import predictor as predictor_module
from lookupvit_video.inference.budget import Cascade, cascade_macs
from lookupvit_video.inference.draw import attention_at, draw_prediction, overlay
from lookupvit_video.inference.prediction import Prediction
from lookupvit_video.inference.predictor import Predictor, load_model
from lookupvit_video.inference.views import Failure, Views, read_views
from lookupvit_video.models.build import build_model
from lookupvit_video.text import parse_grid
from tests.models.test_models import SMALL
from tests.videos import write_video

CLASSES = ["a", "b", "c", "d", "e"]
DECORD = BACKENDS["decord"].missing() is None


# Answers from made-up probabilities ---------------------------------------------------------------------------------


class Rows(torch.nn.Module):
    """A model whose logits are the first pixel of each clip at the places of ``table``; notes the sizes of batches."""

    def __init__(self, table):
        super().__init__()
        self.table, self.sizes = torch.tensor(table), []

    def forward(self, clips):
        self.sizes.append(len(clips))
        pixel = clips[:, 0, 0, 0, 0] * 0.229 + 0.485  # as it was before normalization, of 1
        return self.table[(255 * pixel).round().long()].log()


def made_up(table, classes=("a", "b", "c"), **given):
    cfg = load_config(None, [*SMALL, "MODEL.ARCH", "vit", "MODEL.NUM_CLASSES", str(len(classes))])
    return Predictor(Rows(table), cfg, list(classes), torch.device("cpu"), **given)


def some_views(name, *pixels, note=""):
    clips = np.stack([np.full((3, 4, 8, 8), pixel, dtype=np.uint8) for pixel in pixels])
    return Views(name, clips, [(0.0, float(pixel)) for pixel in pixels], note)


TABLE = [[0.2, 0.5, 0.3], [0.1, 0.1, 0.8], [0.6, 0.3, 0.1], [0.25, 0.25, 0.5]]


@pytest.fixture
def closed_form(monkeypatch):
    monkeypatch.setattr("lookupvit_video.inference.predictor.Predictor.macs_a_view", lambda *_: 2_000_000_000)


def test_an_answer_is_the_mean_over_the_views_and_shows_the_middle_one(closed_form):
    for pixels, middle in (((0,), 0), ((0, 1), 1), ((2, 0, 1), 0), ((3, 2, 1, 0), 1), ((0, 1, 2, 3, 1), 2)):
        (answer,) = made_up(TABLE).answers([some_views("x", *pixels, note="short")], 9)
        mean = np.mean([TABLE[pixel] for pixel in pixels], axis=0)
        order = np.argsort(-mean)
        assert answer.labels == ["abc"[label] for label in order]
        assert answer.probabilities == pytest.approx(mean[order].tolist(), abs=1e-6)
        assert (answer.clip == middle).all()
        assert answer.clip.shape == (3, 4, 8, 8)
        assert (answer.path, answer.note, answer.gmacs) == ("x", "short", 2.0 * len(pixels))
        assert answer.times == [(0.0, float(pixel)) for pixel in pixels]
        assert answer.grid == ""
        assert answer.as_dict() == {
            "path": "x", "classes": dict(zip(answer.labels, answer.probabilities, strict=True)), "grid": "",
            "times": answer.times, "gmacs": answer.gmacs, "note": "short",
        }  # fmt: skip
    for topk, count in ((1, 1), (2, 2), (3, 3), (99, 3)):
        (answer,) = made_up(TABLE).answers([some_views("x", 0)], topk)
        assert len(answer.labels) == len(answer.probabilities) == count
    assert len(next(made_up([[0.1] * 6] * 2, "abcdef").answers([some_views("x", 0)])).labels) == 5


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_single_number_that_is_none_makes_an_answer_unfit(closed_form, monkeypatch, bad):
    model = made_up(TABLE, source="x.pt")
    shares = torch.tensor([[0.5, bad, 0.5]])
    monkeypatch.setattr(model, "predict_clips", lambda clips, grid: shares)
    with pytest.raises(ValueError, match=r"x\.pt: the answer to y\.mp4 is not finite; the weights are damaged"):
        list(model.answers([some_views("y.mp4", 0)]))
    model.source = None
    with pytest.raises(ValueError, match=r"model: the answer to"):
        list(model.answers([some_views("y.mp4", 0)]))


def test_videos_wait_until_they_fill_a_batch_and_no_longer(closed_form):
    asked = []

    def videos():
        for name, pixels in (("a", [0]), ("b", [1, 2]), ("c", [1]), ("d", [0, 0, 0, 0, 0]), ("e", [3])):
            asked.append(name)
            yield some_views(name, *pixels)
            if name == "b":
                yield Failure("f", "gone")

    model = made_up(TABLE)
    found = []
    for answer in model.answers(videos(), 1, batch_size=4):
        found.append((answer.path, "".join(asked), list(model.model.sizes)))
    assert found == [
        ("f", "ab", []), ("a", "abc", [4]), ("b", "abc", [4]), ("c", "abc", [4]), ("d", "abcde", [4, 4, 2]),
        ("e", "abcde", [4, 4, 2]),
    ]  # fmt: skip
    model.model.sizes.clear()
    list(model.answers([some_views("x", *[0] * 20)]))
    assert model.model.sizes == [8, 8, 4]  # eight by default


def test_a_video_whose_clips_are_in_several_batches_has_the_mean_of_all_of_them(closed_form):
    pixels = {"a": (0, 1, 2), "b": (3,), "c": (2, 2, 1, 0, 3), "d": (1, 1)}
    model = made_up(TABLE)
    for batch_size in (1, 2, 3, 4, 20):
        model.model.sizes.clear()
        found = list(model.answers([some_views(name, *pixels[name]) for name in pixels], 3, batch_size=batch_size))
        assert [answer.path for answer in found] == list(pixels)
        assert set(model.model.sizes[:-1]) <= {batch_size}
        assert sum(model.model.sizes) == 11
        for answer in found:
            mean = np.mean([TABLE[pixel] for pixel in pixels[answer.path]], axis=0)
            assert dict(zip(answer.labels, answer.probabilities, strict=True)) == pytest.approx(
                dict(zip("abc", mean.tolist(), strict=True)), abs=1e-6
            )


@pytest.mark.parametrize(("topk", "batch_size"), [(0, 8), (-1, 8), (5, 0), (5, -2)])
def test_counts_below_one_are_refused_before_a_video_is_asked_for(topk, batch_size):
    model = made_up(TABLE)
    with pytest.raises(ValueError, match=rf"topk {topk}, batch_size {batch_size}: both must be at least 1"):
        model.answers(iter(lambda: pytest.fail("asked"), None), topk, batch_size=batch_size)
    assert list(model.answers([], 1, batch_size=1)) == []


def test_one_video_gives_one_answer_and_a_list_a_list(closed_form, monkeypatch):
    model, read = made_up(TABLE), []

    def read_views(source, plan, fps):
        read.append((source, plan.num_views, plan.num_crops, plan.backend, fps))
        return some_views(source, 0)

    monkeypatch.setattr("lookupvit_video.inference.predictor.read_views", read_views)
    assert model.predict("x").path == "x"
    assert len(model.predict("x").labels) == 3
    assert len(model.predict("x", 2).labels) == 2
    for several in (["x", "y"], ("x", "y")):
        assert [answer.path for answer in model.predict(several)] == ["x", "y"]
    assert model.predict([]) == []
    assert set(read) == {(name, 1, 1, "pyav", None) for name in "xy"}
    read.clear()
    model.predict("x", num_views=2, num_crops=3, backend="decord" if DECORD else "pyav", fps=12.5)
    assert read == [("x", 6, 3, "decord" if DECORD else "pyav", 12.5)]


def test_a_predictor_says_what_it_is(tmp_path):
    assert repr(made_up(TABLE, source="x.pt")) == (
        "Predictor(vit B, 0 M parameters, clips of 4 frames of 32 x 32 over 0.533 s, 3 classes: a, b, c; x.pt, on cpu)"
    )
    many = predictor(tmp_path, "DATA.SAMPLING", "segments")
    assert "M parameters, clips of 4 frames of 32 x 32 over the complete video, 5 classes" in repr(many)


def test_the_folder_of_a_run_is_its_model(tmp_path):
    model = predictor(tmp_path)
    run = tmp_path / "run"
    run.mkdir()
    os.replace(model.source, run / "model.pt")
    for given in (run, str(run), run / "model.pt"):
        found = load_model(given, "cpu")
        assert (found.source, found.classes) == (run / "model.pt", CLASSES)
    os.replace(run / "model.pt", run / "best.pt")
    with pytest.raises(ValueError, match=r"run.config.json: cannot be read .*folder of a finished run \(model.pt\)"):
        load_model(run)


def test_a_model_is_compiled_as_suits_its_device(monkeypatch):
    model, given = made_up(TABLE), []
    monkeypatch.setattr(model.model, "compile", lambda **options: given.append(options))
    monkeypatch.setattr("lookupvit_video.inference.predictor.require_compiler", lambda *given: None)
    model.compile()
    assert model._compiled_batch == 8
    model.device = torch.device("cuda")
    model.compile(3)
    assert model._compiled_batch == 3
    model.compile(backend="eager")
    assert given == [
        {"dynamic": False, "mode": "default"}, {"dynamic": False, "mode": "reduce-overhead"},
        {"dynamic": False, "backend": "eager"},
    ]  # fmt: skip


def test_compiling_without_a_compiler_is_told(monkeypatch):
    model = made_up(TABLE)
    with torch._inductor.config.patch({"cpp.cxx": ("/no/such/compiler",)}):
        with pytest.raises(UserError, match=r"--compile needs a C\+\+ compiler: .*; without it"):
            model.compile()
        model.compile(backend="eager")  # generates no code


def test_smaller_batches_are_filled_up_for_a_compiled_model_only():
    model = made_up(TABLE)
    clips = torch.cat([torch.from_numpy(some_views("x", pixel).clips) for pixel in (0, 1, 2)])
    expected = torch.tensor(TABLE[:3])
    for compiled, sizes in ((0, [3]), (2, [3]), (3, [3]), (8, [8])):
        model.model.sizes.clear()
        model._compiled_batch = compiled
        torch.testing.assert_close(model.predict_clips(clips), expected)
        assert model.model.sizes == sizes


@pytest.mark.parametrize("given", [{}, {"gmacs": 1.0, "latency_ms": 1.0}])
def test_one_budget_is_given(given):
    with pytest.raises(ValueError, match="gmacs, latency_ms: give one of them"):
        made_up(TABLE).grid_within(**given)


def test_a_latency_budget_is_checked_before_it_is_measured():
    model = made_up(TABLE)
    for none in (0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="must be above 0"):
            model.grid_within(latency_ms=none)
    assert model.grids == {}


def test_a_model_without_grids_has_no_budget(tmp_path):
    model = made_up(TABLE)
    for wrong in ({"latency_ms": 5.0}, {"gmacs": 5.0}):
        with pytest.raises(ValueError, match=r"this checkpoint's model has no compressed grids"):
            model.grid_within(**wrong)
    with pytest.raises(ValueError, match=r"this checkpoint's model has no compressed grids"):
        model.answers([], grid="1x2x2")
    with pytest.raises(ValueError, match="grid and adaptive: give one of them"):
        model.answers([], grid="1x2x2", adaptive=Cascade(((1, 2, 2),), ()))
    with pytest.raises(ValueError, match=r"none\.json: no such file; make it with"):
        model.answers([], adaptive=tmp_path / "none.json")
    model._compiled_batch = 3
    with pytest.raises(ValueError, match="latency_ms: choose the grid before compiling the model"):
        model.grid_within(latency_ms=5.0)


@pytest.mark.parametrize(("cuda", "device"), [(True, "cuda"), (False, "cpu")])
def test_a_graphics_card_is_taken_where_there_is_one(monkeypatch, cuda, device):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    taken, plain = [], torch.empty
    monkeypatch.setattr(torch, "empty", lambda *size, device: taken.append(device) or plain(*size))
    assert predictor_module._device("auto") == torch.device(device)
    assert predictor_module._device("cpu") == torch.device("cpu")
    assert taken == [torch.device(device), torch.device("cpu")]


def checkpoint_of(state, *overrides, classes=CLASSES):
    cfg = load_config(None, [*SMALL, *overrides])
    return Checkpoint(Path("x.pt"), cfg, classes, state, optimizer=None, step=0, best_top1=-1.0)


@pytest.fixture(scope="module")
def sound_state():
    return build_model(load_config(None, SMALL)).state_dict()


def test_a_sound_checkpoint_is_taken(sound_state):
    predictor_module._check_consistent(checkpoint_of(sound_state))


def test_weights_may_be_up_to_twice_what_the_file_holds(sound_state):
    """What is stored once may be used under two names, as tied weights are; twice is the limit."""
    numbers = sum(value.numel() for value in sound_state.values())
    assert {value.dtype for value in sound_state.values()} == {torch.float32}
    for stored, is_sound in ((-(-numbers // 2), True), ((numbers - 1) // 2, False)):
        shared = torch.zeros(stored)
        state = {name: shared[: value.numel()].view(value.shape) for name, value in sound_state.items()}
        if is_sound:
            predictor_module._check_consistent(checkpoint_of(state))
        else:
            with pytest.raises(ValueError, match=r"x\.pt: its weights are larger than the file's data"):
                predictor_module._check_consistent(checkpoint_of(state))


@pytest.mark.parametrize("spoil", [
    lambda value: value.to_sparse(), lambda value: value.to(torch.complex64), lambda value: value.tolist(),
    lambda _: None,
])  # fmt: skip
def test_a_single_weight_that_is_no_plain_tensor_is_refused(sound_state, spoil):
    state = {**sound_state, "tokenizer.projection.bias": spoil(sound_state["tokenizer.projection.bias"])}
    with pytest.raises(ValueError, match=r"x\.pt: its weights are not plain tensors by name"):
        predictor_module._check_consistent(checkpoint_of(state))


@pytest.mark.parametrize(("classes", "message"), [
    (["a", "b", "c", "d", ""], "holds something other than names"), (["a", "b", "c", "d", None], "something other"),
    (("a", "b", "c", "d", "e"), "holds something other"), (["a", "b", "c", "d", "a"], "has duplicates"),
    (["a", "b", "c", "d", "e", "f"], "names 6 classes, but its MODEL.NUM_CLASSES is 5"),
])  # fmt: skip
def test_class_lists_that_do_not_fit(sound_state, classes, message):
    with pytest.raises(ValueError, match=message):
        predictor_module._check_consistent(checkpoint_of(sound_state, classes=classes))


def test_a_config_may_not_have_more_blocks_than_there_are_weights():
    few = {"a": torch.zeros(1), "b": torch.zeros(1), "c": torch.zeros(1)}
    factorised = ["MODEL.ENCODER", "factorised", "MODEL.COMPRESSED_GRID", "[2,2]", "MODEL.DEPTH", "2"]
    for overrides in (["MODEL.DEPTH", "4"], [*factorised, "MODEL.TEMPORAL_DEPTH", "4"]):
        with pytest.raises(ValueError, match="its config has more blocks than the file has weights"):
            predictor_module._check_consistent(checkpoint_of(few, *overrides))
    for overrides in (["MODEL.DEPTH", "3"], ["MODEL.DEPTH", "2", "MODEL.TEMPORAL_DEPTH", "9"],
                      [*factorised, "MODEL.TEMPORAL_DEPTH", "3"]):  # fmt: skip
        with pytest.raises(ValueError, match=r"x\.pt") as raised:
            predictor_module._check_consistent(checkpoint_of(few, *overrides))
        assert "more blocks" not in str(raised.value)  # what is missing is named instead


def test_a_folder_of_a_checkpoint_is_no_file(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe.pt")
    with pytest.raises(ValueError, match=r"pipe\.pt: neither a file nor a folder"):
        load_model(tmp_path / "pipe.pt", "cpu")
    with pytest.raises(ValueError, match=r"none\.pt"):
        load_model(tmp_path / "none.pt", "cpu")
    for kind in (TypeError, AttributeError, KeyError, RecursionError):
        monkeypatch.setattr(predictor_module, "load_checkpoint", lambda _, kind=kind: (_ for _ in ()).throw(kind("x")))
        with pytest.raises(
            ValueError, match=r"x\.pt: not a checkpoint of this project: its contents have the wrong type"
        ):
            load_model(tmp_path / "x.pt", "cpu")


# Complete models ------------------------------------------------------------------------------------------------------


def predictor(folder, *overrides):
    cfg = load_config(None, [*SMALL, *overrides])
    torch.manual_seed(3)
    save_checkpoint(folder / "model.pt", cfg=cfg, classes=CLASSES, model=build_model(cfg))
    return load_model(folder / "model.pt", "cpu")


def test_predict_sorts_classes_and_averages_the_views(tmp_path):
    write_video(tmp_path / "x.mp4", frames=48)
    model = predictor(tmp_path, "DATA.SAMPLING_RATE", "2")
    answer = model.predict(tmp_path / "x.mp4", topk=9, num_views=3, num_crops=3)
    assert sorted(answer.labels) == CLASSES
    assert answer.probabilities == sorted(answer.probabilities, reverse=True)
    assert sum(answer.probabilities) == pytest.approx(1, abs=1e-5)
    assert answer.clip.shape == (3, 4, 32, 32)
    one_by_one = [model.predict(tmp_path / "x.mp4", topk=9, num_views=1), answer]
    assert one_by_one[0].probabilities != answer.probabilities


def test_a_video_shorter_than_the_clip_repeats_its_last_frame(tmp_path):
    write_video(tmp_path / "x.mp4", frames=2)
    answer = predictor(tmp_path).predict(tmp_path / "x.mp4")
    assert torch.equal(answer.clip[:, -1], answer.clip[:, -2])
    assert len(answer.labels) == 5


def test_the_sheet_warms_what_is_looked_at(tmp_path):
    frame = torch.full((32, 32, 3), 128, dtype=torch.uint8).numpy()
    attention = torch.zeros(2, 4, 4)
    attention[1, 0, 0] = 0.5
    assert torch.equal(attention_at(attention, frame=3, num_frames=4), attention[1] / 0.5)
    assert attention_at(attention, frame=1, num_frames=4).sum() == 0
    drawn = overlay(frame, attention[1] / 0.5).astype(int)
    assert abs(drawn[0, 0] - 128).sum() > 100
    assert (drawn[31, 31] == 128).all()
    clip = torch.zeros(3, 4, 32, 32, dtype=torch.uint8)
    draw_prediction(
        Prediction("x.mp4", ["a", "b"], [0.8, 0.2], clip), [("attention", attention)], tmp_path / "s" / "x.png", CLASSES
    )
    draw_prediction(Prediction("x.mp4", ["a"], [1.0], clip), [], tmp_path / "y.png", CLASSES)
    assert (tmp_path / "s" / "x.png").stat().st_size > 5000
    assert (tmp_path / "y.png").stat().st_size > 3000


def test_a_missing_device_is_a_clear_error(tmp_path):
    predictor(tmp_path)
    with pytest.raises(ValueError, match=r"--device cuda:99"):
        load_model(tmp_path / "model.pt", "cuda:99")
    with pytest.raises(ValueError, match=r"--device abacus"):
        load_model(tmp_path / "model.pt", "abacus")


FACTORISED = "MODEL.ENCODER factorised MODEL.COMPRESSED_GRID [2,2] MODEL.TEMPORAL_DEPTH 1"
MODELS = {
    "lookupvit": "TEST.GRIDS [[2,4,4]]",
    "factorised": FACTORISED,
    "vit": "MODEL.ARCH vit MODEL.POOL class",
    "mvit": "MODEL.ARCH mvit MODEL.VARIANT Ti",
    "x3d": "MODEL.ARCH x3d MODEL.VARIANT XS",
}


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    return write_video(tmp_path_factory.mktemp("video") / "x.mp4", frames=24)


@pytest.mark.parametrize("name", MODELS)
def test_every_model_predicts(tmp_path, video, name):
    model = predictor(tmp_path, *MODELS[name].split(), "DATA.CACHE_VIDEOS", "True")
    answer = model.predict(video, topk=5)
    assert sorted(answer.labels) == CLASSES
    assert not model.model.training
    with torch.no_grad():
        shares = model.model(normalize(answer.clip[None], model.cfg.DATA.MEAN, model.cfg.DATA.STD)).softmax(-1)[0]
    torch.testing.assert_close(torch.tensor(answer.probabilities), shares.sort(descending=True).values)
    assert answer.labels[0] == CLASSES[shares.argmax()]
    assert bool(model.costs) == (name in ("lookupvit", "factorised"))


# Sources --------------------------------------------------------------------------------------------------------------


def whole(video):
    with open_video(video) as reader:
        return reader.frames_at(reader.times.tolist())


def test_paths_open_files_and_tensors_give_the_same_answer(tmp_path, video):
    model = predictor(tmp_path, "DATA.SAMPLING_RATE", "2", "DATA.TARGET_FPS", "24")
    frames_THWC = whole(video)
    with open(video, "rb") as file:
        memory = io.BytesIO(file.read())
        file.seek(0)
        answers = model.predict([video, file, memory], num_views=2)
    answers += model.predict([frames_THWC, frames_THWC.permute(3, 0, 1, 2), frames_THWC.numpy()], num_views=2, fps=24)
    for answer in answers:
        assert answer.labels == answers[0].labels
        assert answer.probabilities == pytest.approx(answers[0].probabilities, abs=1e-5)
        assert torch.equal(answer.clip, answers[0].clip)
        np.testing.assert_allclose(answer.times, answers[0].times)
    assert [answer.path for answer in answers] == [video, video, "open file", "tensor", "tensor", "tensor"]
    assert (answers[0].label, answers[0].probability) == (answers[0].labels[0], answers[0].probabilities[0])


def test_a_tensor_without_a_rate_is_the_clip_itself(tmp_path, video):
    model = predictor(tmp_path)
    frames_THWC = whole(video)[[0, 2, 9, 23]]
    answer = model.predict(frames_THWC)
    assert torch.equal(answer.clip, model.predict(frames_THWC.permute(3, 0, 1, 2)).clip)
    assert (answer.clip[:, 0] != answer.clip[:, 1]).any()
    with pytest.raises(ValueError, match=r"the model takes 4 frames, got 3; set fps= to sample"):
        model.predict(frames_THWC[:3])
    for wrong in (torch.zeros(4, 8, 8, 3), torch.zeros(4, 8, 8, dtype=torch.uint8), torch.zeros(4, 0, 8, 3).byte()):
        with pytest.raises(ValueError, match=r"frames must be uint8 RGB of shape \(T, H, W, 3\) or \(3, T, H, W\)"):
            model.predict(wrong)
    with pytest.raises(ValueError, match="frames a second must be above 0"):
        model.predict(frames_THWC, fps=0)
    with pytest.raises(ValueError, match="a video is a path, a file opened for reading bytes, or a uint8 tensor"):
        model.predict(5)
    with pytest.raises(ValueError, match="open this file with mode"):
        model.predict(io.StringIO("x"))


@pytest.mark.parametrize("sampling", ["clip", "segments"])
def test_clips_are_those_of_the_test_loop(tmp_path, video, sampling, monkeypatch):
    model = predictor(tmp_path, "DATA.SAMPLING", sampling, "DATA.TEST_SHORT_SIDE", "40")
    plan = model.plan.changed(num_views=5, num_crops=3)
    transform = eval_transform(plan.size, plan.short_side, plan.num_crops)
    expected = torch.stack(read_clips(Video(video, 0), plan.times, transform, "pyav")).numpy()
    views = read_views(video, plan)
    np.testing.assert_array_equal(views.clips, expected)
    monkeypatch.setattr("lookupvit_video.inference.views._USUAL_BYTES", 3 * 64 * 48 * 4 * 2)  # two views at a time
    np.testing.assert_array_equal(read_views(video, plan).clips, expected)
    assert len(views.times) == 5
    assert views.times == sorted(views.times)


def test_a_short_video_is_noted_and_a_long_one_is_not(tmp_path, video):
    model = predictor(tmp_path, "DATA.SAMPLING_RATE", "4")
    write_video(tmp_path / "short.mp4", frames=2)
    short, long = model.predict([tmp_path / "short.mp4", video])
    assert short.note == "shorter (0.08 s) than the clip (0.40 s): its last frame is repeated"
    assert long.note == ""
    assert short.times[0][1] == pytest.approx(2 / 24)


def test_what_cannot_be_read_names_itself(tmp_path, video, monkeypatch):
    model = predictor(tmp_path)
    with pytest.raises(DecodeError, match=r"nowhere.mp4: no such file"):
        model.predict(tmp_path / "nowhere.mp4")
    bad, first, other, second = model.predict([tmp_path / "nowhere.mp4", video, io.BytesIO(b"no video"), video])
    assert bad == Failure(str(tmp_path / "nowhere.mp4"), "no such file")
    assert (other.path, other.error[:9]) == ("open file", "is text, ")
    assert [answer.path for answer in (first, second)] == [video, video]
    assert first.error == second.error == ""
    assert first.label in CLASSES
    assert model.predict([tmp_path / "nowhere.mp4"]) == [bad]
    with pytest.raises(DecodeError, match="open file: is text, not a video"):
        model.predict(io.BytesIO(b"not a video"))
    with pytest.raises(DecodeError, match="null"):
        model.predict("a\0b.mp4")
    plan = model.plan
    monkeypatch.setattr("lookupvit_video.inference.views.MAX_BYTES", 3 * 64 * 48 * 3)
    with pytest.raises(DecodeError, match=r"frames of 64 x 48 pixels are too large: a clip of 4 takes"):
        read_views(video, plan)


# Answers -------------------------------------------------------------------------------------------------------------

SEVERAL = ["MODEL.COMPRESSED_GRIDS", "[[1,1,1],[1,2,2],[2,4,4]]"]


def test_batches_do_not_change_answers_and_failures_pass_through(tmp_path, video):
    model = predictor(tmp_path, *SEVERAL)
    plan = model.plan.changed(num_views=3)
    other = write_video(tmp_path / "other.mp4", frames=30, first_number=500)
    views = [read_views(path, plan) for path in (video, other)]
    for budget in ({}, {"grid": "2x4x4"}, {"adaptive": Cascade(((1, 1, 1), (2, 4, 4)), (0.3,))}):
        found = [
            list(model.answers([views[0], Failure("x", "y"), views[1]], 5, batch_size=n, **budget)) for n in (1, 9)
        ]
        for answers in found:
            assert sorted(answer.path for answer in answers) == sorted([video, other, "x"])
        one, many = ({a.path: a for a in answers if isinstance(a, Prediction)} for answers in found)
        for path, answer in one.items():
            assert answer.labels == many[path].labels
            assert answer.probabilities == pytest.approx(many[path].probabilities, abs=1e-5)
            assert (answer.grid, answer.gmacs) == (many[path].grid, many[path].gmacs)


def test_a_compiled_model_answers_alike_and_compiles_once_for_each_grid(tmp_path, video):
    model, wanted = predictor(tmp_path, *SEVERAL), predictor(tmp_path, *SEVERAL)
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("eager")
    model.compile(4, backend=counter, fullgraph=True)
    for grid in ("1x2x2", "2x4x4"):
        for num_views in (1, 3, 4, 6):  # batches of 1, 3, 4 and 4 + 2 clips
            found, expected = (each.predict(video, 5, num_views=num_views, grid=grid, batch_size=4)
                               for each in (model, wanted))  # fmt: skip
            assert found.labels == expected.labels
            assert found.probabilities == pytest.approx(expected.probabilities, abs=1e-5)
    assert counter.frame_count == 2
    with pytest.raises(ValueError, match="before compiling the model"):
        model.grid_within(latency_ms=1e6)
    torch._dynamo.reset()


def test_budgets_choose_the_grid_and_tell_what_it_took(tmp_path, video):
    model = predictor(tmp_path, *SEVERAL)
    assert list(model.grids) == ["1x1x1", "1x2x2", "2x4x4"]
    assert model.grid_within(gmacs=1) == "2x4x4"
    assert model.grid_within(gmacs=model.grids["1x2x2"]) == "1x2x2"
    usual, large = model.predict(video, num_views=2), model.predict(video, num_views=2, grid="2x4x4")
    assert (usual.grid, large.grid) == ("1x2x2", "2x4x4")
    assert usual.probabilities != large.probabilities
    assert large.gmacs == pytest.approx(2 * model.grids["2x4x4"])
    cascade = Cascade(((1, 1, 1), (2, 4, 4)), (2.0,))
    sure = model.predict(video, num_views=2, adaptive=cascade)
    assert sure.probabilities == pytest.approx(large.probabilities, abs=1e-5)
    assert sure.gmacs == pytest.approx(2 * cascade_macs(cascade, model.costs)[1] / 1e9)
    assert sure.as_dict()["classes"] == dict(zip(sure.labels, sure.probabilities, strict=True))
    for wrong, message in (({"grid": "2x2x2"}, "this checkpoint has 1x1x1"), ({"batch_size": 0}, "at least 1"),
                           ({"grid": "1x1x1", "adaptive": cascade}, "give one of them"),
                           ({"num_views": 10**12}, "use fewer views"), ({"num_crops": 2}, "1 or 3 crops"),
                           ({"backend": "vlc"}, "DECODING_BACKEND is 'vlc'")):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            model.predict(video, **wrong)
    with pytest.raises(ValueError, match="give one of them"):
        model.grid_within()


def test_latency_budgets_use_the_cache_of_the_user(tmp_path, monkeypatch):
    monkeypatch.setenv("LOOKUPVIT_CACHE", str(tmp_path / "cache"))
    model = predictor(tmp_path, *SEVERAL)
    (tmp_path / "cache").mkdir()
    assert model.grid_within(latency_ms=1e6) in model.grids
    assert len(list((tmp_path / "cache" / "latency").iterdir())) == 1
    with pytest.raises(ValueError, match="ms a view on this device: the cheapest grid"):
        model.grid_within(latency_ms=1e-9)


# Checkpoints ---------------------------------------------------------------------------------------------------------


class Payload:
    """What pickle would run on loading."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def content_of(folder):
    predictor(folder)
    return torch.load(folder / "model.pt", weights_only=True)


def test_a_pickle_payload_is_not_run(tmp_path):
    content = content_of(tmp_path)
    trap = tmp_path / "run"
    for number, hostile in enumerate((Payload(trap), {**content, "classes": Payload(trap)}, [Payload(trap)])):
        torch.save(hostile, tmp_path / f"{number}.pt")
        with pytest.raises(ValueError, match="holds code, which is not run"):
            load_model(tmp_path / f"{number}.pt", "cpu")
    assert not trap.exists()
    torch.load(tmp_path / "0.pt", weights_only=False)  # the payload works
    assert trap.exists()


def changed(config, name, value):
    lines = [f"  {name}: {value}" if line.startswith(f"  {name}:") else line for line in config.splitlines()]
    return "\n".join(lines) + "\n"


def huge(state):
    """Weights of a wide model that take no room in the file: every row is the same number."""
    return {name: torch.zeros(1).expand(value.shape) for name, value in state.items()}


@pytest.mark.parametrize(("change", "message"), [
    (lambda c: {"classes": c["classes"][:-1]}, r"names 4 classes, but its MODEL.NUM_CLASSES is 5"),
    (lambda c: {"classes": ["a"] * 5}, "has duplicates"),
    (lambda c: {"classes": 5}, "holds something other than names"),
    (lambda c: {"classes": [1, 2, 3, 4, 5]}, "holds something other than names"),
    (lambda c: {"model": 5}, "not plain tensors by name"),
    (lambda c: {"model": {**c["model"], "tokenizer.projection.bias": [0.0]}}, "not plain tensors"),
    (lambda c: {"model": {}}, "x.pt: "),
    (lambda c: {"model": huge(c["model"])}, "larger than the file's data"),
    (lambda c: {"config": 5}, "x.pt"),
    (lambda c: {"config": "MODEL: 5"}, r"x.pt \(config in it\): MODEL is a group of keys"),
    (lambda c: {"config": changed(c["config"], "DIM", 48)}, "geometry must be those of the checkpoint"),
    (lambda c: {"config": changed(c["config"], "DIM", 3 * 10**9)}, "the model of its config cannot be built"),
    (lambda c: {"config": changed(c["config"], "DEPTH", 10**9)}, "more blocks than the file has weights"),
    (lambda c: {"config": changed(c["config"], "ARCH", "vit")}, "missing in the"),
    (lambda c: {"config": changed(c["config"], "NUM_FRAMES", 8)}, r"has shape \(1, 32, 24\)"),
    (lambda c: {"format": "other"}, "not a checkpoint of this project"),
])  # fmt: skip
def test_a_checkpoint_that_contradicts_itself_is_one_clear_error(tmp_path, change, message):
    content = content_of(tmp_path)
    assert content["format"] == FORMAT
    torch.save({**content, **change(content)}, tmp_path / "x.pt")
    with pytest.raises(ValueError, match=message) as raised:
        load_model(tmp_path / "x.pt", "cpu")
    assert "\n" not in str(raised.value)


def test_weights_that_are_no_numbers_are_told(tmp_path, video):
    content = content_of(tmp_path)
    content["model"]["tokenizer.projection.bias"][:] = float("nan")
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(ValueError, match=r"x.pt: the answer to .* is not finite; the weights are damaged"):
        load_model(tmp_path / "x.pt", "cpu").predict(video)


def test_eight_bits_in_this_process(tmp_path, monkeypatch):
    monkeypatch.setenv("LOOKUPVIT_CACHE", str(tmp_path / "cache"))
    model, plain = predictor(tmp_path, *SEVERAL), predictor(tmp_path, *SEVERAL)
    clips = torch.randint(0, 256, (2, 3, 4, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    assert model.quantize(clips) == []
    for grid in ("1x2x2", "2x4x4"):
        difference = (model.predict_clips(clips, parse_grid(grid)) - plain.predict_clips(clips, parse_grid(grid))).abs()
        assert 0 < difference.max() < 0.02
    torch.testing.assert_close(model.predict_clips(clips)[:1], model.predict_clips(clips[:1]), rtol=0, atol=1e-3)
    for one in (model, plain):
        assert one.grid_within(latency_ms=1e6) in model.grids
    assert len(list((tmp_path / "cache" / "latency").iterdir())) == 2  # of one each
    plain._compiled_batch = 2
    with pytest.raises(ValueError, match=r"quantize: .*do not compile"):
        plain.quantize(clips)
