"""What one pass of a LookupViT may cost: the compressed grid, the number of blocks, and the lookup tokens they work on.

Shape letters: N lookup tokens of a block, n those of them that are kept, M compressed tokens, D width.
"""

import math
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_map, tree_map_only

from lookupvit_video.errors import UserError
from lookupvit_video.models.kernels import Lookup
from lookupvit_video.text import grid_name, parse_grid


class Budget(NamedTuple):
    """One way to run a model; the same weights serve all of them."""

    grid: tuple[int, ...]
    """t x h x w of the compressed tokens; factorized h x w."""
    blocks: int = 0
    """How many blocks are run, one of the model's exits; 0: all."""
    keep: tuple[float, ...] = ()
    """Share of the lookup tokens that the blocks work on, in equal parts of the depth; (): all tokens everywhere."""

    @property
    def bare(self) -> "Budget | tuple[int, ...]":
        """The grid alone where the budget is no more than that, else the budget."""
        return self if self.blocks or self.keep else self.grid

    @property
    def name(self) -> str:
        """The budget as text: "4x7x7", "4x7x7,b8" (8 blocks), "4x7x7,k1-0.5" (half the tokens in the second half)."""
        blocks = f",b{self.blocks}" if self.blocks else ""
        keep = f",k{'-'.join(f'{share:g}' for share in self.keep)}" if self.keep else ""
        return grid_name(self.grid) + blocks + keep


class TokenState(NamedTuple):
    """The tokens between two blocks; G = B, factorized B t groups that see no one another."""

    compressed: Tensor
    """(G, M, D)"""
    lookup: Tensor
    """(G, n, D): those that are kept."""
    blocks: int = 0
    """How many have run."""
    found: Lookup | None = None
    """What the last block looked up, where that is needed."""
    written: bool = True
    """Whether the last block wrote back to the lookup tokens."""
    kept: Tensor | None = None
    """(G, n): which of the N lookup tokens these are, in rising order; None: all."""
    left: Tensor | None = None
    """(G, N, D): the last state of those that left; the other rows are outdated."""
    order: Tensor | None = None
    """(G, N): by what the lookup tokens are kept, the largest first, where the clip alone decides; else None."""

    def everything(self) -> Tensor:
        """Return all lookup tokens (G, N, D)."""
        if self.kept is None or self.left is None:
            return self.lookup
        return self.left.scatter(1, self.kept[..., None].expand_as(self.lookup), self.lookup)

    def with_fewest(self, count: int, order_Gn: Tensor) -> "TokenState":
        """Return the state in which only the ``count`` lookup tokens stay whose ``order`` is largest."""
        rows = order_Gn.topk(count, dim=1).indices.sort(dim=1).values
        lookup = self.lookup.gather(1, rows[..., None].expand(-1, -1, self.lookup.shape[-1]))
        kept = rows if self.kept is None else self.kept.gather(1, rows)
        return self._replace(lookup=lookup, kept=kept, left=self.everything())


def split_state(state: TokenState, batch: int) -> list[TokenState]:
    """Return the state of each clip of a batch."""

    def of_clip(number: int) -> TokenState:
        rows = len(state.compressed) // batch  # factorized, one for each time index
        part: TokenState = tree_map_only(Tensor, lambda x: x[number * rows : (number + 1) * rows], state)
        return part

    return list(map(of_clip, range(batch)))


def join_states(states: Sequence[TokenState]) -> TokenState:
    """Return the states of several clips, all after the same blocks, as one."""
    joined: TokenState = tree_map(lambda *x: torch.cat(x) if isinstance(x[0], Tensor) else x[0], *states)
    return joined


def parse_budget(text: str) -> Budget:
    """Return the budget that a text such as "4x7x7,b8,k1-0.5" names.

    Raises:
        UserError: it names none.
    """
    grid, *options = text.split(",")
    found: dict[str, list[float]] = {}
    for option in options:
        try:
            found[option[:1]] = [float(part) for part in option[1:].split("-")]
        except ValueError:
            found[""] = []
    blocks, keep = found.pop("b", [0.0]), tuple(found.pop("k", []))
    if found or len(blocks) != 1 or not 0 <= blocks[0] < math.inf or blocks[0] % 1 or keep_mistake(keep):
        raise UserError(f"budget {text!r}: write a grid, then blocks and shares of the tokens, as 4x7x7,b8,k1-0.5")
    return Budget(parse_grid(grid), int(blocks[0]), () if set(keep) == {1.0} else keep)


def as_budget(budget: Budget | Sequence[int]) -> Budget:
    """Return a budget as it is, or of a bare grid the one with all blocks and all tokens."""
    return budget if isinstance(budget, Budget) else Budget(tuple(budget))


def keep_mistake(keep: Sequence[float]) -> str:
    """Return what is wrong with shares of the lookup tokens; "": nothing."""
    if keep and keep[0] != 1:
        return "the first share must be 1, since the first blocks find out which tokens matter"
    if any(not 0 < later <= share for share, later in pairwise(keep)):
        return "shares must be above 0 and must not rise, since a token that left does not return"
    return ""


def tokens_kept(keep: Sequence[float], num_tokens: int, depth: int) -> list[int]:
    """Return how many of N lookup tokens each block works on; shares are of equal parts of the depth."""
    shares = [keep[i * len(keep) // depth] if keep else 1.0 for i in range(depth)]
    return [max(1, round(share * num_tokens)) for share in shares]


def continues(before: Budget, after: Budget, num_tokens: int, depth: int) -> bool:
    """Whether a pass can go further from where another one ended, with no block computed twice."""
    counts = [tokens_kept(b.keep, num_tokens, depth)[: b.blocks or depth] for b in (before, after)]
    return before.grid == after.grid and len(counts[0]) < len(counts[1]) and counts[1][: len(counts[0])] == counts[0]


def all_budgets(
    grids: Iterable[tuple[int, ...]],
    exits: Sequence[int],
    keeps: Iterable[tuple[float, ...]],
    num_tokens: int,
    depth: int,
) -> tuple[Budget, ...]:
    """Return every budget of a model, each computation once: the first grid with all blocks and the first shares first.

    Args:
        grids, keeps: those of training and test, the default first.
        exits: MODEL.EXITS.
    """
    found: dict[tuple[object, ...], Budget] = {}
    keeps = [() if set(keep) <= {1.0} else keep for keep in keeps]
    for grid in grids:
        for keep in keeps:
            for blocks in (0, *sorted(exits, reverse=True)):
                counts = tokens_kept(keep, num_tokens, depth)[: blocks or depth]
                same = Budget(grid, blocks, keep if len(set(counts)) > 1 else ())  # all before the first token leaves
                found.setdefault((grid, *counts), same)
    return tuple(found.values())
