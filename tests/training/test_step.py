"""One optimiser step, without videos and processes: what is random, what the model sees, and what is left out."""

import dataclasses
import itertools
import logging
from collections import Counter
from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F

from lookupvit_video.config import load_config
from lookupvit_video.data.dataset import Batch
from lookupvit_video.data.manifest import Video
from lookupvit_video.data.transforms import IGNORED
from lookupvit_video.distributed.world import World
from lookupvit_video.errors import RunFailure
from lookupvit_video.models.budget import Budget
from lookupvit_video.models.build import build_model, model_spec
from lookupvit_video.training import step as step_module
from lookupvit_video.training.distill import Answer, Teacher
from lookupvit_video.training.ema import Ema
from lookupvit_video.training.losses import ClassificationLoss
from lookupvit_video.training.optim import build_optimizer
from lookupvit_video.training.run import Run
from lookupvit_video.training.state import TrainingState
from lookupvit_video.training.step import forward, loss_of_heads, one_step, prepare_clips
from lookupvit_video.training.step_log import StepLog
from tests.small import batch_augment, settings
from tests.training.test_optim import frozen_at_first, schedule_of
from tests.training.test_train import grid_of

CPU = torch.device("cpu")


class Journal:
    def __init__(self):
        self.entries = []

    def write(self, kind, step, **values):
        self.entries.append((kind, step, values))


def make_run(folder, world=None, videos=12, model=None, **changes):
    """Make a run that has what a step needs; what else a run has is None."""
    world = world or World(0, 1, CPU)
    cfg = load_config("tests/small.yaml", settings("", folder, **changes))
    torch.manual_seed(0)
    model = model or build_model(cfg).train()
    listed = [Video(str(folder / f"{number}.mp4"), number % 3) for number in range(videos)]
    parts = {
        "cfg": cfg, "world": world, "classes": ["a", "b", "c"], "train_videos": listed, "model": model,
        "spec": model_spec(cfg), "frozen_at_first": frozen_at_first(cfg, model), "schedule": schedule_of(cfg),
        "augment": batch_augment(cfg), "loss": ClassificationLoss(smoothing=cfg.SOLVER.LABEL_SMOOTHING),
        "state": TrainingState(
            model, build_optimizer(cfg, model), torch.amp.GradScaler("cpu", enabled=False), world, videos,
            videos // (cfg.TRAIN.BATCH_SIZE // cfg.AUG.NUM_SAMPLE),
        ),
        "steps": StepLog(world, listed), "journal": Journal(),
    }  # fmt: skip
    needed = {field.name for field in dataclasses.fields(Run) if field.default is field.default_factory}
    return Run(**dict.fromkeys(needed) | parts)


