"""The state of a training run: all that a checkpoint holds, and nothing else."""

import logging
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict

from lookupvit_video.checkpoints.checkpoint import Checkpoint
from lookupvit_video.checkpoints.random_state import random_state, restore_random_state
from lookupvit_video.distributed.parallel import full_state, load_optimizer
from lookupvit_video.distributed.world import World, gather_objects
from lookupvit_video.models.pretexts.pretext import encoder_weights
from lookupvit_video.training.ema import Ema

logger = logging.getLogger(__name__)


@dataclass
class TrainingState:
    """What changes in a run from step to step. Its methods must be called by all processes."""

    model: nn.Module
    """What ``parallelize`` returned."""
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    world: World
    num_videos: int
    """Of the training list; the loader's position follows from the step, see ``data.loader.TrainBatchSampler``."""
    steps_per_epoch: int
    ema: Ema | None = None
    best_metric: str = "top1"
    step: int = 0
    """Optimizer steps done."""
    best: float | None = None
    """Best value of ``best_metric`` in a validation so far."""
    losses: list[tuple[float, float]] = field(default_factory=list)
    """Loss and gradient norm of each step since the last log line, so that a resumed run writes the same line."""
    bad_rows: set[int] = field(default_factory=set)
    """Training videos that could not be read."""
    bad_steps: int = 0
    """Steps that were left out because their loss or gradient was not finite."""
    to_validate: bool = False
    """An epoch is done, but not the validation after it."""
    thresholds: list[float] = field(default_factory=list)
    """MODEL.TASK multi_label: of each class, from the last validation."""

    def averaged(self) -> AbstractContextManager[None]:
        """Let the model have the weights that are tested and written for inference: the averaged ones, if any."""
        return self.ema.in_place() if self.ema else nullcontext()

    def inference_weights(self) -> dict[str, Tensor]:
        """Return these weights, in the main process."""
        with self.averaged():
            return full_state(self.model)[0]

    @property
    def best_top1(self) -> float:
        """Best top-1 so far, where it chooses best.pt; else -1."""
        return -1.0 if self.best is None or self.best_metric != "top1" else self.best

    def inference_state(self) -> dict[str, Any]:
        """Return what ``save_checkpoint`` takes for a file that predicts."""
        return {
            "model": encoder_weights(self.inference_weights()), "step": self.step, "best_top1": self.best_top1,
            "thresholds": self.thresholds,
        }  # fmt: skip

    def state_dict(self) -> dict[str, Any]:
        """Return what ``save_checkpoint`` takes for a file that a run resumes from."""
        weights, optimizer = full_state(self.model, self.optimizer)
        epoch, within = divmod(self.step, self.steps_per_epoch)
        of_each = gather_objects((random_state(self.world.device), self.bad_rows, torch.get_num_threads()), self.world)
        state = {
            "position": {"epoch": epoch, "step_in_epoch": within, "videos": self.num_videos},
            "to_validate": self.to_validate,
            "scaler": self.scaler.state_dict(),
            "random": [random for random, _, _ in of_each],
            "losses": list(self.losses),  # it grows while the file is written
            "bad_rows": sorted(set().union(*(rows for _, rows, _ in of_each))),
            "bad_steps": self.bad_steps,
            "best": {self.best_metric: self.best},
            "world_size": self.world.size,
            "threads": [threads for _, _, threads in of_each],
        }
        return {
            "model": weights, "optimizer": optimizer, "ema": self.inference_weights() if self.ema else None,
            "step": self.step, "best_top1": self.best_top1, "state": state, "thresholds": self.thresholds,
        }  # fmt: skip

    def load_state_dict(self, saved: Checkpoint) -> None:
        """Take up the state of a checkpoint, except for the weights: they were loaded before ``parallelize``."""
        state = saved.state
        load_optimizer(self.model, self.optimizer, saved.optimizer or {"state": {}, "param_groups": []})
        if self.ema and saved.ema:
            with self.ema.in_place():
                set_model_state_dict(self.model, {**saved.ema}, options=StateDictOptions(full_state_dict=True))
        elif self.ema:
            logger.warning("%s has no averaged weights; the average starts from its weights", saved.path)
        self.step = saved.step
        older = {"top1": saved.best_top1 if saved.best_top1 >= 0 else None}
        self.best = state.get("best", older).get(self.best_metric)
        if self.scaler.is_enabled() and state.get("scaler"):
            self.scaler.load_state_dict(state["scaler"])
        self.losses[:] = [(loss, norm) for loss, norm in state.get("losses", [])]
        same_list = state.get("position", {}).get("videos") == self.num_videos
        self.bad_rows = set(state.get("bad_rows", [])) if same_list else set()  # rows of another list are other videos
        self.bad_steps = state.get("bad_steps", 0)
        self.to_validate = state.get("to_validate", False)
        self.thresholds = list(saved.thresholds)
        restore_random_state(state.get("random", []), self.world)
