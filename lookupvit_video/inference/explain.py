"""Where a LookupViT looks in a clip, and what a model loses without the order of the frames.

Shape letters: B clips, C channels, T frames, H W pixels, t h w grid, N lookup tokens, M compressed tokens, K classes,
G groups of tokens that do not see each other: the t time indices of a factorized encoder, else 1.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lookupvit_video.data.manifest import Video
from lookupvit_video.distributed.world import World
from lookupvit_video.errors import UserError
from lookupvit_video.evaluation.evaluate import Results, eval_loader, evaluate
from lookupvit_video.evaluation.probes import ORDERS, reordered
from lookupvit_video.inference.predictor import Predictor
from lookupvit_video.models import kernels
from lookupvit_video.models.attention import head_mean, using_kernel
from lookupvit_video.models.budget import Budget
from lookupvit_video.models.kernels.rotary import rotate
from lookupvit_video.models.tokenizer import Grid
from lookupvit_video.text import grid_name

MAX_BLOCKS = 4  # of a sheet, from the first to the last


@dataclass(frozen=True)
class Attention:
    """Where the blocks of a LookupViT look in one clip; every row of every matrix sums to 1 over lookup tokens.

    Tokens are in t, h, w order of their grid.
    """

    gather: list[Tensor]
    """Per block (M, N): the gather weights of the compressed tokens, averaged over heads."""
    compressed_rollout: list[Tensor]
    """Per block (M, N): the share of each tubelet of the clip in each compressed token after the block."""
    lookup_rollout: Tensor
    """(N, N): the same for the lookup tokens, after the last block."""
    compressed_grid: Grid
    lookup_grid: Grid
    inference_heads: tuple[str, ...]
    """The token sets that the answer is read from: "compressed", "lookup" or both."""

    def gather_map(self, block: int = -1, token: Sequence[int] | None = None) -> Tensor:
        """Return where a block's compressed tokens look: (t, h, w), summing to 1.

        Args:
            block: 0 is the first, -1 the last.
            token: (t, h, w) of one compressed token; None: the mean of all.

        Raises:
            UserError: the token is outside the grid.
        """
        return self._map(self.gather[block], token, self.compressed_grid)

    def rollout_map(self, token: Sequence[int] | None = None, block: int = -1) -> Tensor:
        """Return the origin in the clip of compressed tokens' content: (t, h, w), summing to 1."""
        return self._map(self.compressed_rollout[block], token, self.compressed_grid)

    def lookup_map(self, token: Sequence[int] | None = None) -> Tensor:
        """Return the origin in the clip of lookup tokens' final content: (t, h, w), summing to 1."""
        return self._map(self.lookup_rollout, token, self.lookup_grid)

    def answer_map(self) -> Tensor:
        """Return the origin in the clip of the content of the tokens that the heads read: (t, h, w)."""
        maps = {"compressed": self.rollout_map, "lookup": self.lookup_map}
        return torch.stack([maps[name]() for name in self.inference_heads]).mean(0)

    def _map(self, shares: Tensor, token: Sequence[int] | None, grid: Grid) -> Tensor:
        if token is None:
            return shares.mean(0).view(self.lookup_grid)
        if len(token) != 3 or any(not 0 <= at < length for at, length in zip(token, grid, strict=True)):
            raise UserError(
                f"token {','.join(map(str, token))}: give t,h,w on the grid {grid_name(grid)}, counted from 0"
            )
        t, h, w = token
        return shares[(t * grid[1] + h) * grid[2] + w].view(self.lookup_grid)


def heat_maps(
    attention: Attention, tokens: Sequence[Sequence[int]] = (), lookups: Sequence[Sequence[int]] = ()
) -> list[tuple[str, Tensor]]:
    """Return the rows of a sheet (see ``draw.draw_prediction``): up to four blocks, the rollouts, some tokens.

    Args:
        tokens, lookups: (t, h, w) of compressed and of lookup tokens to follow.

    Raises:
        UserError: a token is outside its grid.
    """
    depth = len(attention.gather)
    count = min(depth, MAX_BLOCKS)
    blocks = sorted({round(i * (depth - 1) / max(count - 1, 1)) for i in range(count)})
    rows = [(f"block {block + 1} of {depth}: looked up", attention.gather_map(block)) for block in blocks]
    rows.append(("rolled out: what the compressed tokens hold", attention.rollout_map()))
    rows.append(("rolled out: what the lookup tokens hold", attention.lookup_map()))
    for place in tokens:
        name = f"compressed token {','.join(map(str, place))}"
        rows.append((f"{name}: looked up in block {depth}", attention.gather_map(-1, place)))
        rows.append((f"{name}: rolled out", attention.rollout_map(place)))
    return rows + [(f"lookup token {','.join(map(str, at))}: rolled out", attention.lookup_map(at)) for at in lookups]


