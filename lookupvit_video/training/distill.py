"""Distillation: learning from the outputs, and the tokens, of a trained model.

Soft targets: Hinton et al., arXiv 1503.02531. Tokens after every block: SiT, arXiv 2111.12624, without its module that
restores dropped tokens, since lookup tokens are all there.

Shape letters: B batch, G groups of tokens, N M tokens, n those that a block works on, D width, K classes.
"""

import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from fvcore.common.config import CfgNode
from torch import Tensor
from torch.nn import functional as F

from lookupvit_video.checkpoints.checkpoint import load_checkpoint, load_weights
from lookupvit_video.config import Section, get_defaults, parse_yaml, validate, with_settings
from lookupvit_video.errors import UserError
from lookupvit_video.models.build import ModelSpec, build_model, model_spec
from lookupvit_video.models.contract import Features, VideoModel
from lookupvit_video.models.pretrained import init_from
from lookupvit_video.models.pretrained.files import flat, own_grid, read_content
from lookupvit_video.models.pretrained.report import State
from lookupvit_video.models.pretrained.settings import settings_of
from lookupvit_video.models.tokenizer import Grid, GridResize
from lookupvit_video.registry import models_with

logger = logging.getLogger(__name__)


class Answer(NamedTuple):
    """The teacher's output for a batch."""

    logits: Tensor | None
    """(B, K); None: the teacher does not know these classes."""
    tokens: Tensor | None
    """(B, N, D) on ``grid``, where features are distilled."""
    grid: Grid | None
    by_block: Sequence[Tensor] = ()
    """(G, N, D) after each block, G = B or, factorized, B t, where the blocks' tokens are distilled."""


class Teacher:
    """A frozen model that sees the student's own clips; made by ``load_teacher``.

    Args:
        with_tokens: its tokens after the last block are a target.
        pixels: (scale, shift) of each channel (1, C, 1, 1, 1), which make of the student's normalized clips the
            teacher's; given for a teacher that has tokens only.
        by_block: its tokens after each block are a target; only of a dense ViT.
    """

    def __init__(
        self,
        model: VideoModel,
        with_tokens: bool,
        pixels: tuple[Tensor, Tensor] | None = None,
        by_block: bool = False,
    ):
        self.model, self.with_tokens, self.pixels, self.by_block = model, with_tokens, pixels, by_block

    @torch.no_grad()
    def answer(self, clips_BCTHW: Tensor) -> Answer:
        """Return the teacher's logits, and its tokens where they are a target."""
        if self.pixels is not None:
            scale, shift = self.pixels
            clips_BCTHW = clips_BCTHW * scale + shift
        elif not self.with_tokens and not self.by_block:
            return Answer(self.model(clips_BCTHW), None, None)
        options = {"by_block": True} if self.by_block else {}
        features = self.model.forward_features(clips_BCTHW, **options)
        logits_BK = self.model.forward_head(features) if self.pixels is None else None
        assert not isinstance(logits_BK, tuple)
        tokens, grid = (features.tokens, features.grid) if self.with_tokens else (None, None)
        return Answer(logits_BK, tokens, grid, [of_block for of_block, _ in features.by_block])


def load_teacher(cfg: CfgNode, classes: list[str], device: torch.device) -> Teacher:
    """Load the checkpoint of DISTILL.TEACHER; its classes, pixels and clip shape must be the student's.

    Other people's weights teach by their tokens alone, as a dense ViT with the settings of their family.

    Raises:
        UserError: names what differs.
    """
    source, DISTILL = cfg.DISTILL.TEACHER, cfg.DISTILL
    grids = cfg.MODEL.COMPRESSED_GRIDS or [cfg.MODEL.COMPRESSED_GRID]
    check = partial(_check_tokens, own=model_spec(cfg), DISTILL=DISTILL, grids=grids)
    content, pixels = read_content(source, "DISTILL.TEACHER"), None
    if own_grid(content) is None:
        if DISTILL.WEIGHT or not (DISTILL.FEATURE_WEIGHT or DISTILL.BLOCK_WEIGHT):
            raise UserError(
                f"DISTILL.TEACHER {source}: these weights do not know the classes; set DISTILL.WEIGHT 0 and "
                "DISTILL.FEATURE_WEIGHT or BLOCK_WEIGHT above 0 to learn from their tokens, or give a checkpoint of "
                "this project"
            )
        model, pixels = _load_others(source, flat(content, source), cfg.DATA, check, device)
    else:
        checkpoint = load_checkpoint(source)
        theirs = checkpoint.config
        if checkpoint.classes != classes:
            raise UserError(f"DISTILL.TEACHER {checkpoint.path}: its classes are not those of the data")
        for key in ("NUM_FRAMES", "TRAIN_CROP_SIZE", "MEAN", "STD"):
            if theirs.DATA[key] != cfg.DATA[key]:
                raise UserError(
                    f"DISTILL.TEACHER {checkpoint.path}: its DATA.{key} is {theirs.DATA[key]}, the student's "
                    f"{cfg.DATA[key]}; both see the same clips, so set both alike"
                )
        check(model_spec(theirs))
        model = build_model(theirs)
        load_weights(model, checkpoint)
    model = model.to(device).eval().requires_grad_(False)
    return Teacher(model, DISTILL.FEATURE_WEIGHT > 0, pixels, DISTILL.BLOCK_WEIGHT > 0)


