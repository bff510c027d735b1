"""What a checkpoint holds comes back; tests/training/test_resume.py does the same with whole runs, to the bit."""

import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from lookupvit_video.checkpoints.checkpoint import load_checkpoint, save_checkpoint
from lookupvit_video.config import load_config
from lookupvit_video.distributed.world import World
from lookupvit_video.training.ema import Ema
from lookupvit_video.training.state import TrainingState
from tests.small import settings


def fresh(seed=0, **options):
    torch.manual_seed(seed)
    model = torch.nn.Linear(3, 2)
    return TrainingState(
        model, torch.optim.AdamW(model.parameters(), lr=0.1), torch.amp.GradScaler("cpu", enabled=False),
        World(0, 1, torch.device("cpu")), num_videos=9, steps_per_epoch=4, ema=Ema(model, 0.5), **options,
    )  # fmt: skip


def take_step(state):
    state.model(torch.ones(1, 3)).sum().backward()
    state.optimizer.step()
    state.optimizer.zero_grad()
    state.ema.update()
    state.step += 1


def saved(state, path: Path):
    save_checkpoint(path, cfg=load_config("tests/small.yaml", settings("", "")), classes=["a"], **state.state_dict())
    return load_checkpoint(path)


def test_a_state_comes_back_and_goes_the_same_way(tmp_path):
    one, other = fresh(), fresh(seed=1)
    for _ in range(3):
        take_step(one)
    one.best, one.bad_steps, one.to_validate = 62.5, 2, True
    one.bad_rows |= {3, 5}
    one.losses += [(0.5, 1.0)]
    checkpoint = saved(one, tmp_path / "x.pt")
    losses = other.losses
    other.model.load_state_dict(checkpoint.model)
    other.load_state_dict(checkpoint)
    for name in ("step", "best", "bad_steps", "to_validate", "bad_rows", "losses"):
        assert getattr(other, name) == getattr(one, name), name
    assert other.losses is losses  # which a log shares
    assert checkpoint.state["position"] == {"epoch": 0, "step_in_epoch": 3, "videos": 9}
    for state in (one, other):
        take_step(state)
    for before, after in zip(one.model.parameters(), other.model.parameters(), strict=True):
        assert torch.equal(before, after)
    first, second = one.inference_state()["model"], other.inference_state()["model"]
    assert all(torch.equal(first[name], second[name]) for name in first)


def drawn():
    return random.random(), np.random.random(), torch.rand(()).item()


def test_random_numbers_continue_where_they_were(tmp_path):
    state = fresh()
    checkpoint = saved(state, tmp_path / "x.pt")
    then = drawn()
    assert drawn() != then
    fresh(seed=5).load_state_dict(checkpoint)
    assert drawn() == then
    state.world = World(1, 2, torch.device("cpu"))  # a process that the checkpoint does not know
    after = torch.get_rng_state()
    state.load_state_dict(checkpoint)
    assert torch.equal(torch.get_rng_state(), after)


def test_averaged_weights_and_thresholds_come_back(tmp_path, caplog):
    one, other = fresh(thresholds=[0.25, 0.5]), fresh(seed=1)
    take_step(one)
    checkpoint = saved(one, tmp_path / "x.pt")
    weight = one.model.weight.detach().clone()
    assert not torch.equal(checkpoint.ema["weight"], weight)
    other.model.load_state_dict(checkpoint.model)
    other.load_state_dict(checkpoint)
    assert torch.equal(other.model.weight, weight)  # in training
    assert torch.equal(other.inference_weights()["weight"], checkpoint.ema["weight"])
    assert other.thresholds == [0.25, 0.5]
    assert caplog.text == ""
    other.load_state_dict(replace(checkpoint, ema=None))
    assert "x.pt has no averaged weights; the average starts from its weights" in caplog.text
    caplog.clear()
    other.ema = None
    other.load_state_dict(checkpoint)
    assert caplog.text == ""
    assert torch.equal(other.inference_weights()["weight"], weight)


def test_the_scale_of_float16_comes_back_where_it_is_used(tmp_path):
    one, other, without = fresh(), fresh(), fresh()
    one.scaler = torch.amp.GradScaler("cpu", init_scale=512.0)
    other.scaler = torch.amp.GradScaler("cpu")
    checkpoint = saved(one, tmp_path / "x.pt")
    other.load_state_dict(checkpoint)
    assert other.scaler.get_scale() == 512
    without.load_state_dict(checkpoint)
    assert not without.scaler.is_enabled()
    other.load_state_dict(saved(without, tmp_path / "y.pt"))  # a run that used none
    assert other.scaler.get_scale() == 512


def test_the_place_in_an_epoch():
    state = fresh(step=9)
    content = state.state_dict()
    assert content["state"]["position"] == {"epoch": 2, "step_in_epoch": 1, "videos": 9}
    assert (content["step"], content["state"]["world_size"], len(content["state"]["threads"])) == (9, 1, 1)


def test_rows_of_another_list_are_other_videos(tmp_path):
    one = fresh()
    one.bad_rows = {3}
    other = fresh()
    other.num_videos = 10
    other.load_state_dict(saved(one, tmp_path / "x.pt"))
    assert other.bad_rows == set()


@pytest.mark.parametrize(("then", "now", "best"), [("top1", "top1", 12.5), ("nll", "nll", 12.5), ("nll", "top1", None),
                                                   ("top1", "nll", None)])  # fmt: skip
def test_the_best_so_far_is_of_the_same_metric(tmp_path, then, now, best):
    one, other = fresh(best_metric=then, best=12.5), fresh(best_metric=now)
    checkpoint = saved(one, tmp_path / "x.pt")
    assert checkpoint.best_top1 == (12.5 if then == "top1" else -1.0)
    other.load_state_dict(checkpoint)
    assert other.best == best


def test_checkpoints_of_before_have_no_best_of_other_metrics(tmp_path):
    old = replace(saved(fresh(), tmp_path / "x.pt"), state={}, best_top1=50.0)
    state = fresh()
    state.load_state_dict(old)
    assert (state.best, state.losses, state.bad_steps, state.to_validate) == (50.0, [], 0, False)


def test_a_new_run_has_nothing_to_validate_and_bad_videos_are_in_order():
    state = fresh()
    state.bad_rows |= {70_000, 3, 5}  # as a set, 70,000 comes first
    assert list(state.bad_rows) != sorted(state.bad_rows)
    assert state.state_dict()["state"]["bad_rows"] == [3, 5, 70_000]
    assert state.state_dict()["state"]["to_validate"] is False
