"""Weights that others trained, put into this project's models: ViT, MAE, DINOv2, CLIP, VideoMAE, ViViT, and our own.

Reading order: ``init_from`` and its ``Report``; ``to_vit_names`` (whose names are understood); ``_spread`` (a dense ViT
becomes a LookupViT); the fitting of kernels and positions; ``read_state`` (files and the Hugging Face Hub).
Shape letters: D width, C channels, t h w the grid of tokens or the sides of a tubelet, n positions in the source.
"""

import argparse
import math
import pickle
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from fvcore.common.config import CfgNode
from safetensors.torch import load, load_file
from torch import Tensor, nn

from lookupvit_video.config import token_grid
from lookupvit_video.errors import UserError
from lookupvit_video.models.adapters import is_adapter
from lookupvit_video.models.blocks import ACTIVATIONS, TransformerBlock
from lookupvit_video.models.lookupvit import HEADS, LookupViT
from lookupvit_video.models.tokenizer import Grid, GridResize, TubeletTokenizer, interpolation_matrix
from lookupvit_video.models.vit import ViT
from lookupvit_video.remote import is_remote, local_copy
from lookupvit_video.text import is_utf8

State = dict[str, Tensor]
INFLATIONS = ("central", "average")
VIDEO = ("ViViT", "video ViT", "VideoMAE")
OWN_VIT, OWN_LOOKUPVIT = "this project's ViT", "this project's LookupViT"


@dataclass
class Report:
    """What became of the weights; each parameter of the model is ``loaded``, ``made``, ``resized`` or ``fresh``."""

    kind: str
    """Whose weights they are, as far as their names tell."""
    loaded: list[str] = field(default_factory=list)
    """What is the source's, as it was."""
    made: dict[str, str] = field(default_factory=dict)
    """What was derived -> how."""
    resized: dict[str, str] = field(default_factory=dict)
    """What was resized -> from what to what."""
    fresh: list[str] = field(default_factory=list)
    """What keeps its initialisation."""
    left_out: list[str] = field(default_factory=list)
    """Keys of the source that were not used."""
    warnings: list[str] = field(default_factory=list)
    """What makes the model compute something else than the source did, and the setting that mends it."""

    def __str__(self) -> str:
        lines = [f"initialised from {self.kind}"]
        for title in ("loaded", "made", "resized", "fresh", "left_out"):
            entries = getattr(self, title)
            how = entries if isinstance(entries, dict) else dict.fromkeys(entries, "")
            groups = Counter((re.sub(r"(blocks|layers?)\.\d+\.", r"\1.*.", name), text) for name, text in how.items())
            counted = [(name + (f" x{n}" if n > 1 else ""), text) for (name, text), n in groups.items()]
            each = [f"{name} ({text})" if text else name for name, text in counted]
            lines.append(f"  {title.replace('_', ' ')} {len(entries)}: {', '.join(each) or '-'}")
        return "\n".join([*lines, *(f"  warning: {text}" for text in self.warnings)])


def init_from(model: nn.Module, source: str, *, inflate: str = "central") -> Report:
    """Load the weights of a source into a ViT or LookupViT, as far as they fit; the rest keeps its initialisation.

    Args:
        source: a file, a folder or a model id of the Hugging Face Hub, see ``read_state``.
        inflate: what becomes of an image model's kernel in a tubelet of t frames (ViViT, arXiv 2103.15691, section
            3.4): "central" puts it on frame t // 2 and zeros on the others, "average" puts 1 / t of it on each.

    Raises:
        UserError: the source cannot be read, is no ViT, or has another width or other shapes than the model.
    """
    if inflate not in INFLATIONS:
        raise UserError(f"MODEL.INIT_INFLATE {inflate!r}: choose {' or '.join(INFLATIONS)}")
    if not isinstance(model, (ViT, LookupViT)):
        raise UserError(f"MODEL.INIT_FROM fills a vit or a lookupvit; MODEL.ARCH makes a {type(model).__name__}")
    content = _read(source)
    state, own = _flat(content, source), model.state_dict()
    names, kind, _ = to_vit_names(state)
    _check(names, kind, model, state, source)
    report = Report(kind)
    values, roots, report.made = _spread(names, own)
    _fit_tokenizer(values, model.tokenizer, _own_grid(content), inflate, report)

    fitted: State = {}
    for name, fresh in own.items():
        if name not in values and name.endswith(".bias") and f"{name[:-4]}weight" in fitted and "head" not in name:
            values[name], report.made[name] = torch.zeros_like(fresh), "zero, as the source has none"
        if name not in values or ("linear" in name and values[name].shape != fresh.shape):  # another number of classes
            report.fresh.append(name)
            continue
        if values[name].shape != fresh.shape:
            mend = "only plain ViTs on 3 channels with an MLP of ratio 4 can be taken over"
            if is_adapter(name):
                mend = "set MODEL.ADAPTER_WIDTH to that of the source"
            raise UserError(
                f"{source}: {name} has shape {tuple(values[name].shape)}, the model's has {tuple(fresh.shape)}; {mend}"
            )
        fitted[name] = values[name]
        if name not in report.made and name not in report.resized:
            report.loaded.append(name)
    unused = names.keys() - {roots.get(name) for name in fitted}
    _check_adapters(unused, source)
    report.left_out = sorted(key for key, name in _rename(state).items() if not name or _stacked(name) in unused)
    report.warnings = _warnings(report, model, names, state)
    model.load_state_dict(fitted, strict=False)
    return report


