"""Others' parameter names -> those of this project's dense ViT.

Families share names (Hugging Face's CLIP has those of its ViT), so there is one table for all.
"""

import math
import re

import torch

from lookupvit_video.models.pretrained.families import EXTRA, OWN_LOOKUPVIT, OWN_VIT, VIDEO, kind_of
from lookupvit_video.models.pretrained.report import State

_WRAPPERS = re.compile(
    r"^((module|_orig_mod|model|encoder|backbone|vit|deit|videomae|vivit|dinov2(_with_registers)?|dinov3_vit|vjepa2|visual"
    r"|trunk|vision_model|transformer)\.)*"
)
_IMAGE_TOWER = re.compile(r"(^|\.)(visual|vision_model)\.")  # a CLIP with its text tower has these for the images
_LEVEL = re.compile(r"(?:^|\.)norms_block\.(\d+)\.(\w+)$")
_BLOCK = re.compile(r"(?:blocks|layers?|resblocks)\.(\d+)\.(.+)")
_OUTSIDE = {  # pattern -> name; {} are the pattern's groups
    r"(?:embeddings\.)?patch_embed(?:dings?)?(?:\.proj(?:ection)?)?\.(\w+)": "tokenizer.projection.{}",
    r"conv1\.(weight)": "tokenizer.projection.{}",
    r"(?:embeddings\.)?(?:pos_embed|position_embeddings?|positional_embedding)(?:\.weight)?": "tokenizer.positions",
    r"(?:embeddings\.)?(?:cls_token|class_embedding)": "class_token",
    r"(?:embeddings\.)?(?:register_tokens|reg_token|storage_tokens)": "registers",
    r"video_mod_embed": "tokenizer.modality",
    r"(?:norm_pre|ln_pre|pre_layrnorm)\.(\w+)": "tokenizer.norm.{}",  # CLIP's, before the first block
    r"(?:norm|layernorm|fc_norm|ln_post|post_layernorm)\.(\w+)": "head.norm.{}",
    r"(?:head|classifier)\.(weight|bias)": "head.linear.{}",
}
_INSIDE = {
    r"(?:norm1|layernorm_before|layer_norm1|ln_1)\.(\w+)": "norm_attention.{}",
    r"attn\.(?:qkv\.|in_proj_)(weight|bias)": "attention.qkv.{}",
    r"(?:attn|attention|self_attn)\.(?:attention\.)?([qkv])(?:uery|ey|alue|_proj)?[._](weight|bias)": "attention.{}.{}",
    r"attn\.q_norm\.(\w+)": "attention.norm_query.{}",
    r"attn\.k_norm\.(\w+)": "attention.norm_key.{}",
    r"(?:attn|attention|self_attn)\.(?:proj|o_proj|out_proj|output\.dense)\.(\w+)": "attention.projection.{}",
    r"(?:ls_?1\.gamma|layer_scale1\.lambda1|gamma_1)": "scale_attention.gamma",
    r"(?:norm2|layernorm_after|layer_norm2|ln_2)\.(\w+)": "norm_mlp.{}",
    r"(?:mlp\.fc1|mlp\.c_fc|mlp\.up_proj|intermediate\.dense)\.(\w+)": "mlp.0.{}",
    r"(?:mlp\.fc2|mlp\.c_proj|mlp\.down_proj|output\.dense)\.(\w+)": "mlp.2.{}",
    r"(?:ls_?2\.gamma|layer_scale2\.lambda1|gamma_2)": "scale_mlp.gamma",
}


def _vit_name(key: str) -> str:
    """Return this project's name for another's key, with q, k and v as yet apart; "" for one that has none here."""
    key = _WRAPPERS.sub("", key)
    block = _BLOCK.fullmatch(key)
    for pattern, name in (_INSIDE if block else _OUTSIDE).items():
        if match := re.fullmatch(pattern, block[2] if block else key):
            return (f"blocks.{block[1]}." if block else "") + name.format(*match.groups())
    return ""


def stacked(name: str) -> str:
    """Return the name after ``_stack_qkv``."""
    return re.sub(r"attention\.[qkv]\.", "attention.qkv.", name)