class Mixing(NamedTuple):
    """The weights with which one block mixes its tokens, averaged over heads."""

    gather: Tensor
    """(G, M, N) compressed from lookup tokens; rows sum to 1."""
    refine: Tensor
    """(G, M, M) compressed from compressed tokens; rows sum to 1."""
    infuse: Tensor | None
    """(G, N, M) lookup from compressed tokens; None where the block does not write back."""


def explain_attention(
    predictor: Predictor, clip_CTHW: Tensor, budget: Budget | tuple[int, ...] | None = None
) -> Attention:
    """Run a LookupViT on a uint8 clip (C, T, H, W) and follow the mixing of its tokens.

    The rollout (Abnar and Zuidema, arXiv 2005.00928) treats each mixing step as a weighted mean of the tokens: with W
    the weights, averaged over heads, and r their sum in a row (1 after a softmax over the keys), a token becomes
    (itself + sum of W x others) / (1 + r), so its residual weighs as much as one attention. Each block has three steps:
    gather (compressed from lookup tokens), self-attention of the compressed tokens, and write-back (lookup from
    compressed tokens). Lookup tokens start as one tubelet each, compressed tokens as the resize of those. A lookup
    token that leaves keeps its shares, and nothing is gathered from it any more.

    It ignores values, projections, MLPs, signs and the sizes of the branches (an attention may add little or nothing),
    differences between heads, and a factorized model's temporal encoder, whose time indices all count the same. It
    shows what could flow, not what caused the answer (Jain and Wallace, arXiv 1902.10186).

    Args:
        budget: a grid of compressed tokens, or a budget with fewer blocks or tokens; None: the model's default.

    Raises:
        UserError: the model is not a LookupViT, or was not built for this budget.
    """
    model: Any = predictor.model
    if not predictor.costs:
        raise UserError(f"MODEL.ARCH {predictor.cfg.MODEL.ARCH}: this model has no compressed tokens to explain")
    if predictor.is_streaming:
        raise UserError("MODEL.STREAMING: attention is of one tubelet at a time; there is no map of a clip")
    with torch.inference_mode(), watched(model.blocks) as kept:
        chosen = model.check_budget(budget)
        features = model.forward_features(predictor.inputs(clip_CTHW[None]), chosen, heads=model.inference_heads)
        compress = model.compress[grid_name(chosen.grid)]
        with using_kernel(model, "eager"):
            seen = [
                mixing(block, notes, compress.num_in) for block, notes in zip(model.blocks, kept, strict=True) if notes
            ]  # of those that ran
        # The resize does not mix channels, so the module maps the unit matrix to its weights.
        unit = torch.eye(compress.num_in, device=predictor.device)[None]
        start_GMN = compress(unit).expand(len(seen[0].gather), -1, -1)
    compressed, lookup_GNN = _rollout(seen, start_GMN, unit)
    assert features.compressed_grid is not None
    assert features.grid is not None
    return Attention(
        gather=[_one_matrix(block.gather) for block in seen],
        compressed_rollout=[_one_matrix(shares) for shares in compressed],
        lookup_rollout=_one_matrix(lookup_GNN),
        compressed_grid=features.compressed_grid,
        lookup_grid=features.grid,
        inference_heads=model.inference_heads,
    )


def _rollout(seen: Sequence[Mixing], start_GMN: Tensor, unit_1NN: Tensor) -> tuple[list[Tensor], Tensor]:
    """Return the compressed tokens' shares (G, M, N) after each block, and the lookup tokens' (G, N, N) at the end."""
    compressed, lookup = start_GMN, unit_1NN.expand(len(start_GMN), -1, -1)
    after = []
    for block in seen:
        compressed = _mixed(compressed, block.gather, lookup)
        compressed = _mixed(compressed, block.refine, compressed)
        if block.infuse is not None:
            lookup = _mixed(lookup, block.infuse, compressed)
        after.append(compressed)
    return after, lookup


def _mixed(own: Tensor, weights: Tensor, others: Tensor) -> Tensor:
    return (own + weights @ others) / (1 + weights.sum(-1, keepdim=True))


def _one_matrix(shares_GMN: Tensor) -> Tensor:
    """Return the groups of a factorized encoder, which do not see each other, as one matrix on the CPU."""
    return torch.block_diag(*shares_GMN.cpu()) if len(shares_GMN) > 1 else shares_GMN[0].cpu()