def _check(names: State, kind: str, model: ViT | LookupViT, state: State, source: str) -> None:
    """Raise ValueError where nothing good can come of these weights in this model."""
    kernel = names.get("tokenizer.projection.weight")
    if kernel is None or not any(name.startswith("blocks.0.") for name in names):
        raise UserError(
            f"{source}: no ViT of a known naming (timm, Hugging Face, CLIP, VideoMAE, ViViT, this project); "
            f"its keys are {', '.join(list(state)[:4])}, ..."
        )
    gated = [key for key in state if re.search(r"mlp\.(w12|w1|weights_in|gate_proj|fc1_g)\.", key)]
    if gated:
        raise UserError(f"{source}: {gated[0]} belongs to a gated MLP (SwiGLU), which the blocks here do not have")
    if kind == OWN_LOOKUPVIT and not isinstance(model, LookupViT):
        raise UserError(f"{source}: a LookupViT does not fit into a dense ViT; set MODEL.ARCH lookupvit")
    if kernel.shape[0] != (dim := model.tokenizer.projection.out_channels):
        raise UserError(
            f"{source}: its width is {kernel.shape[0]}, the model's {dim}; "
            f"set MODEL.VARIANT to that of the weights, or MODEL.DIM {kernel.shape[0]}"
        )


def _check_adapters(unused: Iterable[str], source: str) -> None:
    """Raise ValueError where the source was trained with additions that the model has no place for."""
    lost = sorted(filter(is_adapter, unused))
    if lost:
        mend = "set MODEL.ADAPTER adaptformer, and its width and scale as they were trained"
        if ".lora_" in lost[0]:
            mend = f"put them into the weights first: python tools/merge_lora.py {source} --out merged.pt"
        raise UserError(
            f"{source}: it has adapters ({lost[0]} and {len(lost) - 1} more) that this model has no place for, and "
            f"without them its weights are not what was trained; {mend}"
        )


# --- Names -----------------------------------------------------------------------------------------------------------