def rename(state: State) -> dict[str, str]:
    """Return this project's name, or "", for each key."""
    own = {key: re.sub(r"^((module|_orig_mod)\.)+", "", key) for key in state}
    if "tokenizer.projection.weight" in own.values():
        return own
    towers = [key for key in state if _IMAGE_TOWER.search(key)]
    names = dict.fromkeys(state, "") | {key: _vit_name(key) for key in towers or state}
    if any(key.startswith("pooler.") for key in state):  # V-JEPA 2's classifier reads what another network pools
        names |= {key: "" for key, name in names.items() if name.startswith("head.linear.")}
    depths = [int(found[1]) for key in state if (found := _LEVEL.search(key))]
    names |= {key: f"head.norm.{found[2]}" for key in state  # V-JEPA 2.1 has a norm for each of four depths
              if (found := _LEVEL.search(key)) and int(found[1]) == max(depths)}  # fmt: skip
    first = {name: key for key, name in reversed(names.items())}  # of two keys for one name, the first counts
    return {key: name if first[name] == key else "" for key, name in names.items()}


def to_vit_names(state: State) -> tuple[State, str, list[str]]:
    """Rename a flat state dict to the names of this project's dense ViT (its own LookupViT keeps its names).

    Queries, keys and values become one ``qkv``; a bias that only some of them have is 0 for the others. Positions
    become (1, n, D) without the rows of class and other extra tokens; the class token's row is added to it.

    Returns:
        the renamed tensors in float32, whose weights they are, and the keys that have no name here.
    """
    renamed = rename(state)
    names = {name: state[key].float() for key, name in renamed.items() if name}
    left_out = [key for key, name in renamed.items() if not name]
    kind = kind_of(state, names, " ".join(left_out))
    if kind in (OWN_VIT, OWN_LOOKUPVIT):
        return names, kind, left_out
    _stack_qkv(names)
    if token := "class_token" in names:
        names["class_token"] = names["class_token"].reshape(1, 1, -1)
    if "registers" in names:
        names["registers"] = names["registers"].reshape(1, -1, names["registers"].shape[-1])
    _fit_patches(names, state)
    if "tokenizer.positions" in names:
        positions = names["tokenizer.positions"]
        positions = positions.reshape(1, -1, positions.shape[-1])
        registers = names["registers"].shape[1] if "registers" in names else 0
        others = registers + sum(state[key].shape[1] for key in left_out if EXTRA.search(key))
        extra = _extra_rows(positions.shape[1], token, others, kind in VIDEO)
        names["tokenizer.positions"] = positions[:, extra:]
        if token and extra:
            names["class_token"] = names["class_token"] + positions[:, :1]
        if registers and extra == token + registers:
            names["registers"] = names["registers"] + positions[:, int(token) : extra]
    return names, kind, left_out


def _fit_patches(names: State, state: State) -> None:
    """Make a convolution of a linear layer on patches, and a part of its bias of what is added to every token."""
    weight, bias = "tokenizer.projection.weight", "tokenizer.projection.bias"
    if weight in names and names[weight].dim() == 2:  # SigLIP 2 for images of any shape: rows, columns, channels
        side = math.isqrt(names[weight].shape[1] // 3)
        names[weight] = names[weight].unflatten(1, (side, side, -1)).movedim(-1, 1)
    if (modality := names.pop("tokenizer.modality", None)) is not None:  # V-JEPA 2.1: these tokens are a video's
        names[bias] = names[bias] + modality.flatten()
    masked = any(key.endswith("qkv.bias_mask") for key in state)  # DINOv3's own files: keys have no bias
    for name in [name for name in names if masked and name.endswith("attention.qkv.bias")]:
        query, key, value = names[name].chunk(3)
        names[name] = torch.cat([query, torch.zeros_like(key), value])


def _stack_qkv(names: State) -> None:
    """Put q, k and v of each block into one qkv, in place; VideoMAE has q and v biases next to one qkv weight."""
    blocks = {name.split("attention.")[0] for name in names if re.search(r"attention\.[qkv]\.", name)}
    for block in blocks:
        for kind in ("weight", "bias"):
            parts = [names.pop(f"{block}attention.{letter}.{kind}", None) for letter in "qkv"]
            given = next((part for part in parts if part is not None), None)
            if given is not None:
                stacked = torch.cat([torch.zeros_like(given) if part is None else part for part in parts])
                names[f"{block}attention.qkv.{kind}"] = stacked


def _extra_rows(n: int, class_token: bool, others: int, video: bool) -> int:
    """Return how many of n positions, the first ones, belong to tokens that are not on the grid.

    Args:
        others: how many register and distillation tokens there are; in some models they have positions, in some not
            even the class token has one. In an image's table, what leaves a square is right.
    """
    expected = int(class_token)
    counts = (expected, 0, expected + others)
    squares = [extra for extra in counts if extra < n and math.isqrt(n - extra) ** 2 == n - extra]
    return squares[0] if squares and not video else expected
