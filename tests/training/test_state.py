"""What a checkpoint holds comes back; tests/training/test_resume.py does the same with whole runs, to the bit."""

from dataclasses import replace
from pathlib import Path

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