def _load_others(
    source: str, state: State, DATA: Section, check: Callable[[ModelSpec], None], device: torch.device
) -> tuple[VideoModel, tuple[Tensor, Tensor]]:
    """Return other people's weights as a model for clips as of ``DATA``, and the pixels that ``Teacher`` wants."""
    kind, settings = settings_of(state, source)
    values = {key: parse_yaml(value, source) for key, value in settings.items()}
    parts = [DATA.MEAN, DATA.STD, values["DATA.MEAN"], values["DATA.STD"]]
    frames = {key: DATA[key] for key in ("NUM_FRAMES", "TRAIN_CROP_SIZE", "TEST_CROP_SIZE")}
    student = {
        "MODEL.ARCH": "vit",
        "MODEL.TEMPORAL_DEPTH": 1,
        **{f"DATA.{key}": value for key, value in frames.items()},
    }
    theirs = with_settings(get_defaults(), values | student)
    validate(theirs)
    check(model_spec(theirs))
    model = build_model(theirs)
    logger.info("teacher: %s", init_from(model, source))
    mean, std, mean_theirs, std_theirs = (torch.tensor(part, device=device).view(1, -1, 1, 1, 1) for part in parts)
    logger.info("teacher: %s on clips of %s frames and %s pixels", kind, *list(frames.values())[:2])
    return model, (std / std_theirs, (mean - mean_theirs) / std_theirs)


def _check_tokens(theirs: ModelSpec, own: ModelSpec, DISTILL: Section, grids: Sequence[Sequence[int]]) -> None:
    """Raise UserError unless a teacher has the tokens that a student with these compressed grids shall learn from."""
    wanted = [name for name in ("FEATURE_WEIGHT", "BLOCK_WEIGHT") if DISTILL[name]]
    if not wanted:
        return
    if not theirs.entry.tubelets or theirs.arguments.get("tokens", "all") != "all":
        archs = " or ".join(models_with("tubelets"))
        raise UserError(f"DISTILL.{wanted[0]}: the teacher must keep all its tokens (MODEL.ARCH {archs})")
    dim, own_dim = theirs.arguments["dim"], own.arguments["dim"]
    if dim != own_dim:
        raise UserError(f"DISTILL.{wanted[0]}: the teacher's width is {dim}, the student's {own_dim}; set both alike")
    if DISTILL.FEATURE_WEIGHT:
        _check_grids(theirs, own, grids)
    if DISTILL.BLOCK_WEIGHT:
        _check_blocks(theirs, own)


def _check_blocks(theirs: ModelSpec, own: ModelSpec) -> None:
    """Raise UserError unless each lookup token of a student has its like after each block of the teacher."""
    if theirs.arch != "vit":
        raise UserError(f"DISTILL.BLOCK_WEIGHT: the teacher must be a dense ViT, it is MODEL.ARCH {theirs.arch}")
    depth, own_depth = theirs.arguments["depth"], own.arguments["depth"]
    if depth != own_depth:
        raise UserError(
            f"DISTILL.BLOCK_WEIGHT: the teacher has {depth} blocks, the student {own_depth}; set MODEL.DEPTH alike"
        )
    if theirs.token_grid != own.token_grid:
        raise UserError(
            f"DISTILL.BLOCK_WEIGHT: the teacher's token grid is {theirs.token_grid}, the student's {own.token_grid}; "
            "set MODEL.TUBELET alike"
        )


def _check_grids(theirs: ModelSpec, own: ModelSpec, grids: Sequence[Sequence[int]]) -> None:
    """Raise UserError unless the teacher's tokens can be resized to each compressed grid."""
    for grid in ((own.token_grid[0], *grid)[-3:] for grid in grids):  # factorised: a grid has no t
        if any(n > n_theirs for n, n_theirs in zip(grid, theirs.token_grid, strict=True)):
            raise UserError(
                f"DISTILL.FEATURE_WEIGHT: the teacher's token grid {theirs.token_grid} is smaller than {grid}"
            )


