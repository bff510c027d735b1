"""Checkpoints: written atomically, checked when read, and read without running anything they hold.

A checkpoint is one dict of plain data and tensors. ``model``, ``config`` (YAML text) and ``classes`` are always there,
so any of them can predict; a training checkpoint also has ``optimizer``, ``ema`` and the rest of the run's state. The
file is a zip archive, as torch writes it, with a CRC-32 checksum of each part; ``load_checkpoint`` compares them all.
"""

import hashlib
import io
import logging
import math
import os
import pickle
import platform
import socket
import time
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fvcore.common.config import CfgNode
from torch import nn

from lookupvit_video import __version__
from lookupvit_video.config import config_from_text, token_grid
from lookupvit_video.errors import UserError
from lookupvit_video.files import atomic_write
from lookupvit_video.models.build import model_spec
from lookupvit_video.models.tokenizer import Grid, GridResize, TubeletTokenizer
from lookupvit_video.remote import local_copy
from lookupvit_video.text import is_utf8

logger = logging.getLogger(__name__)
FORMAT = "lookupvit_video/1"
_FOLDER = 0x10  # of a part's attributes in a zip archive
KEYS = {"config", "classes", "model", "optimizer", "step", "best_top1"}


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint file holds."""

    path: Path
    config: CfgNode
    classes: list[str]
    model: dict[str, torch.Tensor]
    optimizer: dict[str, Any] | None
    step: int
    """Optimizer steps done."""
    best_top1: float
    """Best top-1 of a validation so far, in percent, where it chooses best.pt; else, or before the first one, -1."""
    ema: dict[str, torch.Tensor] | None = None
    """The averaged weights of a training checkpoint; in a file for inference they are ``model``."""
    state: dict[str, Any] = field(default_factory=dict)
    """The rest of a run's state, see ``training.state``; empty in a file for inference."""
    thresholds: list[float] = field(default_factory=list)
    """MODEL.TASK multi_label: of each class, from which probability on it is answered; empty: 0.5."""
    calibration: dict[str, Any] = field(default_factory=dict)
    """By budget, what ``lookupvit calibrate`` found, see ``evaluation/calibration.py``; empty: not calibrated."""
    versions: dict[str, str] = field(default_factory=dict)
    """Of Python, the libraries and this package that wrote it."""


def library_versions() -> dict[str, str]:
    """Return the versions that decide whether results can be equal to the bit."""
    return {
        "python": platform.python_version(), "torch": str(torch.__version__), "numpy": np.__version__,
        "lookupvit_video": __version__,
    }  # fmt: skip


def save_checkpoint(
    path: str | Path,
    *,
    cfg: CfgNode,
    classes: list[str],
    model: nn.Module | Mapping[str, torch.Tensor],
    optimizer: dict[str, Any] | None = None,
    ema: Mapping[str, torch.Tensor] | None = None,
    step: int = 0,
    best_top1: float = -1.0,
    state: dict[str, Any] | None = None,
    thresholds: Sequence[float] = (),
) -> None:
    """Write a checkpoint; without ``optimizer`` it is one for inference, from which no run can resume.

    Args:
        model: a plain model, or its state.

    Raises:
        OSError: the disk is full or cannot be written to; an older file of that name stays as it was.
    """
    content = {
        "format": FORMAT,
        "config": cfg.dump(),
        "classes": list(classes),
        "model": dict(model.state_dict() if isinstance(model, nn.Module) else model),
        "optimizer": optimizer,
        "ema": dict(ema) if ema else None,
        "step": step,
        "best_top1": best_top1,
        "state": state or {},
        "thresholds": list(thresholds),
        "versions": library_versions(),
    }
    _write(Path(path), content)


def add_calibration(path: Path, calibration: dict[str, Any], thresholds: Sequence[float]) -> None:
    """Write a checkpoint again, with what was found on labeled videos; all else stays as it is.

    Raises:
        UserError: the checkpoint cannot be read.
        OSError: it cannot be written; the old file stays.
    """
    load_checkpoint(path)  # checks it
    content = torch.load(path, map_location="cpu", weights_only=True)
    _write(path, {**content, "calibration": calibration, "thresholds": list(thresholds)})


def _write(path: Path, content: dict[str, Any]) -> None:
    with atomic_write(path) as temporary, _ErrorKeepingFile(io.FileIO(temporary, "w")) as file:
        try:
            torch.save(content, file)
        except RuntimeError:  # torch does not report why writing failed
            raise (file.error or OSError(f"{path}: torch could not write it")) from None


