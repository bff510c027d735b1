"""Load the weights of a source into a ViT or LookupViT, and report what happened to them."""

import re
from collections.abc import Iterable, Sequence

import torch
from torch import nn

from lookupvit_video.errors import UserError
from lookupvit_video.models.adapters import is_adapter
from lookupvit_video.models.blocks import ACTIVATIONS, TransformerBlock
from lookupvit_video.models.lookupvit import LookupViT
from lookupvit_video.models.pretrained.families import EXTRA, FAMILIES, OWN_LOOKUPVIT, OWN_VIT, Family
from lookupvit_video.models.pretrained.files import flat, own_grid, read_content
from lookupvit_video.models.pretrained.fitting import fit_tokenizer, image_size
from lookupvit_video.models.pretrained.names import rename, stacked, to_vit_names
from lookupvit_video.models.pretrained.places import fit_first_tokens, spread
from lookupvit_video.models.pretrained.report import Report, State
from lookupvit_video.models.vit import ViT

INFLATIONS = ("central", "average")
_OTHER_LAYOUTS = {
    r"(^|\.)(stages\.\d|blocks\.\d+\.proj\.weight)": "Hiera or another network that halves its grid on the way",
    r"patch_embed\.norm_before\.": "InternVideo-Next, with RMS norms that the blocks here do not have",
}
_PRE_NORM = re.compile(r"norm_pre|ln_pre|pre_layrnorm")


Pixels = tuple[Sequence[float], Sequence[float]]
"""Mean and deviation of each channel."""


def init_from(model: nn.Module, source: str, *, inflate: str = "central", pixels: Pixels | None = None) -> Report:
    """Load the weights of a source into a ViT or LookupViT, as far as they fit; the rest keeps its initialization.

    Args:
        source: a file, a folder or a model id of the Hugging Face Hub, see ``read_state``.
        inflate: how an image model's kernel fills a tubelet of t frames (ViViT, arXiv 2103.15691, section
            3.4): "central" puts it on frame t // 2 and zeros on the others, "average" puts 1 / t of it on each.
        pixels: how clips are normalized; None: as the source's were.

    Raises:
        UserError: the source cannot be read, is not a ViT, or its width or shapes are not the model's.
    """
    if inflate not in INFLATIONS:
        raise UserError(f"MODEL.INIT_INFLATE {inflate!r}: choose {' or '.join(INFLATIONS)}")
    if not isinstance(model, (ViT, LookupViT)):
        raise UserError(f"MODEL.INIT_FROM is for MODEL.ARCH vit or lookupvit, not for a {type(model).__name__}")
    content = read_content(source)
    state, own = flat(content, source), model.state_dict()
    names, kind, _ = to_vit_names(state)
    _check_fits(names, kind, model, state, source)
    report = Report(kind)
    first = fit_first_tokens(names, own, source)
    values, roots, report.made = spread(names, own)
    report.made |= first
    fit_tokenizer(values, model.tokenizer, own_grid(content), inflate, bool(model.options.rotary), report)

    fitted: State = {}
    for name, fresh in own.items():
        if name not in values and name.endswith(".bias") and f"{name[:-4]}weight" in fitted and "head" not in name:
            values[name], report.made[name] = torch.zeros_like(fresh), "zero, as the source has none"
        if name not in values or ("linear" in name and values[name].shape != fresh.shape):  # another number of classes
            report.fresh.append(name)
            continue
        if values[name].shape != fresh.shape:
            fix = "only plain ViTs on 3 channels with an MLP of ratio 4 can be loaded"
            if is_adapter(name):
                fix = "set MODEL.ADAPTER_WIDTH to that of the source"
            raise UserError(
                f"{source}: {name} has shape {tuple(values[name].shape)}, the model's has {tuple(fresh.shape)}; {fix}"
            )
        fitted[name] = values[name]
        if name not in report.made and name not in report.resized:
            report.loaded.append(name)
    unused = names.keys() - {roots.get(name) for name in fitted}
    _check_adapters(unused, source)
    report.left_out = sorted(key for key, name in rename(state).items() if not name or stacked(name) in unused)
    report.warnings = [*advice(report, model, names, state), *_of_pixels(report, names, pixels)]
    model.load_state_dict(fitted, strict=False)
    return report