def distill(
    loss: Tensor,
    logits: Sequence[Tensor],
    features: Features | None,
    answer: Answer,
    valid_B: Tensor,
    *,
    weight: float,
    temperature: float,
    feature_weight: float,
    block_weight: float = 0.0,
    multi_label: bool = False,
    head_weights: Sequence[float] | None = None,
) -> Tensor:
    """Mix the loss on labels with the distance from the teacher's answer.

    (1 - weight) loss + weight T^2 KL(teacher || student), averaged over heads, + feature_weight times the mean squared
    difference between the compressed tokens and the teacher's, resized to their grid and both layer-normalized, +
    block_weight times that of the lookup tokens and the teacher's tokens after the same block, averaged over the blocks
    that were run and change lookup tokens, for the tokens that each worked on.

    Args:
        loss: on the labels.
        logits: per head (B, K).
        valid_B: see ``mean_over_clips``.
        weight, temperature, feature_weight, block_weight: see DISTILL.
        multi_label: the KL divergence of each class's sigmoid, averaged over the classes.
        head_weights: ``VideoModel.output_weights``.
    """
    of_head, total = _binary_divergence if multi_label else _divergence, loss
    if answer.logits is not None:
        teacher_BK = answer.logits.float() / temperature
        per_clip_B = mean_over_heads([of_head(teacher_BK, head.float() / temperature) for head in logits], head_weights)
        total = (1 - weight) * loss + weight * temperature**2 * mean_over_clips(per_clip_B, valid_B)
    if features is not None and answer.tokens is not None and answer.grid is not None:
        assert features.compressed is not None
        assert features.compressed_grid is not None
        target_BMD = GridResize(answer.grid, features.compressed_grid).to(answer.tokens.device)(answer.tokens.float())
        total = total + feature_weight * mean_over_clips(_distance(features.compressed, target_BMD), valid_B)
    if features is not None and features.by_block and answer.by_block:
        pairs = zip(features.by_block, answer.by_block, strict=False)  # an early exit runs fewer blocks
        per_group = [_distance(own, _kept(theirs, own, kept)) for (own, kept), theirs in pairs]
        per_clip_B = torch.stack([error_G.view(len(valid_B), -1).mean(1) for error_G in per_group]).mean(0)
        total = total + block_weight * mean_over_clips(per_clip_B, valid_B)
    return total


def _distance(own_GnD: Tensor, theirs_GnD: Tensor) -> Tensor:
    """Return the mean squared difference (G,) of tokens, each layer-normalized."""
    dim = own_GnD.shape[-1:]
    error_GnD = F.layer_norm(own_GnD.float(), dim) - F.layer_norm(theirs_GnD.float(), dim)
    return error_GnD.square().mean((1, 2))


def _kept(theirs: Tensor, own_GnD: Tensor, kept_Gn: Tensor | None) -> Tensor:
    """Return those of the teacher's tokens that are the student's (G, n, D), whatever groups its own blocks see."""
    theirs_GND = theirs.reshape(len(own_GnD), -1, theirs.shape[-1])
    return theirs_GND if kept_Gn is None else theirs_GND.gather(1, kept_Gn[..., None].expand_as(own_GnD))


def _divergence(teacher_BK: Tensor, student_BK: Tensor) -> Tensor:
    """KL(teacher || student) (B,) of the softmax of logits."""
    return F.kl_div(student_BK.log_softmax(-1), teacher_BK.softmax(-1), reduction="none").sum(-1)


def _binary_divergence(teacher_BK: Tensor, student_BK: Tensor) -> Tensor:
    """The same (B,) of the sigmoids, averaged over the classes."""
    both = [
        F.kl_div(F.logsigmoid(sign * student_BK), (sign * teacher_BK).sigmoid(), reduction="none") for sign in (1, -1)
    ]
    return (both[0] + both[1]).mean(-1)


def mean_over_heads(per_head: Sequence[Tensor], weights: Sequence[float] | None) -> Tensor:
    """Return the mean (B,) of a loss (B,) of each head.

    Args:
        weights: of the heads; they sum to 1. None: all the same.
    """
    losses_hB = torch.stack(list(per_head))
    return losses_hB.mean(0) if weights is None else losses_hB.new_tensor(weights) @ losses_hB


def mean_over_clips(per_clip_B: Tensor, valid_B: Tensor) -> Tensor:
    """Return the mean over all clips, of which those that are not valid (bool) count as 0.

    Not the mean over the valid ones: a clip must weigh the same in every process and accumulation part.
    """
    return (per_clip_B * valid_B).mean()
