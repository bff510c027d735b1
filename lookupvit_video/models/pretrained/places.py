"""From the tensors of a dense ViT to those of the model."""

import re
from collections.abc import Iterator

import torch
from torch import Tensor

from lookupvit_video.errors import UserError
from lookupvit_video.models.lookupvit import HEADS
from lookupvit_video.models.pretrained.report import State

_SCALED = {
    "scale_attention.gamma": "attention.projection",
    "scale_mlp.gamma": "mlp.2",
    "scale_gather.gamma": "cross_attention.gather_projection",
    "scale_infuse.gamma": "cross_attention.infuse_projection",
    "scale_lookup_mlp.gamma": "lookup_mlp.2",
}


def _fold_layer_scale(names: State) -> dict[str, str]:
    """Multiply layer scale into the layer before it, in place, which is the same; return the changed names -> how."""
    how = {}
    for name in [name for name in names if name.endswith(".gamma")]:
        block, scale = re.fullmatch(r"(.*?)(\w+\.gamma)", name).groups()  # type: ignore[union-attr]
        gamma = names.pop(name)
        for kind, factor in (("weight", gamma[:, None]), ("bias", gamma)):
            if (scaled := f"{block}{_SCALED[scale]}.{kind}") in names:
                names[scaled], how[scaled] = factor * names[scaled], "layer scale folded in"
    return how


def fit_first_tokens(names: State, own: State, source: str) -> dict[str, str]:
    """Make the source's class token and registers those of the model, in ``names``; return the made names -> how.

    Where the model has no class token, that of the source becomes its first register.

    Raises:
        UserError: the model has registers, but another number.
    """
    if "registers" not in own:
        return {}
    tokens = [names[name] for name in ("class_token", "registers") if name in names]
    if "class_token" in own:
        tokens = [names["registers"]] if "registers" in names else []
    given, wanted = sum(token.shape[1] for token in tokens), own["registers"].shape[1]
    if given != wanted:
        raise UserError(f"{source}: it has {given} tokens without a place, the model {wanted}; MODEL.REGISTERS {given}")
    names["registers"] = torch.cat(tokens, dim=1)
    if "class_token" in own or "class_token" not in names:
        return {}
    del names["class_token"]
    return {"registers": "the class token first"}


def spread(names: State, own: State) -> tuple[State, dict[str, str], dict[str, str]]:
    """Place the tensors of a dense ViT wherever the model takes them (our LookupViT's keep their names).

    Returns:
        the placed tensors; the name in ``names`` that each is from; how those that are not plain copies were made.
    """
    how = {} if any(name.endswith(".gamma") for name in own) else _fold_layer_scale(names)
    # Where a temporal transformer follows, the blocks' final norm comes before it, and its own is fresh.
    apart = any("frame_norm" in name for name in own) and "frame_norm.weight" not in names
    values: State = {}
    roots: dict[str, str] = {}
    made: dict[str, str] = {}
    for root, value in names.items():
        start = root.replace("head.norm.", "frame_norm.") if apart else root
        for name, placed, text in [(start, value, ""), *_lookup_places(start, value, own)]:
            if name in own:
                values[name], roots[name] = placed, root
                if text or root in how:
                    made[name] = ", ".join(filter(None, (text, how.get(root))))
    return values, roots, made


def _lookup_places(root: str, value: Tensor, own: State) -> Iterator[tuple[str, Tensor, str]]:
    """Yield where a dense ViT's tensor goes in a LookupViT: names, values, and how those that are not copies were made.

    The block of the compressed tokens (``refine``) is the source's. The gather starts as the same block's attention,
    looking from compressed to lookup tokens. What is written to the lookup tokens starts at 0, so that at first every
    block sees them as the tokenizer made them, as the source's first block did.
    """
    for head in HEADS:
        if root.startswith("head.") and "linear" not in root:
            yield root.replace("head.", f"heads.{head}."), value, ""
        if root.startswith("frame_norm."):
            yield root.replace("frame_norm.", f"frame_norms.{head}."), value, ""
    if not (found := re.fullmatch(r"(blocks\.\d+\.)((.+)\.(\w+))", root)):
        return
    block, inside, part, kind = found.groups()
    cross = f"{block}cross_attention."
    yield f"{block}refine.{inside}", value, ""
    if part == "norm_attention":
        yield f"{block}norm_gather_compressed.{kind}", value, "from norm_attention"
        yield f"{block}norm_gather_lookup.{kind}", value, "from norm_attention"
    elif part == "attention.qkv":
        query, key, values = value.chunk(3)
        yield f"{cross}query.{kind}", query, "from attention.qkv"
        yield f"{cross}key_value.{kind}", torch.cat([key, values]), "from attention.qkv"
        yield f"{cross}infuse_value.{kind}", values, "from attention.qkv"
    elif part == "attention.projection":
        yield f"{cross}gather_projection.{kind}", value, "from attention.projection"
        yield f"{cross}infuse_projection.{kind}", torch.zeros_like(value), "zero"
    elif part in ("attention.norm_query", "attention.norm_key"):
        yield f"{block}{part.replace('attention', 'cross_attention')}.{kind}", value, f"from {part}"
    elif part == "scale_attention":
        yield f"{block}scale_gather.{kind}", value, "from scale_attention"
    elif part == "mlp.2" and (name := f"{block}lookup_mlp.2.{kind}") in own:
        yield name, torch.zeros_like(own[name]), "zero"