class _ErrorKeepingFile(io.BufferedWriter):
    """A file that keeps the error with which writing to it failed."""

    error: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as error:
            self.error = error
            raise


def load_checkpoint(path: str | Path, *, mapped: bool = False) -> Checkpoint:
    """Read a checkpoint, which may be remote, onto the CPU; nothing in it is executed (``weights_only=True``).

    Args:
        mapped: leave the tensors in the file, whose pages are read when they are needed; for inference. Writing to a
            tensor does not change the file. Replacing the file is no problem, writing into it is.

    Raises:
        UserError: the file is missing, damaged (by its checksums), no checkpoint, or of another project.
    """
    try:
        local = local_copy(path)
        damaged = _damaged_part(local)
        if not damaged:
            options = {"mmap": True} if mapped and _can_be_mapped(local) else {}
            content = torch.load(local, map_location="cpu", weights_only=True, **options)
    except Exception as error:  # reading a damaged pickle may raise anything
        if isinstance(error, OSError) and error.strerror:
            damaged = error.strerror
        elif isinstance(error, pickle.UnpicklingError):
            damaged = "not a checkpoint, or it holds code, which is not run"
        else:
            damaged = "damaged, or not a checkpoint"
    if damaged:
        raise UserError(f"{path}: this checkpoint cannot be read ({damaged}); give a .pt file that training wrote")
    if not isinstance(content, dict) or content.get("format") != FORMAT or not KEYS <= content.keys():
        raise UserError(f"{path}: not a checkpoint of this project; give a .pt file that training wrote")
    return Checkpoint(
        path=Path(path),
        config=config_from_text(content["config"], f"{path} (config in it)"),
        **{name: content[name] for name in ("classes", "model", "optimizer", "step", "best_top1")},
        **{
            name: content[name] for name in ("ema", "state", "thresholds", "calibration", "versions") if name in content
        },  # newer
    )


def _damaged_part(path: Path) -> str:
    """Return what the checksums in a file find wrong; empty: nothing, or it is not an archive, which has them."""
    if not zipfile.is_zipfile(path):
        return ""
    with zipfile.ZipFile(path) as archive:
        part = archive.testzip()
        # torch reads no data of a part that is marked as a folder; the list of parts has no checksum
        folder = next((info.filename for info in archive.infolist() if info.external_attr & _FOLDER), "")
    if part:
        return f"damaged: the checksum of {part} does not match"
    return f"damaged: {folder} is marked as a folder" if folder else ""


def _can_be_mapped(path: Path) -> bool:
    """Return whether torch maps a file: an archive whose name is UTF-8. Windows would lock the file."""
    return os.name != "nt" and is_utf8(str(path)) and zipfile.is_zipfile(path)


def load_weights(
    model: nn.Module, checkpoint: Checkpoint, *, resize_positions: bool = False, assign: bool = False
) -> None:
    """Put a checkpoint's weights into a model of the same shape.

    Args:
        assign: make the checkpoint's tensors the own ones of a model of ``build_model(empty=True)``.
        resize_positions: the clip's frames and crop may differ: resize positions to the model's token grid.

    Raises:
        UserError: names the first parameter that does not fit.
    """
    own, given = model.state_dict(), dict(checkpoint.model)
    tokenizer = getattr(model, "encoder", model).tokenizer
    if isinstance(tokenizer, TubeletTokenizer):  # PyTorchVideo's models have positions of their own kind
        grid, own_grid = token_grid(checkpoint.config.MODEL, checkpoint.config.DATA), tokenizer.grid
        if resize_positions:
            _resize_positions(own, given, grid, own_grid)
        elif grid != own_grid:  # their number of positions may be the same
            raise UserError(
                f"{checkpoint.path}: its grid of lookup tokens is {grid}, the model's {own_grid}; "
                "MODEL and DATA geometry must be those of the checkpoint"
            )
    if checkpoint.config.TRAIN.TASK != "classify" and not any("head" in name for name in given):
        raise UserError(
            f"{checkpoint.path}: pre-trained without labels, so it has no classifier; train one with MODEL.INIT_FROM "
            f"{checkpoint.path}"
        )
    for name in [*own, *given]:
        if name not in own or name not in given:
            where = "checkpoint" if name not in given else "model"
            raise UserError(
                f"{checkpoint.path}: {name} is missing in the {where}; MODEL keys must be those of the checkpoint"
            )
        if own[name].shape != given[name].shape:
            raise UserError(
                f"{checkpoint.path}: {name} has shape {tuple(given[name].shape)}, the model's has "
                f"{tuple(own[name].shape)}; MODEL and DATA geometry must be those of the checkpoint"
            )
    if assign:  # with the model's number format and layout in memory, as a copy would have them
        given = {name: given[name].to(tensor.dtype).contiguous() for name, tensor in own.items()}
    model.load_state_dict(given, assign=assign)