_WRAPPERS = re.compile(
    r"((module|_orig_mod|model|encoder|backbone|vit|deit|videomae|vivit|dinov2(_with_registers)?|dinov3_vit|visual|trunk"
    r"|vision_model|transformer)\.)*"
)
_IMAGE_TOWER = re.compile(r"(^|\.)(visual|vision_model)\.")  # a CLIP with its text tower has these for the images
_PRE_NORM = re.compile(r"norm_pre|ln_pre|pre_layrnorm")  # CLIP's, before the first block
_EXTRA = re.compile(r"(reg|dist|register|storage|distillation)_tokens?$")  # of DINO and DeiT
_BLOCK = re.compile(r"(?:blocks|layers?|resblocks)\.(\d+)\.(.+)")
_OUTSIDE = {  # pattern -> name; {} are the pattern's groups
    r"(?:embeddings\.)?patch_embed(?:dings?)?(?:\.proj(?:ection)?)?\.(\w+)": "tokenizer.projection.{}",
    r"conv1\.(weight)": "tokenizer.projection.{}",
    r"(?:embeddings\.)?(?:pos_embed|position_embeddings?|positional_embedding)(?:\.weight)?": "tokenizer.positions",
    r"(?:embeddings\.)?(?:cls_token|class_embedding)": "class_token",
    r"(?:norm|layernorm|fc_norm|ln_post|post_layernorm)\.(\w+)": "head.norm.{}",
    r"(?:head|classifier)\.(\w+)": "head.linear.{}",
}
_INSIDE = {
    r"(?:norm1|layernorm_before|layer_norm1|ln_1)\.(\w+)": "norm_attention.{}",
    r"attn\.(?:qkv\.|in_proj_)(weight|bias)": "attention.qkv.{}",
    r"(?:attn|attention|self_attn)\.(?:attention\.)?([qkv])(?:uery|ey|alue|_proj)?[._](weight|bias)": "attention.{}.{}",
    r"attn\.q_norm\.(\w+)": "attention.norm_query.{}",
    r"attn\.k_norm\.(\w+)": "attention.norm_key.{}",
    r"(?:attn|attention|self_attn)\.(?:proj|o_proj|out_proj|output\.dense)\.(\w+)": "attention.projection.{}",
    r"(?:ls1\.gamma|layer_scale1\.lambda1|gamma_1)": "scale_attention.gamma",
    r"(?:norm2|layernorm_after|layer_norm2|ln_2)\.(\w+)": "norm_mlp.{}",
    r"(?:mlp\.fc1|mlp\.c_fc|mlp\.up_proj|intermediate\.dense)\.(\w+)": "mlp.0.{}",
    r"(?:mlp\.fc2|mlp\.c_proj|mlp\.down_proj|output\.dense)\.(\w+)": "mlp.2.{}",
    r"(?:ls2\.gamma|layer_scale2\.lambda1|gamma_2)": "scale_mlp.gamma",
}


def _vit_name(key: str) -> str:
    """Return this project's name for another's key, with q, k and v as yet apart; "" for one that has none here."""
    key = _WRAPPERS.sub("", key, count=1)
    block = _BLOCK.fullmatch(key)
    for pattern, name in (_INSIDE if block else _OUTSIDE).items():
        if match := re.fullmatch(pattern, block[2] if block else key):
            return (f"blocks.{block[1]}." if block else "") + name.format(*match.groups())
    return ""


def _stacked(name: str) -> str:
    return re.sub(r"attention\.[qkv]\.", "attention.qkv.", name)


def _rename(state: State) -> dict[str, str]:
    """Return this project's name, or "", for each key."""
    own = {key: re.sub(r"^((module|_orig_mod)\.)+", "", key) for key in state}
    if "tokenizer.projection.weight" in own.values():
        return own
    towers = [key for key in state if _IMAGE_TOWER.search(key)]
    names = dict.fromkeys(state, "") | {key: _vit_name(key) for key in towers or state}
    first = {name: key for key, name in reversed(names.items())}  # of two keys for one name, the first counts
    return {key: name if first[name] == key else "" for key, name in names.items()}


def to_vit_names(state: State) -> tuple[State, str, list[str]]:
    """Rename a flat state dict to the names of this project's dense ViT (its own LookupViT keeps its names).

    Queries, keys and values become one ``qkv``; a bias that only some of them have is 0 for the others. Positions
    become (1, n, D) without the rows of class and other extra tokens; the class token's row is added to it.

    Returns:
        the renamed tensors in float32, whose weights they are, and the keys that have no name here.
    """
    renamed = _rename(state)
    names = {name: state[key].float() for key, name in renamed.items() if name}
    left_out = [key for key, name in renamed.items() if not name]
    kind = _kind(state, names, " ".join(left_out))
    if kind in (OWN_VIT, OWN_LOOKUPVIT):
        return names, kind, left_out
    _stack_qkv(names)
    if token := "class_token" in names:
        names["class_token"] = names["class_token"].reshape(1, 1, -1)
    if "tokenizer.positions" in names:
        positions = names["tokenizer.positions"]
        positions = positions.reshape(1, -1, positions.shape[-1])
        others = sum(state[key].shape[1] for key in left_out if _EXTRA.search(key))
        extra = _extra_rows(positions.shape[1], token, others, kind in VIDEO)
        names["tokenizer.positions"] = positions[:, extra:]
        if token and extra:
            names["class_token"] = names["class_token"] + positions[:, :1]
    return names, kind, left_out