@contextmanager
def watched(blocks: Iterable[Any]) -> Iterator[list[dict[str, Any]]]:
    """Record the projections in each block's attentions while a model runs, since fused kernels return no weights."""
    kept: list[dict[str, Any]] = []
    hooks = []
    for block in blocks:
        cross = block.cross_attention
        notes: dict[str, Any] = {}
        modules = {"query": cross.query, "key_value": cross.key_value, "refine": block.refine.attention.qkv}
        if block.writes_back:
            modules["infuse"] = cross.infuse_value
        hooks += [module.register_forward_hook(partial(_keep, notes, name)) for name, module in modules.items()]
        hooks.append(block.register_forward_pre_hook(partial(_keep_inputs, notes)))
        kept.append(notes)
    try:
        yield kept
    finally:
        for hook in hooks:
            hook.remove()


def _keep(notes: dict[str, Any], name: str, _: nn.Module, __: Any, output: Tensor) -> None:
    notes[name] = output.float()


def _keep_inputs(notes: dict[str, Any], _: nn.Module, inputs: tuple[Any, ...]) -> None:
    notes |= {name: value for name, value in zip(("kept", "rotary"), inputs[4:], strict=False) if value is not None}


def mixing(block: Any, notes: dict[str, Any], num_tokens: int) -> Mixing:
    """Return the weights of a ``LookupViTBlock``, whose kernel is eager, from the projections that ``watched`` kept.

    Args:
        num_tokens: N; where the block works on fewer, the others get and give nothing.
    """
    cross, own = block.cross_attention, block.refine.attention
    of_compressed, of_lookup = notes.get("rotary", (None, None))
    q, k = _heads(cross, notes["query"], notes["key_value"].chunk(2, dim=-1)[0])
    q, k = rotate(q, of_compressed), rotate(k, of_lookup)
    gather, lookup = kernels.gather(
        q, k, _unit(k), cross.kernel, cross.reverse
    )  # unit values: the result is the weights
    infuse = head_mean(kernels.write_back(_unit(q), lookup)) if "infuse" in notes else None
    q, k = (rotate(x, of_compressed) for x in _heads(own, *notes["refine"].chunk(3, dim=-1)[:2]))
    refine = ((q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)).softmax(-1)
    shares = head_mean(gather)
    if "kept" in notes:
        rows, (groups, m, _) = notes["kept"][:, None].expand_as(shares), shares.shape
        shares = shares.new_zeros(groups, m, num_tokens).scatter(2, rows, shares)
        if infuse is not None:
            infuse = infuse.new_zeros(groups, num_tokens, m).scatter(1, rows.mT, infuse)
    return Mixing(shares, head_mean(refine), infuse)


def _heads(attention: Any, *projected: Tensor) -> tuple[Tensor, Tensor]:
    """Return queries and keys (B, heads, tokens, d) of projected ones (B, tokens, D)."""
    queries, keys = (part.unflatten(-1, (attention.num_heads, -1)) for part in projected)
    return attention.norm_query(queries).transpose(1, 2), attention.norm_key(keys).transpose(1, 2)


def _unit(tokens_BHNd: Tensor) -> Tensor:
    return torch.eye(tokens_BHNd.shape[2], device=tokens_BHNd.device).expand(*tokens_BHNd.shape[:3], -1)


# Without time -----------------------------------------------------------------------------------------------------


def without_time(predictor: Predictor, clip_CTHW: Tensor, num_orders: int = 8) -> dict[str, Tensor]:
    """Return a model's probabilities (K,) for a uint8 clip (C, T, H, W) as it is, shuffled and frozen.

    Args:
        num_orders: number of random orders; "shuffled" is their mean.
    """
    clips = clip_CTHW[None]
    shuffled = torch.cat([reordered(clips, "shuffled", seed) for seed in range(num_orders)])
    inputs = torch.cat([clips, reordered(clips, "frozen"), shuffled])
    answers = predictor.predict_clips(inputs)
    return {"real": answers[0], "shuffled": answers[2:].mean(0), "frozen": answers[1]}


def accuracy_without_time(predictor: Predictor, videos: Sequence[Video]) -> dict[str, Results]:
    """Classify the center clip of each video as it is, shuffled (one order a video) and frozen.

    Returns:
        results for each order of the frames; videos that could not be read count as wrong.
    """
    cfg, world = predictor.cfg, World(0, 1, predictor.device)
    results = evaluate(predictor.model, eval_loader(cfg, videos, world), videos, cfg, world, "without time", (),
                       ORDERS)  # fmt: skip
    return dict(zip(ORDERS, results, strict=True))