def fingerprint(model: nn.Module) -> str:
    """Return a hash of a model's weights, which says whether what was measured with them still holds."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:32]


def check_settings(settings: Mapping[str, Any], checkpoint: Checkpoint) -> None:
    """Raise UserError where the weights would load, but not compute what they were trained to.

    Args:
        settings: ``ModelSpec.settings_not_in_weights`` of the config.
    """
    theirs = model_spec(checkpoint.config).settings_not_in_weights
    for name, value in settings.items():
        if name in theirs and theirs[name] != value:
            raise UserError(
                f"{checkpoint.path}: it was trained with MODEL.{name} {theirs[name]}, the config says {value}; "
                "MODEL keys must be those of the checkpoint"
            )


def _resize_positions(own: dict[str, torch.Tensor], given: dict[str, torch.Tensor], grid: Grid, own_grid: Grid) -> None:
    """Resize, in ``given``, the positions from the checkpoint's grid to the model's."""
    for name, old, new in (
        ("tokenizer.positions", grid, own_grid),
        ("temporal.positions", (grid[0], 1, 1), (own_grid[0], 1, 1)),
    ):
        if name in own and name in given and old != new and given[name].shape[1] == math.prod(old):
            given[name] = GridResize(old, new)(given[name])
            logger.info("%s: resized from a grid of %s to %s", name, old, new)


def checkpoint_path(output_dir: str | Path, step: int) -> Path:
    """Return where the training checkpoint of a step lies."""
    return Path(output_dir) / "checkpoints" / f"step_{step:08d}.pt"


def training_checkpoints(output_dir: str | Path) -> list[Path]:
    """Return a run's training checkpoints, newest first."""
    return sorted((Path(output_dir) / "checkpoints").glob("step_*.pt"), reverse=True)


def latest_checkpoint(output_dir: str | Path) -> Checkpoint | None:
    """Read the newest training checkpoint of a run that can be read; None where there is none.

    Raises:
        UserError: there are checkpoints, but none can be read.
    """
    paths = training_checkpoints(output_dir)
    for path in paths:
        try:
            return load_checkpoint(path)
        except UserError as error:
            logger.warning("%s; trying the one before", error)
    if paths:
        raise UserError(f"{paths[0].parent}: none of these checkpoints can be read; remove them to start from step 0")
    return None


def checkpoint_seen_by_main(path: Path, patience: float = 90.0) -> Checkpoint:
    """Read the checkpoint that the main process chose.

    Args:
        patience: seconds to wait for it to appear: a network file system may show a new file late.

    Raises:
        UserError: it does not appear, or cannot be read here.
    """
    deadline = time.monotonic() + patience
    while not path.exists():
        if time.monotonic() > deadline:
            raise UserError(
                f"{path}: the main process sees this checkpoint, but {socket.gethostname()} does not; OUTPUT_DIR must "
                "be a folder that all machines share"
            )
        time.sleep(min(1.0, patience / 10))
    return load_checkpoint(path)


def set_aside_after(output_dir: str | Path, step: int) -> None:
    """Rename the training checkpoints after the one that a run resumes from: they are damaged.

    Under their own names they would count among the newest, which are kept, and sound ones would be deleted.
    """
    for path in training_checkpoints(output_dir):
        if path.name > checkpoint_path(output_dir, step).name:
            logger.warning("%s: set aside as %s.damaged", path, path.name)
            path.replace(path.with_name(f"{path.name}.damaged"))


def remove_old_checkpoints(output_dir: str | Path, keep: int) -> None:
    """Delete all but the newest ``keep`` training checkpoints."""
    for path in training_checkpoints(output_dir)[keep:]:
        path.unlink(missing_ok=True)


def remove_unfinished(output_dir: str | Path) -> None:
    """Delete the unfinished files of killed processes; no run may be writing there."""
    folder = Path(output_dir)
    for path in [*folder.glob(".*.tmp.pt"), *(folder / "checkpoints").glob(".*.tmp.pt")]:
        path.unlink(missing_ok=True)