def _kind(state: State, names: State, left_out: str) -> str:
    """Tell whose weights these are; queries, keys and values must not be stacked yet."""
    if any(key.endswith("tokenizer.projection.weight") for key in state):
        return OWN_LOOKUPVIT if "blocks.0.cross_attention.query.weight" in names else OWN_VIT
    kernel = names.get("tokenizer.projection.weight")
    if kernel is not None and kernel.dim() == 5:
        if "class_token" in names:
            return VIDEO[0]
        # VideoMAE's keys have no bias (and its positions are in no file).
        biased = {"blocks.0.attention.k.bias", "blocks.0.attention.qkv.bias"} & names.keys()
        return VIDEO[1] if biased else VIDEO[2]
    if _PRE_NORM.search(left_out):
        return "CLIP"
    if "head.probe" in left_out:
        return "SigLIP"
    if "tokenizer.positions" not in names:
        return "ViT without positions (as DINOv3)"
    return "ViT with layer scale (as DINOv2)" if "blocks.0.scale_mlp.gamma" in names else "ViT"


def _stack_qkv(names: State) -> None:
    """Put q, k and v of each block into one qkv, in place; VideoMAE has q and v biases beside a whole qkv weight."""
    blocks = {name.split("attention.")[0] for name in names if re.search(r"attention\.[qkv]\.", name)}
    for block in blocks:
        for kind in ("weight", "bias"):
            parts = [names.pop(f"{block}attention.{letter}.{kind}", None) for letter in "qkv"]
            given = next((part for part in parts if part is not None), None)
            if given is not None:
                stacked = torch.cat([torch.zeros_like(given) if part is None else part for part in parts])
                names[f"{block}attention.qkv.{kind}"] = stacked


def _extra_rows(n: int, class_token: bool, others: int, video: bool) -> int:
    """Return how many of n positions, the first ones, are of tokens without a place.

    Args:
        others: how many register and distillation tokens there are; in some models they have positions, in some not
            even the class token has one. In an image's table, what leaves a square is right.
    """
    expected = int(class_token)
    counts = (expected, 0, expected + others)
    squares = [extra for extra in counts if extra < n and math.isqrt(n - extra) ** 2 == n - extra]
    return squares[0] if squares and not video else expected


# --- From a dense ViT's tensors to the model's -----------------------------------------------------------------------

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


def _spread(names: State, own: State) -> tuple[State, dict[str, str], dict[str, str]]:
    """Place the tensors of a dense ViT wherever the model has a place for them (our LookupViT's keep their places).

    Returns:
        the placed tensors; the name in ``names`` that each is from; how those were made that are no plain copies.
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
    """Yield where a dense ViT's tensor goes in a LookupViT: names, values, and how those were made that are no copies.

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


# --- Kernels and positions -------------------------------------------------------------------------------------------


def _times(grid: Sequence[int]) -> str:
    return "x".join(map(str, grid))


def _fit_tokenizer(
    values: State, tokenizer: TubeletTokenizer, own_grid: Grid | None, inflate: str, report: Report
) -> None:
    """Bring the kernel to the model's tubelet and positions to its grid, in ``values``, and report it."""
    name, tubelet = "tokenizer.projection.weight", tokenizer.projection.kernel_size
    source = tuple(values[name].shape[2:])
    image = source[:-2] in ((), (1,))  # ours may be images' too: tubelets of one frame
    values[name] = fit_kernel(values[name], tubelet, inflate)
    inflated = f"inflated: {inflate}" if image and tubelet[0] > 1 else ""
    if source[-2:] != tubelet[1:] or (not image and source[0] != tubelet[0]):
        report.resized[name] = ", ".join(filter(None, (f"{_times(source)} -> {_times(tubelet)}", inflated)))
    elif inflated:
        report.made[name] = inflated

    name, grid = "tokenizer.positions", tokenizer.grid
    if name in values:
        n = values[name].shape[1]
        known = own_grid if own_grid and math.prod(own_grid) == n else _source_grid(n, source, grid)
        _fit_positions(values, name, known, grid, report)
    elif report.kind == "VideoMAE":
        values[name] = videomae_positions(math.prod(grid), tokenizer.projection.out_channels)
        report.made[name] = "VideoMAE's fixed sines and cosines"
    name = "temporal.positions"
    if name in values:
        _fit_positions(values, name, (values[name].shape[1], 1, 1), (grid[0], 1, 1), report)


