"""Where a LookupViT looks in a clip, and what a model would lose without the order of the frames.

Shape letters: B clips, C channels, T frames, H W pixels, t h w grid, N lookup tokens, M compressed
tokens, K classes, G groups of tokens that the blocks see apart from each other: the t time indices of a factorised
encoder, else 1.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from lookupvit_video.data.loader import build_eval_loader
from lookupvit_video.data.manifest import Video
from lookupvit_video.data.transforms import normalize
from lookupvit_video.errors import UserError
from lookupvit_video.evaluation.evaluate import Results
from lookupvit_video.inference.predictor import Predictor
from lookupvit_video.models.attention import head_mean
from lookupvit_video.models.lookupvit import LookupViT, grid_name
from lookupvit_video.models.tokenizer import Grid
from lookupvit_video.progress import progress
from lookupvit_video.seeding import mix_seed

ORDERS = ("real", "shuffled", "frozen")
MAX_BLOCKS = 4  # in a sheet, spread from the first to the last


@dataclass(frozen=True)
class Attention:
    """What the blocks of a LookupViT look at in one clip; every row of every matrix sums to 1 over lookup tokens.

    Tokens are in t, h, w order of their grid.
    """

    gather: list[Tensor]
    """Per block (M, N): the weights with which compressed tokens look things up, averaged over heads."""
    compressed_rollout: list[Tensor]
    """Per block (M, N): the share that each tubelet of the clip has in each compressed token after the block."""
    lookup_rollout: Tensor
    """(N, N): the same for the lookup tokens, after the last block."""
    compressed_grid: Grid
    lookup_grid: Grid
    read: tuple[str, ...]
    """The token sets that the answer is read from: "compressed", "lookup" or both."""

    def gather_map(self, block: int, token: Sequence[int] | None = None) -> Tensor:
        """Return where a block's compressed tokens look: (t, h, w), summing to 1.

        Args:
            block: 0 is the first, -1 the last.
            token: (t, h, w) of one compressed token; None: the mean of all.

        Raises:
            UserError: there is no such token.
        """
        return self._map(self.gather[block], token, self.compressed_grid)

    def rollout_map(self, token: Sequence[int] | None = None, block: int = -1) -> Tensor:
        """Return from where in the clip the content of compressed tokens comes: (t, h, w), summing to 1."""
        return self._map(self.compressed_rollout[block], token, self.compressed_grid)

    def lookup_map(self, token: Sequence[int] | None = None) -> Tensor:
        """Return from where in the clip the content of lookup tokens comes in the end: (t, h, w), summing to 1."""
        return self._map(self.lookup_rollout, token, self.lookup_grid)

    def answer_map(self) -> Tensor:
        """Return from where in the clip the tokens that the answer is read from have their content: (t, h, w)."""
        maps = {"compressed": self.rollout_map, "lookup": self.lookup_map}
        return torch.stack([maps[name]() for name in self.read]).mean(0)

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
    """Return the rows of a sheet (see ``draw.draw_sheet``): up to four blocks, what is held in the end, some tokens.

    Args:
        tokens, lookups: (t, h, w) of compressed and of lookup tokens to follow.

    Raises:
        UserError: there is no such token.
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
    """(G, N, M) lookup from compressed tokens; None: the block does not write back."""


