"""LookupViT for video: heavy work on few compressed tokens, which look up what they need in many lookup tokens.

Paper: LookupViT: Compressing visual information to a limited number of tokens (ECCV 2024, arXiv 2407.12753).
Reading order: ``LookupViT.forward``, ``start``, ``advance``, ``forward_head``; ``budget.py``: what a pass may cost.
Shape letters: B batch, C channels, T frames, H W pixels, N lookup tokens, M compressed tokens, D width, K classes.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lookupvit_video.errors import UserError
from lookupvit_video.models import kernels
from lookupvit_video.models.blocks import (
    PLAIN,
    BlockOptions,
    Classifier,
    LookupViTBlock,
    TemporalEncoder,
    drop_path_rates,
    init_linear,
)
from lookupvit_video.models.budget import Budget, TokenState, as_budget, keep_mistake, tokens_kept
from lookupvit_video.models.contract import Features, Output, VideoModel
from lookupvit_video.models.kernels.rotary import Rotary, RotaryTable
from lookupvit_video.models.tokenizer import Grid, GridResize, TubeletTokenizer
from lookupvit_video.text import grid_name

HEADS = ("compressed", "lookup")
KEEP_BY = ("pixels", "mass", "random")


class ExitHeads(nn.Module):
    """The classifiers of an early exit, as those after the last block."""

    def __init__(self, heads: nn.ModuleDict, frame_norms: nn.ModuleDict):
        super().__init__()
        self.heads, self.frame_norms = heads, frame_norms


class LookupViT(VideoModel):
    """Video (or, with one frame, image) classifier of LookupViT blocks with one head on each token set.

    Args:
        num_classes: K.
        num_frames: T; a multiple of ``tubelet[0]``. One frame and a tubelet (1, p, p): the paper's image model.
        size: H and W in pixels; a multiple of ``tubelet[1]`` and ``tubelet[2]``.
        tubelet: frames x height x width of one lookup token.
        input: "frames" or "changes", see ``TubeletTokenizer``.
        compressed_grid: t x h x w of the compressed tokens, at most the grid of the lookup tokens; h x w of every time
            index where the encoder is factorized. The default of ``forward``.
        grids: further grids that ``forward`` takes: one set of weights serves them all.
        encoder: "joint": tokens of all times together; "factorised": the blocks see one time index at a time, and a
            temporal transformer sees one vector per time index (ViViT, arXiv 2103.15691, model 2).
        temporal_depth: blocks of that temporal transformer.
        dim, depth, num_heads: width D, number of blocks, attention heads.
        resize: "triangle" (antialiased) or "trilinear", see ``GridResize``.
        heads: which token sets have a classifier; the loss averages over them.
        inference_head: "average" (of the heads' logits), or one of ``heads``.
        pool: "average", "average_norm" or "attentive", see ``Classifier``.
        drop_path: stochastic depth of the last block; it rises linearly from 0.
        dropout: before each classifier.
        options: see ``BlockOptions``.
        exits: numbers of blocks after which there are heads too. In training all of them learn, each as its depth says
            (LGViT, arXiv 2308.00255); in eval mode a budget chooses one.
        keep: share of the lookup tokens that the blocks work on in equal parts of the depth, such as (1, 0.7, 0.5), the
            default of ``forward``. A token that leaves keeps its state, which the lookup head reads. (): all.
        keep_by: which stay: "pixels": those whose own pixels vary most; "mass": those that most was gathered from;
            "random", as a control.
    """

    tokenizer: TubeletTokenizer
    blocks: nn.ModuleList

    def __init__(
        self,
        *,
        num_classes: int,
        num_frames: int = 16,
        size: int = 224,
        tubelet: Grid = (2, 16, 16),
        input: str = "frames",
        compressed_grid: tuple[int, ...] = (4, 7, 7),
        grids: Sequence[tuple[int, ...]] = (),
        encoder: str = "joint",
        temporal_depth: int = 4,
        dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        resize: str = "triangle",
        heads: Sequence[str] = HEADS,
        inference_head: str = "average",
        pool: str = "average",
        drop_path: float = 0.0,
        dropout: float = 0.0,
        options: BlockOptions = PLAIN,
        exits: Sequence[int] = (),
        keep: Sequence[float] = (),
        keep_by: str = "pixels",
    ):
        super().__init__()
        self.options = options
        _check_heads(heads, inference_head, pool)
        self.inference_heads = tuple(heads) if inference_head == "average" else (inference_head,)
        self.tokenizer = options.tokenizer(num_frames=num_frames, size=size, tubelet=tubelet, dim=dim, input=input)
        t, h, w = self.tokenizer.grid
        self.block_grid: Grid = (1, h, w) if encoder == "factorised" else (t, h, w)
        self.grids = tuple(dict.fromkeys(map(tuple, (compressed_grid, *grids))))
        self.compress = nn.ModuleDict({grid_name(grid): self._resize(grid, resize) for grid in self.grids})
        self.rotary = self._rotary_tables(options.rotary, dim // num_heads, tubelet)
        lookup_is_read = "lookup" in heads
        self.blocks = nn.ModuleList(
            LookupViTBlock(dim, num_heads, rate, options, lookup_is_read or i < depth - 1, self.block_grid)
            for i, rate in enumerate(drop_path_rates(drop_path, depth))
        )
        classifier = partial(Classifier, dim, num_classes, dropout, pool, num_heads, options)
        self.heads = nn.ModuleDict({name: classifier() for name in heads})
        self.blocks.apply(init_linear)
        self.temporal: TemporalEncoder | None = None
        self.frame_norms = nn.ModuleDict()
        if encoder == "factorised":
            self.frame_norms = nn.ModuleDict({name: options.norm(dim) for name in heads})
            self.temporal = TemporalEncoder(
                length=t, dim=dim, depth=temporal_depth, num_heads=num_heads, options=options
            )
        self._add_exits(exits, depth, options.norm, classifier)
        if keep_by not in KEEP_BY:
            raise UserError(f"keep_by {keep_by!r}: choose {', '.join(KEEP_BY)}")
        self.keep, self.keep_by = tuple(keep), keep_by
        if keep_by == "random":
            fixed_N = torch.rand(math.prod(self.block_grid), generator=torch.Generator().manual_seed(0))
            self.register_buffer("random_order", fixed_N, persistent=False)

    def _add_exits(
        self, exits: Sequence[int], depth: int, norm: Callable[[int], nn.Module], classifier: Callable[[], nn.Module]
    ) -> None:
        dim, names, self.exits = self.tokenizer.projection.out_channels, tuple(self.heads), nn.ModuleDict()
        with torch.random.fork_rng(devices=[]):  # adapters draw next, and start as they do without exits
            for blocks in sorted(exits):
                norms = nn.ModuleDict({name: norm(dim) for name in self.frame_norms})
                self.exits[str(blocks)] = ExitHeads(nn.ModuleDict({name: classifier() for name in names}), norms)
        if exits:
            weights = [blocks for blocks in (depth, *sorted(exits)) for _ in names]
            self.output_weights = tuple(weight / sum(weights) for weight in weights)

    def _resize(self, grid: tuple[int, ...], kind: str) -> GridResize:
        if any(out > side for out, side in zip(_of_time(grid), self.block_grid, strict=True)):
            raise UserError(f"compressed grid {grid} is larger than the grid of lookup tokens {self.block_grid}")
        return GridResize(self.block_grid, _of_time(grid), kind)

    def _rotary_tables(self, form: str, head_dim: int, tubelet: Grid) -> nn.ModuleDict:
        if not form:
            return nn.ModuleDict()
        table = partial(RotaryTable, form, self.block_grid, head_dim, tubelet[1:])
        return nn.ModuleDict({"lookup": table(), **{grid_name(grid): table(_of_time(grid)) for grid in self.grids}})

    def classifiers(self) -> list[nn.Module]:
        """Return every head, those of the exits last."""
        return [head for part in (self, *self.exits.values()) for head in part.get_submodule("heads").children()]

    def check_budget(self, budget: Budget | Sequence[int] | None) -> Budget:
        """Return a complete budget: a bare grid is one with all blocks and tokens, None is the model's default.

        Raises:
            UserError: the model was not made with this grid or exit, or the shares of the tokens are wrong.
        """
        budget = Budget(self.grids[0], 0, self.keep) if budget is None else as_budget(budget)
        if grid_name(budget.grid) not in self.compress:
            known = ", ".join(self.compress)
            raise UserError(f"compressed grid {grid_name(budget.grid)}: this model was made with {known}")
        if budget.blocks == len(self.blocks):
            budget = budget._replace(blocks=0)
        if budget.blocks and str(budget.blocks) not in self.exits:
            known = ", ".join(self.exits) or "none; see MODEL.EXITS"
            raise UserError(f"{budget.blocks} blocks: this model's early exits are {known}")
        if mistake := keep_mistake(budget.keep):
            raise UserError(f"shares of lookup tokens {list(budget.keep)}: {mistake}")
        return budget

    def pixel_order(self, clip_BCTHW: Tensor, budgets: Sequence[Budget]) -> Tensor | None:
        """Return the lookup tokens' order (B, N) by a clip's pixels, for ``start``.

        Args:
            budgets: of the passes to come; None is returned where none drops tokens, or something else decides.
        """
        is_needed = self.keep_by == "pixels" and any(budget.keep for budget in budgets)
        return self.tokenizer.pixel_variance(clip_BCTHW) if is_needed else None

    def start(self, tokens_BND: Tensor, budget: Budget, order_BN: Tensor | None = None) -> TokenState:
        """Return lookup tokens (B, N, D) of the tokenizer, and the compressed tokens made of them, before block 1.

        Args:
            order_BN: see ``pixel_order``.
        """
        compress = self.compress[grid_name(budget.grid)]
        assert isinstance(compress, GridResize)
        # Factorized: time joins the batch, so that a block sees one time index.
        lookup = tokens_BND.reshape(-1, compress.num_in, tokens_BND.shape[-1])
        # The resize is linear: one resize of tokens plus positions equals the paper's sum of two.
        order = None if order_BN is None else order_BN.reshape(lookup.shape[:2])
        # Autocast would keep this stream in bfloat16.
        return TokenState(compress(lookup).to(lookup.dtype), lookup, order=order)

    def advance(
        self,
        state: TokenState,
        budget: Budget,
        blocks: int = 0,
        *,
        writes_back: bool = True,
        continues: bool = False,
        attention: list[Tensor] | None = None,
        by_block: list[tuple[Tensor, Tensor | None]] | None = None,
    ) -> TokenState:
        """Run the blocks up to number ``blocks`` (0: all) that a state has not been through.

        Args:
            writes_back: False: nobody reads the lookup tokens of the last of these blocks. It does not write to them;
                another call makes up for it.
            continues: another call may follow: keep what it needs.
            attention: a list that the weights of each block are added to.
            by_block: a list that gets what ``Features.by_block`` says.
        """
        blocks = blocks or len(self.blocks)
        counts = tokens_kept(budget.keep, math.prod(self.block_grid), len(self.blocks))
        if state.blocks < blocks and not state.written:
            assert state.found is not None
            owing: Any = self.blocks[state.blocks - 1]
            lookup = owing.write_back(state.compressed, state.lookup, state.found, state.kept)
            state = state._replace(lookup=lookup, written=True)
        for i in range(state.blocks, blocks):
            if counts[i] < state.lookup.shape[1]:
                state = state.with_fewest(counts[i], self.keep_order(state))
            last = i == blocks - 1
            leaves = not last and counts[i + 1] < counts[i]
            wanted = leaves or (last and continues) or attention is not None
            compressed, lookup, found = self.blocks[i](
                state.compressed,
                state.lookup,
                writes_back or not last,
                wanted,
                state.kept,
                self._rotary(budget, state.kept),
            )
            if attention is not None and found is not None:
                attention.append(found.weights)
            state = state._replace(
                compressed=compressed, lookup=lookup, blocks=i + 1, found=found, written=writes_back or not last
            )
            if by_block is not None and state.written:
                by_block.append((lookup, state.kept))
        kernels.done()
        return state

    def _rotary(self, budget: Budget, kept_Gn: Tensor | None) -> tuple[Rotary, Rotary] | None:
        """Return by what the compressed tokens and those of the lookup tokens that are kept are turned."""
        if not self.rotary:
            return None
        return self.rotary[grid_name(budget.grid)](), self.rotary["lookup"]().of(kept_Gn)

    def keep_order(self, state: TokenState) -> Tensor:
        """Return by what the lookup tokens (G, n) of a state are kept, the largest first."""
        groups, n = state.lookup.shape[:2]
        if self.keep_by == "mass":
            assert state.found is not None
            return state.found.mass
        if self.keep_by == "random" and self.training:
            return torch.rand(groups, n, device=state.lookup.device)
        fixed_GN = self.get_buffer("random_order").expand(groups, -1) if self.keep_by == "random" else state.order
        assert fixed_GN is not None, "start() was not given pixel_order()"
        return fixed_GN if state.kept is None else fixed_GN.gather(1, state.kept)

    def features(self, state: TokenState, budget: Budget, attention: Sequence[Tensor] = ()) -> Features:
        """Return the tokens of a state as heads read them; those that left are as they were then."""
        t, h, w = self.tokenizer.grid
        compress = self.compress[grid_name(budget.grid)]
        assert isinstance(compress, GridResize)
        dim, compressed_grid = state.compressed.shape[-1], compress.grid_out
        if self.temporal is not None:
            compressed_grid = (t, *compress.grid_out[1:])
        return Features(
            tokens=state.everything().reshape(-1, t * h * w, dim),
            grid=(t, h, w),
            compressed=state.compressed.reshape(-1, math.prod(compressed_grid), dim),
            compressed_grid=compressed_grid,
            attention=attention,
            blocks=state.blocks % len(self.blocks),
        )

    def forward_features(
        self,
        clip_BCTHW: Tensor,
        budget: Budget | Sequence[int] | None = None,
        return_attention: bool = False,
        heads: Sequence[str] = HEADS,
    ) -> Features:
        """Run tokenizer and blocks on a normalized clip (B, C, T, H, W), without the heads.

        Args:
            budget: one that the model was made for, or a bare grid; None: the model's default.
            return_attention: keep every block's attention weights.
            heads: the token sets that heads will read; without "lookup" the last block does not write back.

        Raises:
            UserError: the model was not made for this budget.
        """
        budget = self.check_budget(budget)
        attention: list[Tensor] = []
        state = self.start(self.tokenizer(clip_BCTHW), budget, self.pixel_order(clip_BCTHW, [budget]))
        kept = attention if return_attention else None
        state = self.advance(state, budget, budget.blocks, writes_back="lookup" in heads, attention=kept)
        return self.features(state, budget, attention)

    def _tokens(self, name: str, features: Features) -> tuple[Any, Tensor]:
        """Return the module with the classifiers of a pass, the model or an exit, and the tokens that one reads."""
        tokens = features.compressed if name == "compressed" else features.tokens
        assert tokens is not None
        return (self.exits[str(features.blocks)] if features.blocks else self), tokens

    def normed_tokens(self, features: Features, name: str) -> Tensor:
        """See `VideoModel.normed_tokens`: (B, N, D) or (B, M, D)."""
        if name not in self.heads:
            raise UserError(f"{name} tokens: this model has no classifier of them, only of {', '.join(self.heads)}")
        readers, tokens = self._tokens(name, features)
        norm = readers.heads[name].norm if self.temporal is None else readers.frame_norms[name]
        normed: Tensor = norm(tokens)
        return normed

    def _logits(self, name: str, features: Features) -> Tensor:
        readers, tokens = self._tokens(name, features)
        if self.temporal is not None:
            frames_Btnd = readers.frame_norms[name](tokens).unflatten(1, (self.tokenizer.grid[0], -1))
            tokens = self.temporal(frames_Btnd.mean(dim=2))
        logits_BK: Tensor = readers.heads[name](tokens)
        return logits_BK

    def forward_head(self, features: Features) -> Output:
        """Classify what ``forward_features`` returned: in training mode by each head, else by ``inference_head``."""
        if self.training:
            return tuple(self._logits(name, features) for name in self.heads)
        first, *others = (self._logits(name, features) for name in self.inference_heads)
        return sum(others, first) / len(self.inference_heads)

    def forward(
        self, clip_BCTHW: Tensor, budget: Budget | Sequence[int] | None = None, *, with_features: bool = False
    ) -> Output | tuple[Output, Features]:
        """Classify a normalized clip (B, C, T, H, W) within a budget.

        In training mode the logits of the early exits on the way follow those of the last heads.

        Args:
            budget: see ``forward_features``.
            with_features: see ``VideoModel.forward``; in training mode they have their ``by_block``.
        """
        budget = self.check_budget(budget)
        names = tuple(self.heads) if self.training or with_features else self.inference_heads
        state = self.start(self.tokenizer(clip_BCTHW), budget, self.pixel_order(clip_BCTHW, [budget]))
        early: list[Tensor] = []  # torch.compile does not trace list[Tensor]()
        found: list[tuple[Tensor, Tensor | None]] = []
        by_block = found if with_features and self.training else None
        for blocks in map(int, self.exits if self.training else ()):
            if not budget.blocks or blocks < budget.blocks:
                state = self.advance(state, budget, blocks, continues=True, by_block=by_block)
                early += self.forward_head(self.features(state, budget))
        state = self.advance(state, budget, budget.blocks, writes_back="lookup" in names, by_block=by_block)
        features = self.features(state, budget)._replace(by_block=found)
        output = self.forward_head(features)
        if self.training:
            output = (*output, *early)
        return (output, features) if with_features else output


def _of_time(grid: tuple[int, ...]) -> Grid:
    """Return t x h x w of a compressed grid; factorized ones have no t."""
    t, h, w = (1, *grid)[-3:]
    return t, h, w


def _check_heads(heads: Sequence[str], inference_head: str, pool: str) -> None:
    if not heads or not set(heads) <= set(HEADS):
        raise UserError(f"heads {list(heads)}: choose from {', '.join(HEADS)}")
    if inference_head not in ("average", *heads):
        raise UserError(f"inference head {inference_head!r}: choose {', '.join(('average', *heads))}")
    if pool not in ("average", "average_norm", "attentive"):
        raise UserError(f"pool {pool!r}: choose average, average_norm or attentive (there is no class token)")


# Tubelets of 16 x 16 pixels and 2 frames; further arguments as those of the class.
lookupvit_tiny_16x2 = partial(LookupViT, dim=192, depth=12, num_heads=3)
lookupvit_small_16x2 = partial(LookupViT, dim=384, depth=12, num_heads=6)
lookupvit_base_16x2 = partial(LookupViT, dim=768, depth=12, num_heads=12)
lookupvit_large_16x2 = partial(LookupViT, dim=1024, depth=24, num_heads=16)