def _fit_positions(values: State, name: str, grid_in: Grid, grid_out: Grid, report: Report) -> None:
    if grid_in != grid_out:
        values[name] = GridResize(grid_in, grid_out)(values[name])  # from t = 1 it repeats them over time, as ViViT
        report.resized[name] = f"{_times(grid_in)} -> {_times(grid_out)}"


def fit_kernel(kernel: Tensor, tubelet: Sequence[int], inflate: str) -> Tensor:
    """Turn a patch kernel (D, C, p, p) or a tubelet kernel (D, C, t, p, p) into (D, C, *tubelet).

    Where the sides differ it is FlexiViT's resize (arXiv 2212.08013, section 3.4): as far as possible, the kernel gives
    for a resized patch what it gave for the patch.
    """
    if kernel.dim() == 4:
        kernel = kernel[:, :, None]
    for axis, n_out in enumerate(tubelet, start=2):
        n_in = kernel.shape[axis]
        if n_in != n_out and not (axis == 2 and n_in == 1):
            resize = torch.linalg.pinv(interpolation_matrix(n_in, n_out, antialias=True).T).float()
            kernel = torch.tensordot(kernel, resize, dims=([axis], [1])).movedim(-1, axis)
    if (t := tubelet[0]) > 1 and kernel.shape[2] == 1:
        weights = torch.full((t,), 1 / t) if inflate == "average" else torch.eye(t)[t // 2]
        kernel = kernel * weights[:, None, None]
    return kernel


def _source_grid(n: int, kernel: Sequence[int], grid: Grid) -> Grid:
    """Infer the grid of n positions, which the file does not tell.

    An image's is square. A video's is the model's where that has n tokens, else that of 224 pixels, the size of most
    published models, else that of the model's own height and width.
    """
    if len(kernel) == 2:
        if (side := math.isqrt(n)) ** 2 == n:
            return (1, side, side)
    elif math.prod(grid) == n:
        return grid
    else:
        for side in (224 // kernel[-1], grid[1]):
            if side and n % side**2 == 0:
                return (n // side**2, side, side)
    raise UserError(f"the source has {n} positions for kernels of {_times(kernel)}: their grid cannot be told")


def videomae_positions(n: int, dim: int) -> Tensor:
    """Return VideoMAE's fixed table (1, n, D): sines and cosines of the token's number in t, h, w order."""
    angles = torch.arange(n).double()[:, None] / 10000 ** (torch.arange(dim).double() // 2 * 2 / dim)
    even = torch.arange(dim) % 2 == 0
    return torch.where(even, angles.sin(), angles.cos()).float()[None]


# --- What the files cannot tell --------------------------------------------------------------------------------------

_ACTIVATIONS = {"CLIP": "quick_gelu", "SigLIP": "gelu_tanh", "ViViT": "gelu_tanh"}  # else gelu
_PIXELS = {  # else ImageNet's
    "CLIP": "DATA.MEAN [0.4815,0.4578,0.4082] DATA.STD [0.2686,0.2613,0.2758]",
    "SigLIP": "DATA.MEAN [0.5,0.5,0.5] DATA.STD [0.5,0.5,0.5]",
    "ViViT": "DATA.MEAN [0.5,0.5,0.5] DATA.STD [0.5,0.5,0.5]",
}


def _warnings(report: Report, model: ViT | LookupViT, names: State, state: State) -> list[str]:
    """Return what makes the model compute something else than the source did, as far as it can be seen."""
    out: list[str] = []

    def note(holds: object, text: str) -> None:
        if holds:
            out.append(text)

    kind, fresh, left = report.kind, " ".join(report.fresh), " ".join(report.left_out)
    block = model.blocks[0].refine if isinstance(model, LookupViT) else model.blocks[0]
    assert isinstance(block, TransformerBlock)
    classifier = any("linear.weight" in name for name in report.loaded)
    note(classifier, "the classifier was loaded: DATA.CLASS_LIST must have the source's classes in its order")
    if kind not in (OWN_VIT, OWN_LOOKUPVIT):
        activation, eps = _ACTIVATIONS.get(kind, "gelu"), 1e-5 if kind == "CLIP" else 1e-6
        same = repr(block.mlp[1]) == repr(ACTIVATIONS[activation]())
        note(not same, f"{kind} is mostly trained with MODEL.ACTIVATION {activation}")
        note(max(block.norm_mlp.eps, 1e-6) != eps, f"{kind} is mostly trained with MODEL.NORM_EPS {eps}")
        note(kind in _PIXELS, f"{kind} is mostly trained on pixels as {_PIXELS.get(kind)} makes them")
        width = block.norm_mlp.normalized_shape[0] // block.attention.num_heads
        note(width != 64, f"heads are {width} wide here, and 64 in most published models: see MODEL.NUM_HEADS")
        means = any("fc_norm" in key for key in state)
        pool = "average_norm" if means else "class" if "class_token" in names else "average"
        wrong = classifier and isinstance(model, ViT) and model.head.pool != pool
        note(wrong, f"the classifier was trained with MODEL.POOL {pool}")
    depth = len({name.split(".")[1] for name in names if name.startswith("blocks.")})
    note(depth != len(model.blocks), f"the source has {depth} blocks, the model {len(model.blocks)}")
    lost = [key for key in report.left_out if _PRE_NORM.search(key) or _EXTRA.search(key)]
    note(lost, f"outputs differ from the source's, as these were left out: {', '.join(lost)}")
    note("tokenizer.positions" in fresh, "the source has no table of positions: the model's sines and cosines stay")
    side = 224 // model.tokenizer.projection.kernel_size[-1]
    other = "tokenizer.positions" in report.made and model.tokenizer.grid[1] != side
    note(other, f"positions number the tokens as VideoMAE does; its published weights know them {side}x{side} per time")
    note("scale_attention" in fresh, "the source has no layer scale, the model's is fresh: set MODEL.LAYER_SCALE 0.0")
    note("norm_key" in fresh, "the source does not normalise queries and keys: set MODEL.QK_NORM False")
    note(re.search("k_norm|norm_key", left), "the source normalises queries and keys: set MODEL.QK_NORM True")
    return out


# --- Files -----------------------------------------------------------------------------------------------------------

_NESTS = ("model", "module", "state_dict", "model_state")
_FILES = ("model.safetensors", "pytorch_model.bin")
_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")


def read_state(source: str) -> State:
    """Read a flat dict of tensors onto the CPU; nothing in the file is executed.

    Args:
        source: a .safetensors, .pth, .pt or .bin file, a folder with model.safetensors or pytorch_model.bin, or, where
            no such path exists, a model id ("org/name") of the Hugging Face Hub, which is then downloaded.

    Raises:
        UserError: there is no such source, or it cannot be read, or holds no tensors.
    """
    return _flat(_read(source), source)


def load_safetensors(path: Path) -> dict[str, Tensor]:
    """Read a .safetensors file; its own reader opens no path that is not UTF-8."""
    return load_file(path) if is_utf8(str(path)) else load(path.read_bytes())


def _read(source: str) -> Any:
    path = _local(source)
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


def _local(source: str) -> Path:
    if is_remote(source):
        return local_copy(source)
    path = Path(source).expanduser()
    if path.is_file():
        return path
    if path.is_dir():
        if file := next((path / name for name in _FILES if (path / name).is_file()), None):
            return file
        raise UserError(f"{source}: neither {' nor '.join(_FILES)} is in this folder")
    if path.suffix in _SUFFIXES or not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", source):
        raise UserError(
            f"{source}: no such file; MODEL.INIT_FROM is a file, a folder or a Hugging Face model id (org/name)"
        )
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


def _flat(content: Any, source: str) -> State:
    while isinstance(content, dict) and (nest := next((n for n in _NESTS if isinstance(content.get(n), dict)), None)):
        content = content[nest]
    items = content.items() if isinstance(content, dict) else ()
    state = {str(key): value for key, value in items if isinstance(value, Tensor)}
    if not state:
        raise UserError(f"{source}: there are no tensors by name in it")
    return state


def _own_grid(content: Any) -> Grid | None:
    """Return the grid of tokens that a checkpoint of this project tells; None for others' files."""
    if not (isinstance(content, dict) and str(content.get("format", "")).startswith("lookupvit_video/")):
        return None
    return token_grid(CfgNode.load_cfg(content["config"]))
