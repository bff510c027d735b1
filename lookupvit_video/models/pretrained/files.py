"""Weights from files and the Hugging Face Hub; nothing in a file is executed."""

import argparse
import pickle
from pathlib import Path
from typing import Any

import torch
from fvcore.common.config import CfgNode
from safetensors.torch import load, load_file
from torch import Tensor

from lookupvit_video.config import get_defaults, token_grid
from lookupvit_video.errors import UserError
from lookupvit_video.models.pretrained.report import State
from lookupvit_video.models.tokenizer import Grid
from lookupvit_video.remote import is_hub_id, is_remote, local_copy
from lookupvit_video.text import is_utf8

_NESTS = ("model", "module", "state_dict", "model_state", "ema_encoder", "target_encoder")  # the last two: V-JEPA's
_FILES = ("model.safetensors", "pytorch_model.bin")


def read_state(source: str) -> State:
    """Read a flat dict of tensors onto the CPU; nothing in the file is executed.

    Args:
        source: a .safetensors, .pth, .pt or .bin file, a folder with model.safetensors or pytorch_model.bin, or, where
            no such path exists, a model id ("org/name") of the Hugging Face Hub, which is then downloaded.

    Raises:
        UserError: there is no such source, or it cannot be read, or holds no tensors.
    """
    return flat(read_content(source), source)


def load_safetensors(path: Path) -> dict[str, Tensor]:
    """Read a .safetensors file; its own reader cannot open paths that are not UTF-8."""
    return load_file(path) if is_utf8(str(path)) else load(path.read_bytes())


def read_content(source: str, key: str = "MODEL.INIT_FROM") -> Any:
    """Read everything in a source that ``read_state`` takes, as it was saved; ``key`` is the setting that names it."""
    path = _local(source, key)
    try:
        if path.suffix == ".safetensors":
            return load_safetensors(path)
        with torch.serialization.safe_globals([argparse.Namespace]):  # MAE's and VideoMAE's files keep their arguments
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # reading a damaged file may raise anything
        code = isinstance(error, pickle.UnpicklingError)
        reason = "it holds code, which is not run, or no tensors" if code else "damaged, or not a file of weights"
        raise UserError(
            f"{path}: these weights cannot be read ({reason}); give a .safetensors file or a state dict of torch.save"
        ) from None


def _local(source: str, key: str) -> Path:
    if is_remote(source):
        return local_copy(source)
    path = Path(source).expanduser()
    if path.is_file():
        return path
    if path.is_dir():
        if file := next((path / name for name in _FILES if (path / name).is_file()), None):
            return file
        raise UserError(f"{source}: neither {' nor '.join(_FILES)} is in this folder")
    if not is_hub_id(source):
        raise UserError(f"{source}: no such file; {key} is a file, a folder or a Hugging Face model id (org/name)")
    return _downloaded(source)


def _downloaded(repository: str) -> Path:
    try:
        from huggingface_hub import hf_hub_download
    except ImportError:
        raise UserError(
            f"{repository}: no such file; to fetch it from the Hugging Face Hub, pip install huggingface_hub"
        ) from None
    reasons = []
    for name in _FILES:
        try:
            return Path(hf_hub_download(repository, name))
        except Exception as error:  # offline, no such repository or file, no access: each a class of its own
            reasons.append(f"{name}: {type(error).__name__}")
    raise UserError(
        f"{repository}: no such file, and it cannot be fetched from the Hugging Face Hub ({', '.join(reasons)}); "
        "check the name and the network, or give a local file"
    )


def flat(content: Any, source: str) -> State:
    """Return the named tensors in what was read, without what they are wrapped in."""
    while isinstance(content, dict) and (nest := next((n for n in _NESTS if isinstance(content.get(n), dict)), None)):
        content = content[nest]
    items = content.items() if isinstance(content, dict) else ()
    state = {str(key): value for key, value in items if isinstance(value, Tensor)}
    if not state:
        raise UserError(f"{source}: it holds no named tensors")
    return state


def own_grid(content: Any) -> Grid | None:
    """Return the grid of tokens of a checkpoint of this project; None for others' files."""
    if not (isinstance(content, dict) and str(content.get("format", "")).startswith("lookupvit_video/")):
        return None
    known, found = get_defaults(), CfgNode.load_cfg(content["config"])  # an older file lacks newer keys
    MODEL, DATA = (CfgNode({**known[name], **found[name]}) for name in ("MODEL", "DATA"))
    return token_grid(MODEL, DATA)