def explain_attention(predictor: Predictor, clip_CTHW: Tensor, grid: tuple[int, ...] | None = None) -> Attention:
    """Run a LookupViT over a uint8 clip (C, T, H, W) and follow what its tokens are mixed from.

    The rollout (Abnar and Zuidema, arXiv 2005.00928) takes each mixing step for a weighted mean of the tokens: with W
    the weights, averaged over heads, and r their sum in a row (1 after a softmax over what is looked at), a token
    becomes (itself + sum of W x others) / (1 + r), so its residual weighs as much as a whole look. Followed are, per
    block: gather (compressed from lookup tokens), the self-attention of the refinement, and the infusion (lookup from
    compressed tokens). It starts from one tubelet for each lookup token, and for the compressed tokens from the resize.

    What it does not see: values, projections, MLPs, signs and the sizes of the branches (a look may write little or
    nothing), differences between heads, and the temporal encoder of a factorised model, whose time indices all count
    the same. It says what could flow, not what caused the answer (Jain and Wallace, arXiv 1902.10186).

    Args:
        grid: of the compressed tokens; None: the model's default.

    Raises:
        UserError: the model is no LookupViT, or was not made with this grid.
    """
    model = predictor.model
    if not isinstance(model, LookupViT):
        raise UserError(f"MODEL.ARCH {predictor.cfg.MODEL.ARCH}: only a LookupViT has compressed tokens to look with")
    clip = normalize(clip_CTHW[None].to(predictor.device), predictor.cfg.DATA.MEAN, predictor.cfg.DATA.STD)
    with torch.inference_mode(), watched(model) as kept:
        features = model.forward_features(clip, grid, heads=model.inference_heads)
        seen = [mixing(block, notes) for block, notes in zip(model.blocks, kept, strict=True)]
        compress: Any = model.compress[grid_name(model.grids[0] if grid is None else grid)]
        # The resize mixes no widths, so the same module applied to the unit matrix tells its weights.
        unit = torch.eye(compress.num_in, device=predictor.device)[None]
        start_GMN = compress(unit).expand(len(seen[0].gather), -1, -1)
    compressed, lookup_GNN = _rollout(seen, start_GMN, unit)
    assert features.compressed_grid is not None
    assert features.grid is not None
    return Attention(
        gather=[_whole(block.gather) for block in seen],
        compressed_rollout=[_whole(shares) for shares in compressed],
        lookup_rollout=_whole(lookup_GNN),
        compressed_grid=features.compressed_grid,
        lookup_grid=features.grid,
        read=model.inference_heads,
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


def _whole(shares_GMN: Tensor) -> Tensor:
    """Put the groups of a factorised encoder, which do not see each other, into one matrix on the CPU."""
    return torch.block_diag(*shares_GMN.cpu()) if len(shares_GMN) > 1 else shares_GMN[0].cpu()


@contextmanager
def watched(model: LookupViT) -> Iterator[list[dict[str, Tensor]]]:
    """Keep, while the model runs, what goes into each block's attention; the fused kernels hand no weights out."""
    kept: list[dict[str, Tensor]] = [{} for _ in model.blocks]
    blocks: list[Any] = list(model.blocks)
    hooks = []
    for block, notes in zip(blocks, kept, strict=True):
        cross = block.cross_attention
        modules = {"query": cross.query, "key_value": cross.key_value, "refine": block.refine.attention.qkv}
        if block.writes_back:
            modules["infuse"] = cross.infuse_value
        for name, module in modules.items():

            def keep(_: nn.Module, __: Any, output: Tensor, name: str = name, notes: dict[str, Tensor] = notes) -> None:
                notes[name] = output.float()

            hooks.append(module.register_forward_hook(keep))
    try:
        yield kept
    finally:
        for hook in hooks:
            hook.remove()


def mixing(block: Any, notes: dict[str, Tensor]) -> Mixing:
    """Return what a ``LookupViTBlock`` mixed, computed anew from the projections that ``watched`` kept."""
    cross, own = block.cross_attention, block.refine.attention
    keys, _ = notes["key_value"].chunk(2, dim=-1)
    scores = _scores(cross, notes["query"], keys)
    infuse = None
    if "infuse" in notes:
        weights = scores.softmax(-2 if cross.reverse == "softmax" else -1)
        factor = weights.shape[-1] / weights.shape[-2] if cross.reverse == "scaled" else 1.0
        infuse = head_mean(factor * weights).transpose(1, 2)
    queries, keys, _ = notes["refine"].chunk(3, dim=-1)
    return Mixing(head_mean(scores.softmax(-1)), head_mean(_scores(own, queries, keys).softmax(-1)), infuse)


def _scores(attention: Any, queries: Tensor, keys: Tensor) -> Tensor:
    """Return the logits (B, heads, M, N) of projected queries (B, M, D) and keys (B, N, D)."""
    q = attention.norm_query(queries.unflatten(-1, (attention.num_heads, -1))).transpose(1, 2)
    k = attention.norm_key(keys.unflatten(-1, (attention.num_heads, -1))).transpose(1, 2)
    return (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)


# Without time -----------------------------------------------------------------------------------------------------


def reordered(clips_BCTHW: Tensor, order: str, seed: int = 0) -> Tensor:
    """Return clips with their frames as they are ("real"), in another order ("shuffled") or all the same ("frozen").

    Args:
        order: "shuffled" draws one order of T frames from the seed, never the real one; "frozen" repeats the middle
            frame.

    Raises:
        UserError: an unknown order.
    """
    num_frames = clips_BCTHW.shape[2]
    if order == "real" or num_frames == 1:
        return clips_BCTHW
    if order == "frozen":
        return clips_BCTHW[:, :, [num_frames // 2]].expand_as(clips_BCTHW)
    if order != "shuffled":
        raise UserError(f"order {order!r}: choose one of {', '.join(ORDERS)}")
    draw, real = np.random.default_rng(mix_seed(seed)), np.arange(num_frames)
    chosen = real
    while (chosen == real).all():
        chosen = draw.permutation(num_frames)
    return clips_BCTHW[:, :, chosen.tolist()]


def without_time(predictor: Predictor, clip_CTHW: Tensor, num_orders: int = 8) -> dict[str, Tensor]:
    """Return a model's probabilities (K,) for a uint8 clip (C, T, H, W) as it is, shuffled and frozen.

    Args:
        num_orders: random orders that "shuffled" is the mean of.
    """
    clips = clip_CTHW[None]
    shuffled = torch.cat([reordered(clips, "shuffled", seed) for seed in range(num_orders)])
    inputs = torch.cat([clips, reordered(clips, "frozen"), shuffled])
    answers = predictor.predict_clips(inputs)
    return {"real": answers[0], "shuffled": answers[2:].mean(0), "frozen": answers[1]}


def accuracy_without_time(predictor: Predictor, videos: Sequence[Video]) -> dict[str, Results]:
    """Classify the centre clip of each video as it is, shuffled (one order a video) and frozen.

    A model that answers as well without time has learned what things look like, not how they move.

    Returns:
        results by order of the frames, all of the same videos; those that could not be read count as wrong.
    """
    loader = build_eval_loader(predictor.cfg, videos, num_views=1, num_crops=1)
    tables = {order: np.zeros((len(videos), len(predictor.classes)), dtype=np.float32) for order in ORDERS}
    bad: list[tuple[int, str]] = []
    step = predictor.cfg.TEST.BATCH_SIZE
    for batch in progress(loader, total=len(videos), label="without time", unit="videos", step=step):
        rows = batch.indices.tolist()
        for order, table in tables.items():
            pairs = zip(batch.clips, rows, strict=True)
            clips = torch.cat([reordered(clip[None], order, seed=row) for clip, row in pairs])
            table[rows] = predictor.predict_clips(clips).numpy()
        bad += batch.errors
    labels = np.array([video.label for video in videos])
    for table in tables.values():
        table[[row for row, _ in bad]] = 0
    return {order: Results(labels, table, sorted(bad)) for order, table in tables.items()}