def coded_batch(count=8, per_video=2, unread=()):
    """Return clips of which each has its own grey level, 10 times its number; their labels are number // per_video."""
    levels = 10 * torch.arange(count, dtype=torch.uint8)
    labels = torch.tensor([IGNORED if n in unread else n // per_video % 3 for n in range(count)])
    clips = levels[:, None, None, None, None].expand(-1, 3, 4, 32, 32).contiguous()
    return Batch(clips, labels, torch.arange(count // per_video), [])


def noise_batch(count=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    clips = torch.randint(0, 256, (count, 3, 4, 32, 32), dtype=torch.uint8, generator=generator)
    return Batch(clips, torch.arange(count) % 3, torch.arange(count), [])


def levels_of(clips, cfg):
    """Return each clip's grey level, from its normalised pixels in all channels."""
    pixels = clips * torch.tensor(cfg.DATA.STD)[:, None, None, None] + torch.tensor(cfg.DATA.MEAN)[:, None, None, None]
    grey = pixels.mean((1, 2, 3, 4)) * 255
    torch.testing.assert_close(pixels * 255, grey[:, None, None, None, None].expand_as(pixels), rtol=1e-4, atol=1e-3)
    return [round(level) for level in grey.tolist()]


def unmixed(clips, targets):
    return clips, targets


# What the model sees ----------------------------------------------------------------------------------------------


def test_labels_and_marks_move_with_their_clips_where_repeated_clips_are_mixed(tmp_path):
    """Mixup mixes neighbours: the clips of a video must not stay side by side, and keep their labels."""
    run = make_run(tmp_path, MIXUP__ENABLE=True, AUG__NUM_SAMPLE=2)
    run.augment = unmixed
    orders = set()
    for seed in range(20):
        torch.manual_seed(seed)
        batch = coded_batch(8, unread=(2, 3))
        clips, targets, valid = prepare_clips(run, batch)
        numbers = [level // 10 for level in levels_of(clips, run.cfg)]
        assert sorted(numbers) == list(range(8))
        for row, number in enumerate(numbers):
            wanted = [0.0] * 3 if number in (2, 3) else F.one_hot(torch.tensor(number // 2 % 3), 3).tolist()
            assert targets[row].tolist() == wanted
            assert bool(valid[row]) == (number not in (2, 3))
        orders.add(tuple(numbers))
    assert len(orders) > 15


@pytest.mark.parametrize(("mixup", "repeats"), [(False, 2), (True, 1), (False, 1)])
def test_clips_stay_in_their_order_otherwise(tmp_path, mixup, repeats):
    run = make_run(tmp_path, MIXUP__ENABLE=mixup, AUG__NUM_SAMPLE=repeats)
    run.augment = unmixed
    clips, targets, valid = prepare_clips(run, coded_batch(8, unread=(5,)))
    assert levels_of(clips, run.cfg) == list(range(0, 80, 10))
    assert valid.tolist() == [True] * 5 + [False] + [True] * 2
    assert targets.sum(1).tolist() == [1.0] * 5 + [0.0] + [1.0] * 2


def test_clips_and_targets_are_what_augmentation_makes_of_them(tmp_path):
    run = make_run(tmp_path)
    run.augment = lambda clips, targets: (clips + 1, targets / 2)
    clips, targets, _ = prepare_clips(run, coded_batch(4))
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    torch.testing.assert_close(clips[3, :, 0, 0, 0], (30 / 255 - mean) / std + 1)
    assert targets[0].tolist() == [0.5, 0, 0]


class Watched(torch.nn.Module):
    """Stands in for a model: answers with what it was made with, and notes how it was called."""

    output_weights = None

    def __init__(self, logits=None):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.blocks = []
        self.logits, self.calls = logits, []

    def layer_ids(self):
        return {"weight": 0}

    def no_weight_decay(self):
        return set()

    def forward(self, clips, **options):
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None
        self.calls.append(SimpleNamespace(clips=clips, options=options, dtype=dtype, seed=torch.initial_seed(),
                                          draw=torch.rand(()).item()))  # fmt: skip
        logits = torch.zeros(len(clips), 3) if self.logits is None else self.logits
        output = (logits + self.weight,)
        return (output, None) if options.get("with_features") else output


@pytest.mark.parametrize(
    ("precision", "dtype"),
    [("auto", None), ("float32", None), ("bfloat16", torch.bfloat16), ("float16", torch.float16)],
)
def test_the_model_computes_in_the_configs_precision(tmp_path, precision, dtype):
    run = make_run(tmp_path, model=Watched(), TRAIN__PRECISION=precision)
    forward(run, noise_batch(), None)
    assert run.model.calls[0].dtype == dtype


def test_the_loss_is_smoothed_over_valid_clips(tmp_path):
    logits = torch.randn(4, 3, generator=torch.Generator().manual_seed(1))
    run = make_run(tmp_path, model=Watched(logits), SOLVER__LABEL_SMOOTHING=0.3)
    batch = noise_batch()
    labels = batch.labels.clone()
    labels[1] = IGNORED
    loss = forward(run, dataclasses.replace(batch, labels=labels), None)
    read = [0, 2, 3]
    wanted = F.cross_entropy(logits[read], batch.labels[read], label_smoothing=0.3) * 3 / 4
    torch.testing.assert_close(loss.detach(), wanted)


def test_losses_of_16_bit_logits_are_computed_in_32_bits(tmp_path):
    logits = torch.tensor([[8.0, 8.0625, 7.9375], [0.0, 0.0, 0.0625]]).bfloat16()
    targets = torch.tensor([[1.0, 0, 0], [0, 0.5, 0.5]])
    loss = loss_of_heads((logits, 2 * logits), targets, torch.tensor([True, True]), ClassificationLoss(smoothing=0.1))
    wanted = sum(F.cross_entropy(head.double(), targets.double(), label_smoothing=0.1) for head in (logits, 2 * logits))
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(wanted.item() / 2, rel=1e-6)


@pytest.mark.parametrize("weights", [{}, {"DISTILL__FEATURE_WEIGHT": 0.5}, {"DISTILL__BLOCK_WEIGHT": 0.5}])
def test_the_model_is_asked_for_a_budget_and_for_features_where_they_are_needed(tmp_path, weights):
    run = make_run(tmp_path, model=Watched(), DISTILL__TEACHER="x.pt", **weights)
    wanted = {"with_features": True} if weights else {}
    forward(run, noise_batch(), None)
    forward(run, noise_batch(), Budget((1, 2, 2)))
    assert [call.options for call in run.model.calls] == [wanted, {"budget": Budget((1, 2, 2)), **wanted}]


def test_losses_of_heads_are_weighed_as_the_model_says(tmp_path):
    targets, valid = torch.eye(3), torch.tensor([True, True, True])
    logits, loss = tuple(torch.randn(4, 3, 3)), ClassificationLoss()
    each = [loss_of_heads((head,), targets, valid, loss).item() for head in logits]
    found = loss_of_heads(logits, targets, valid, loss, (0.4, 0.3, 0.2, 0.1)).item()
    assert found == pytest.approx(sum(w * part for w, part in zip((0.4, 0.3, 0.2, 0.1), each, strict=True)), rel=1e-5)
    run = make_run(tmp_path, MODEL__EXITS="[1]", MODEL__HEADS="['compressed']", videos=4)
    asked = []
    run.loss = lambda head, targets: asked.append(len(asked)) or torch.full((4,), [6.0, 3.0][len(asked) - 1])
    assert forward(run, noise_batch(), None).item() == pytest.approx(6 * 2 / 3 + 3 * 1 / 3)  # block 2, then the exit


@pytest.mark.parametrize("weight", [0.0, 0.25, 1.0])
def test_a_teacher_sees_the_same_clips_and_is_mixed_in(tmp_path, weight):
    logits, theirs = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(1))
    run = make_run(tmp_path, model=Watched(logits), DISTILL__TEACHER="x.pt", DISTILL__WEIGHT=weight)
    teacher, batch = Watched(theirs), noise_batch()
    run.teacher = Teacher(teacher, with_tokens=False)
    teacher.forward = lambda clips: teacher.calls.append(clips) or theirs
    loss = forward(run, batch, None)
    assert torch.equal(teacher.calls[0], run.model.calls[0].clips)
    distance = F.kl_div(logits.log_softmax(-1), theirs.softmax(-1), reduction="batchmean")
    torch.testing.assert_close(loss.detach(), (1 - weight) * F.cross_entropy(logits, batch.labels) + weight * distance)


def test_a_teacher_of_several_labels_is_compared_class_by_class(tmp_path):
    logits, theirs = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(1))
    run = make_run(tmp_path, model=Watched(logits), DISTILL__TEACHER="x.pt", DISTILL__WEIGHT=1.0,
                   DISTILL__TEMPERATURE=2.0)  # fmt: skip
    run.loss = ClassificationLoss(multi_label=True)
    run.teacher = SimpleNamespace(answer=lambda clips: Answer(theirs, None, None))
    loss = forward(run, noise_batch(), None)
    p, q = (theirs / 2).sigmoid(), (logits / 2).sigmoid()
    distance = (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()).mean()
    torch.testing.assert_close(loss.detach(), 4 * distance)


@pytest.mark.parametrize(
    ("rank", "dry", "picture", "drawn"),
    [(0, False, True, 1), (0, False, False, 0), (0, True, True, 0), (1, False, True, 0)],
)
def test_the_main_process_draws_the_first_clips_unless_the_run_is_dry(tmp_path, monkeypatch, rank, dry, picture, drawn):
    calls = []
    monkeypatch.setattr(step_module, "plot_clips", lambda *arguments: calls.append(arguments))
    run = make_run(tmp_path, World(rank, 2, CPU), model=Watched())
    run.dry = dry
    forward(run, noise_batch(), None, picture=picture)
    assert len(calls) == drawn
    if drawn:
        clips, targets, classes, mean, std, path = calls[0]
        assert torch.equal(clips, run.model.calls[0].clips)
        assert targets.argmax(1).tolist() == [0, 1, 2, 0]
        assert (classes, mean, std) == (["a", "b", "c"], run.cfg.DATA.MEAN, run.cfg.DATA.STD)
        assert path == tmp_path / "train_clips.png"


@pytest.mark.parametrize(("mixup", "shown"), [(False, [0, 20, 40, 60]), (True, None)])
def test_a_clip_of_each_video_is_drawn(tmp_path, monkeypatch, mixup, shown):
    calls = []
    monkeypatch.setattr(step_module, "plot_clips", lambda *arguments: calls.append(arguments))
    run = make_run(tmp_path, World(0, 1, CPU), model=Watched(), AUG__NUM_SAMPLE=2, MIXUP__ENABLE=mixup)
    run.augment = unmixed
    forward(run, coded_batch(8), None, picture=True)
    clips, targets, *_ = calls[0]
    levels = levels_of(clips, run.cfg)
    assert levels == shown or (mixup and sorted(levels) == list(range(0, 80, 10)))
    assert targets.argmax(1).tolist() == [level // 20 % 3 for level in levels]


# What is random ---------------------------------------------------------------------------------------------------


def seen_by(tmp_path, step, rank, seed, parts=1, **changes):
    model = Watched()
    run = make_run(tmp_path, World(rank, 1, CPU), model=model, RNG_SEED=seed, TRAIN__ACCUMULATION_STEPS=parts,
                   TRAIN__BATCH_SIZE=4, **changes)  # fmt: skip
    run.state.step = step
    one_step(run, iter([noise_batch() for _ in range(parts)]))
    return model.calls


def test_random_numbers_of_a_step_follow_from_seed_step_and_rank(tmp_path):
    """Else drop path and mixing would be alike in all steps or processes, or would not come back on resume."""
    places = list(itertools.product((0, 1), (0, 1), (0, 1)))  # step, rank, RNG_SEED
    first = {place: seen_by(tmp_path, *place)[0].draw for place in places}
    assert len(set(first.values())) == len(places)
    torch.manual_seed(77)
    torch.rand(5)
    for place in places[::-3]:
        assert seen_by(tmp_path, *place)[0].draw == first[place]
    one, two = seen_by(tmp_path, 1, 0, 0, parts=2)
    assert one.draw != two.draw
    assert one.draw == first[1, 0, 0]


def test_what_a_step_draws_does_not_change_with_the_version_of_this_package(tmp_path):
    """A run that goes on under a newer version has the seeds and grids that it began with."""
    assert seen_by(tmp_path, 5, 1, 3)[0].seed == 6892395810180481299
    options = settings("", "", MODEL__COMPRESSED_GRIDS="[[1,2,2],[1,1,1],[2,3,3]]", RNG_SEED=3)
    cfg = load_config("tests/small.yaml", options)
    assert [grid_of(cfg, step)[1] for step in range(8)] == [2, 3, 1, 3, 3, 2, 1, 2]


def test_the_budget_is_the_same_for_every_rank_and_another_for_other_steps(tmp_path):
    options = {"MODEL__COMPRESSED_GRIDS": "[[1,2,2],[1,1,1],[2,3,3]]"}
    grids = [
        [seen_by(tmp_path, step, rank, 0, **options)[0].options["budget"].grid for step in range(9)] for rank in (0, 1)
    ]
    assert grids[0] == grids[1]
    assert len(set(grids[0])) > 1
    both = seen_by(tmp_path, 3, 0, 0, parts=2, **options)
    assert [call.options["budget"].grid for call in both] == [grids[0][3]] * 2
    cfg = load_config("tests/small.yaml", settings("", "", **options, RNG_SEED=5))
    assert [grid_of(cfg, step) for step in range(40)] != [grid_of(cfg, step + 1) for step in range(40)]
    assert max(Counter(grid_of(cfg, step) for step in range(300)).values()) < 150


# The step ---------------------------------------------------------------------------------------------------------

SGD = {"SOLVER__OPTIMIZING_METHOD": "sgd", "SOLVER__MOMENTUM": 0.0, "SOLVER__WEIGHT_DECAY": 0.0,
       "SOLVER__CLIP_GRAD_L2NORM": 0.0, "SOLVER__WARMUP_EPOCHS": 0, "SOLVER__BASE_LR": 0.5,
       "SOLVER__COSINE_END_LR": 0.5}  # fmt: skip


def gradient_step(run, batch):
    """Return what plain gradient descent of rate 0.5 would make of the weights, and the gradient's norm."""
    loss = forward(run, batch, None)
    gradients = torch.autograd.grad(loss, list(run.model.parameters()))
    norm = torch.stack([gradient.norm() for gradient in gradients]).norm()
    weights = [w.detach() - 0.5 * g for w, g in zip(run.model.parameters(), gradients, strict=True)]
    return weights, norm, loss.detach()


def assert_weights(run, wanted):
    for (name, weight), expected in zip(run.model.named_parameters(), wanted, strict=True):
        torch.testing.assert_close(weight.detach(), expected, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("parts", [1, 2, 4])
def test_a_step_is_gradient_descent_on_the_mean_of_its_parts(tmp_path, parts):
    run = make_run(tmp_path, TRAIN__ACCUMULATION_STEPS=parts, **SGD)
    batch = noise_batch()
    wanted, norm, loss = gradient_step(run, batch)
    size = 4 // parts
    pieces = [
        Batch(batch.clips[at : at + size], batch.labels[at : at + size], batch.indices[at : at + size], [])
        for at in range(0, 4, size)
    ]
    one_step(run, iter(pieces))
    assert_weights(run, wanted)
    assert all(parameter.grad is None for parameter in run.model.parameters())  # nothing is carried to the next step
    assert run.steps._rows == [[0, 1, 2, 3]]
    run.steps.settle(1)
    ((found_loss, found_norm),) = run.steps.settled
    assert found_loss == pytest.approx(loss.item(), rel=1e-5)
    assert found_norm == pytest.approx(norm.item(), rel=1e-4)
    assert run.steps.steps == 1
    assert run.steps.macs == 4 * run.clip_macs(None) > 0
    assert run.steps.data_seconds > 0
    assert run.steps.forward_seconds > 0
    for count in (2, 3):
        one_step(run, iter(pieces))
        assert run.steps.steps == count
        assert run.steps.macs == 4 * count * run.clip_macs(None)


def test_a_long_gradient_is_clipped_and_its_own_norm_is_logged(tmp_path):
    run = make_run(tmp_path, **{**SGD, "SOLVER__CLIP_GRAD_L2NORM": 0.01})
    before = [weight.detach().clone() for weight in run.model.parameters()]
    wanted, norm, _ = gradient_step(run, noise_batch())
    assert norm > 0.1
    one_step(run, iter([noise_batch()]))
    assert_weights(run, [old + (new - old) * 0.01 / norm for old, new in zip(before, wanted, strict=True)])
    run.steps.settle(1)
    assert run.steps.settled[0][1] == pytest.approx(norm.item(), rel=1e-4)


def test_the_learning_rate_is_that_of_the_steps_share_of_the_training(tmp_path):
    run = make_run(tmp_path, model=Watched(), TRAIN__BATCH_SIZE=4, SOLVER__MAX_EPOCH=4, SOLVER__WARMUP_EPOCHS=2,
                   SOLVER__BASE_LR=1.0, SOLVER__WARMUP_START_LR=0.0, SOLVER__COSINE_END_LR=0.0)  # fmt: skip
    assert (run.state.steps_per_epoch, run.total_steps) == (3, 12)
    rates = []
    for run.state.step in range(12):
        one_step(run, iter([noise_batch()]))
        rates.append(run.state.optimizer.param_groups[0]["lr"])
    warmup = [step / 6 for step in range(6)]
    cosine = [(1 + torch.cos(torch.tensor(torch.pi * step / 6)).item()) / 2 for step in range(6)]
    assert rates == pytest.approx([*warmup, *cosine], abs=1e-6)


def test_what_is_frozen_at_first_thaws_after_whole_epochs(tmp_path):
    run = make_run(tmp_path, MODEL__FREEZE_ENCODER=True, SOLVER__FREEZE_EPOCHS=1, **SGD)
    first = run.model.tokenizer.positions.detach().clone()
    for run.state.step in range(4):  # 12 videos, 4 a step
        one_step(run, iter([noise_batch()]))
        assert torch.equal(first, run.model.tokenizer.positions) == (run.state.step < 3)


def test_gradients_are_exchanged_with_the_last_part_only(tmp_path, monkeypatch):
    wanted = []
    plain = step_module.synchronizing

    def watched(model, wanted_now=None, **options):
        wanted.append(options.get("wanted", wanted_now))
        return plain(model, wanted[-1])

    monkeypatch.setattr(step_module, "synchronizing", watched)
    run = make_run(tmp_path, model=Watched(), TRAIN__ACCUMULATION_STEPS=4)
    one_step(run, iter([noise_batch(1) for _ in range(4)]))
    assert wanted == [False, False, False, True]


def test_only_the_first_part_of_the_first_step_is_drawn(tmp_path, monkeypatch):
    drawn, plain = [], step_module.forward

    def watched(run, batch, grid, *, picture=False):
        drawn.append(picture)
        return plain(run, batch, grid)

    monkeypatch.setattr(step_module, "forward", watched)
    run = make_run(tmp_path, model=Watched(), TRAIN__ACCUMULATION_STEPS=2)
    for run.state.step in range(2):
        one_step(run, iter([noise_batch(2), noise_batch(2)]))
    assert drawn == [True, False, False, False]


def test_the_average_takes_each_step_in_once(tmp_path):
    run = make_run(tmp_path, **SGD)
    run.state.ema = Ema(run.model, 0.75)
    old = run.model.heads["lookup"].linear.weight.detach().clone()
    one_step(run, iter([noise_batch()]))
    new = run.model.heads["lookup"].linear.weight.detach().clone()
    assert not torch.equal(old, new)
    with run.state.ema.in_place():
        torch.testing.assert_close(run.model.heads["lookup"].linear.weight.detach(), 0.75 * old + 0.25 * new)


# Bad numbers ------------------------------------------------------------------------------------------------------


def spoilt_step(run, monkeypatch, loss=1.0, norm=1.0):
    """Make a step whose loss is multiplied by a number, and whose gradient's norm is said to be ``norm``."""
    plain, clip = step_module.forward, step_module.clip_gradients
    with monkeypatch.context() as patch:
        patch.setattr(step_module, "forward", lambda *a, **options: plain(*a, **options) * loss)
        patch.setattr(step_module, "clip_gradients", lambda *a: clip(*a) * norm)
        one_step(run, iter([noise_batch()]))


NAN, INFINITE = float("nan"), float("inf")


@pytest.mark.parametrize(("loss", "norm"), [(NAN, 1.0), (1.0, NAN), (1.0, INFINITE)])
def test_a_step_with_bad_numbers_changes_nothing_and_counts(tmp_path, monkeypatch, caplog, loss, norm):
    run = make_run(tmp_path, TRAIN__MAX_BAD_STEPS=2, **SGD)
    run.state.ema = Ema(run.model, 0.5)
    run.state.step = 6
    before = [weight.detach().clone() for weight in run.model.parameters()]
    for count in (1, 2):
        spoilt_step(run, monkeypatch, loss, norm)
        assert run.state.bad_steps == count
        assert f"left out, {count} of at most 2" in caplog.text
        assert all(torch.equal(a, b) for a, b in zip(before, run.model.parameters(), strict=True))
        assert all(torch.equal(a, b) for a, b in zip(before, run.state.ema._averages, strict=True))
    assert [entry[:2] for entry in run.journal.entries] == [("bad_step", 7)] * 2
    with pytest.raises(RunFailure, match=r"step 7: .*; 3 such steps, TRAIN\.MAX_BAD_STEPS is 2; lower SOLVER\.BASE_LR"):
        spoilt_step(run, monkeypatch, loss, norm)
    one_step(run := make_run(tmp_path, TRAIN__MAX_BAD_STEPS=2, **SGD), iter([noise_batch()]))
    assert not all(torch.equal(a, b) for a, b in zip(before, run.model.parameters(), strict=True))
    assert run.state.bad_steps == 0


def test_without_a_limit_no_step_waits_for_the_device(tmp_path, monkeypatch):
    """The numbers are looked at with the log line."""
    run = make_run(tmp_path, model=Watched())
    monkeypatch.setattr(step_module, "in_any_process", lambda *_: pytest.fail("waited"))
    spoilt_step(run, monkeypatch, NAN)
    assert run.state.bad_steps == 0


def test_a_step_that_is_bad_elsewhere_is_left_out_here_and_warned_of_by_the_main_process(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(step_module, "in_any_process", lambda world, *flags: [True, False])
    for rank in (0, 1):
        caplog.clear()
        run = make_run(tmp_path, World(rank, 1, CPU), TRAIN__MAX_BAD_STEPS=1, **SGD)
        before = [weight.detach().clone() for weight in run.model.parameters()]
        one_step(run, iter([noise_batch()]))
        assert all(torch.equal(a, b) for a, b in zip(before, run.model.parameters(), strict=True))
        assert run.state.bad_steps == 1
        assert ("left out" in caplog.text) == (rank == 0)


class Scaler:
    """Stands in for the float16 scaler on a GPU."""

    def __init__(self, scale):
        self.value, self.calls = scale, []

    def is_enabled(self):
        return True

    def get_scale(self):
        return self.value

    def scale(self, loss):
        return loss * self.value

    def unscale_(self, optimizer):
        self.calls.append("unscale")
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad /= self.value

    def step(self, optimizer):
        self.calls.append("step")
        optimizer.step()

    def update(self):
        self.calls.append("update")


def test_a_scaled_loss_gives_the_same_step(tmp_path):
    run = make_run(tmp_path, **SGD)
    wanted, norm, loss = gradient_step(run, noise_batch())
    run.state.scaler = Scaler(1024.0)
    one_step(run, iter([noise_batch()]))
    assert run.state.scaler.calls == ["unscale", "step", "update"]
    assert_weights(run, wanted)
    run.steps.settle(1)
    assert run.steps.settled[0] == (pytest.approx(loss.item(), rel=1e-5), pytest.approx(norm.item(), rel=1e-4))


def test_a_gradient_too_large_for_float16_lowers_the_scale_and_does_not_count(tmp_path, monkeypatch, caplog):
    run = make_run(tmp_path, **SGD)
    run.state.scaler = Scaler(2.0)
    with caplog.at_level(logging.INFO):
        spoilt_step(run, monkeypatch, norm=INFINITE)
    assert "step 1: left out" in caplog.text
    assert run.state.scaler.calls == ["unscale", "update"]
    assert run.state.bad_steps == 0
    run.state.scaler = Scaler(1.0)  # no lower than that
    with pytest.raises(RunFailure, match=r"1 such steps, TRAIN\.MAX_BAD_STEPS is 0"):
        spoilt_step(run, monkeypatch, norm=INFINITE)
    run = make_run(tmp_path, **SGD)
    run.state.scaler = Scaler(65536.0)
    with pytest.raises(RunFailure, match="the loss is nan"):  # a loss is no matter of the scale
        spoilt_step(run, monkeypatch, loss=NAN)


# Videos that cannot be read ---------------------------------------------------------------------------------------


def bad_batch(*rows):
    return dataclasses.replace(noise_batch(), errors=[(row, f"{row}.mp4: damaged") for row in rows])


def test_a_bad_video_is_recorded_once(tmp_path, caplog):
    run = make_run(tmp_path, model=Watched(), videos=1000)
    (tmp_path / "0.mp4").touch()  # the folder is there
    for rows in ((3, 5), (5,), (3, 7)):
        one_step(run, iter([bad_batch(*rows)]))
    assert run.state.bad_rows == {3, 5, 7}
    lines = (tmp_path / "bad_videos.csv").read_text().splitlines()[1:]
    assert [line.split(",")[:2] for line in lines] == [["train", str(tmp_path / f"{row}.mp4")] for row in (3, 5, 7)]
    assert all("damaged" in line for line in lines)
    assert caplog.text.count("skipped: ") == 3


def test_a_dry_run_records_none(tmp_path):
    run = make_run(tmp_path, model=Watched(), videos=1000)
    (tmp_path / "0.mp4").touch()
    run.dry = True
    one_step(run, iter([bad_batch(3)]))
    assert run.state.bad_rows == {3}
    run.dry = False
    one_step(run, iter([noise_batch(), noise_batch()]))  # nor does one in which all could be read
    assert not (tmp_path / "bad_videos.csv").exists()


def test_as_many_bad_videos_as_allowed_and_no_more(tmp_path):
    run = make_run(tmp_path, model=Watched(), videos=1000, DATA__MAX_BAD_FRACTION=0.01)
    (tmp_path / "0.mp4").touch()
    one_step(run, iter([bad_batch(*range(10))]))
    with pytest.raises(RunFailure, match="11 of 1000 training videos cannot be read"):
        one_step(run, iter([bad_batch(10)]))
    assert len((tmp_path / "bad_videos.csv").read_text().splitlines()) == 12  # the last one too


def test_videos_of_a_lost_folder_are_not_called_bad(tmp_path):
    run = make_run(tmp_path / "gone", model=Watched(), videos=1000)
    with pytest.raises(RunFailure, match="gone is missing or empty"):
        one_step(run, iter([bad_batch(3)]))
    assert run.state.bad_rows == set()