def _check_fits(names: State, kind: str, model: ViT | LookupViT, state: State, source: str) -> None:
    """Raise UserError where these weights cannot work in this model."""
    for pattern, reason in _OTHER_LAYOUTS.items():
        if found := next((key for key in state if re.search(pattern, key)), ""):
            raise UserError(f"{source}: {found} is of {reason}; it does not fit into a ViT or LookupViT")
    kernel = names.get("tokenizer.projection.weight")
    if kernel is None or not any(name.startswith("blocks.0.") for name in names):
        raise UserError(
            f"{source}: not a ViT with known parameter names (timm, Hugging Face, CLIP, VideoMAE, ViViT, this "
            f"project); its keys are {', '.join(list(state)[:4])}, ..."
        )
    given, wanted = (
        "convolutional" if has else "linear"
        for has in (any(name.startswith("tokenizer.stem.") for name in names), model.tokenizer.stem is not None)
    )
    if given != wanted:
        raise UserError(f"{source}: its tokenizer is {given}, the model's {wanted}; set MODEL.TOKENIZER {given}")
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
    """Raise UserError where the source was trained with adapters that the model does not have."""
    lost = sorted(filter(is_adapter, unused))
    if lost:
        kind = "connector" if lost[0].startswith("temporal.adapter.") else "adaptformer"
        if re.match(r"(temporal\.)?blocks\.\d+\.(refine\.)?adapter\.", lost[0]):
            kind = "adaptformer_code"
        fix = f"set MODEL.ADAPTER {kind}, and its width and scale as they were trained"
        if ".lora_" in lost[0]:
            fix = f"put them into the weights first: lookupvit merge-lora {source} --out merged.pt"
        raise UserError(
            f"{source}: it has adapters ({lost[0]} and {len(lost) - 1} more) that this model does not have, and "
            f"without them its weights are incomplete; {fix}"
        )


def _of_pixels(report: Report, names: State, pixels: Pixels | None) -> list[str]:
    """Set ``report.preprocessing`` for others' weights; return a warning where pixels are normalized otherwise."""
    if report.kind in (OWN_VIT, OWN_LOOKUPVIT):
        return []
    family = FAMILIES.get(report.kind, Family())
    report.preprocessing = wanted = family.preprocessing(image_size(names))
    pairs = zip((*family.pixels[0], *family.pixels[1]), (*pixels[0], *pixels[1]) if pixels else (), strict=False)
    wrong = any(abs(theirs - ours) > 1e-3 for theirs, ours in pairs)
    return [f"clips are normalized otherwise than those of {report.kind}: set {wanted}"] if wrong else []


def advice(report: Report, model: ViT | LookupViT, names: State, state: State) -> list[str]:
    """Return why the model computes something else than the source, as far as the weights show it."""
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
        family = FAMILIES.get(kind, Family())
        same = repr(block.mlp[1]) == repr(ACTIVATIONS[family.activation]())
        note(not same, f"{kind} is mostly trained with MODEL.ACTIVATION {family.activation}")
        same = max(block.norm_mlp.eps, 1e-6) == family.norm_eps
        note(not same, f"{kind} is mostly trained with MODEL.NORM_EPS {family.norm_eps}")
        rotary = model.options.rotary
        turned = f"set MODEL.POSITIONS rotary MODEL.ROTARY {family.rotary}"
        note(family.rotary and rotary != family.rotary, f"{kind} turns queries and keys by their place: {turned}")
        note(kind == "video ViT" and not rotary, "V-JEPA 2 has such names and a table that it does not read: for it, "
             "set MODEL.POSITIONS rotary MODEL.ROTARY vjepa2")  # fmt: skip
        note(rotary and not family.rotary and kind != "video ViT", f"{kind} has learned positions alone: set "
             "MODEL.POSITIONS learned")  # fmt: skip
        width = block.norm_mlp.normalized_shape[0] // block.attention.num_heads
        note(width != 64, f"heads are {width} wide here, and 64 in most published models: see MODEL.NUM_HEADS")
        means = any("fc_norm" in key for key in state)
        pool = "average_norm" if means else "class" if "class_token" in names else "average"
        wrong = classifier and isinstance(model, ViT) and model.head.pool != pool
        note(wrong, f"the classifier was trained with MODEL.POOL {pool}")
    depth = len({name.split(".")[1] for name in names if name.startswith("blocks.")})
    note(depth != len(model.blocks), f"the source has {depth} blocks, the model {len(model.blocks)}")
    lost = [key for key in report.left_out if _PRE_NORM.search(key) or EXTRA.search(key)]
    fixes = ["MODEL.PRE_NORM True"] if any(map(_PRE_NORM.search, lost)) else []
    if isinstance(model, ViT) and "registers" in names and model.registers is None:
        classes = int("class_token" in names and model.class_token is None)
        fixes.append(f"MODEL.REGISTERS {names['registers'].shape[1] + classes}")
    settings = f"; set {' '.join(fixes)}" if fixes else ""
    note(lost, f"outputs differ from the source's, as these were left out: {', '.join(lost)}{settings}")
    note("tokenizer.positions" in fresh, "the source has no table of positions: the model's sines and cosines stay")
    side = 224 // model.tokenizer.tubelet[-1]
    other = report.made.get("tokenizer.positions", "").startswith("VideoMAE") and model.tokenizer.grid[1] != side
    note(other, f"positions number the tokens as VideoMAE does, whose published weights have {side}x{side} per time")
    note("scale_attention" in fresh, "the source has no layer scale, the model's is fresh: set MODEL.LAYER_SCALE 0.0")
    note("norm_key" in fresh, "the source does not normalize queries and keys: set MODEL.QK_NORM False")
    note(re.search("k_norm|norm_key", left), "the source normalizes queries and keys: set MODEL.QK_NORM True")
    return out
