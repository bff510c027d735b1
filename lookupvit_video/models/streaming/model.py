"""Streaming LookupViT: compressed tokens are carried from tubelet to tubelet, and each tubelet gets an answer.

A step sees the lookup tokens of one tubelet of frames. Its cost does not depend on how far back the state reaches.
Shape letters: B batch, C channels, T frames, t frames of a tubelet, S = T / t steps, H W pixels, N lookup tokens of a
step, M compressed tokens, D width, K classes.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lookupvit_video.errors import UserError
from lookupvit_video.models.blocks import PLAIN, BlockOptions, init_linear
from lookupvit_video.models.budget import Budget
from lookupvit_video.models.contract import Features, Output
from lookupvit_video.models.lookupvit import LookupViT
from lookupvit_video.models.tokenizer import Grid

KEEPS = 4.0  # before training, what is left of a state after each step: sigmoid(4) = 0.98
LONGEST = 16.0  # steps after which the slowest channels have forgotten 1 - 1 / e of a state, before training


class Memory(nn.Module):
    """What is kept of the compressed tokens (B, M, D): state + z (new - state), with a learned gate z for each value.

    The gate, as in a minimal gated unit (arXiv 1603.09420), begins as a constant 1 / tau for each channel, tau from 1
    step to ``LONGEST`` (chrono initialization, arXiv 1804.11188), so that gradients reach far back at once. Before
    that, ``forget`` can empty a state: of itself, the gate is slow to learn where a stream has a cut.
    """

    def __init__(self, dim: int, options: BlockOptions):
        super().__init__()
        self.norm_state, self.recalled = options.norm(dim), nn.Linear(dim, dim)
        self.norm_new, self.gate_new = options.norm(dim), nn.Linear(dim, dim)
        self.gate_state = nn.Linear(dim, dim, bias=False)
        self.cut = nn.Linear(dim, dim)
        init_linear(self.recalled)
        nn.init.zeros_(self.cut.weight)
        nn.init.constant_(self.cut.bias, KEEPS)
        nn.init.zeros_(self.gate_new.weight)
        nn.init.zeros_(self.gate_state.weight)
        with torch.no_grad():
            tau_D = LONGEST ** ((torch.arange(dim) + 0.5) / dim)
            self.gate_new.bias.copy_(-torch.log(tau_D - 1))

    def forget(self, state_BMD: Tensor, seen_BMD: Tensor, before_BMD: Tensor) -> Tensor:
        """Return what is left of a state (B, M, D) at the present tubelet, after training next to nothing at a cut.

        Each channel's share follows from the logarithms of how much the tokens change from one tubelet to the next; of
        the same pixels it is -4.6, of a mean square of 0.1 it is 0.

        Args:
            seen_BMD, before_BMD: the compressed tokens of this tubelet and of the last one, before the first block.
        """
        change_BD = (seen_BMD.float() - before_BMD).square().mean(1)
        left_BD = torch.sigmoid(self.cut(torch.log(10 * change_BD + 1e-2)))
        return state_BMD * left_BD[:, None].to(state_BMD.dtype)

    def recall(self, state_BMD: Tensor) -> Tensor:
        """Return what a step adds to its compressed tokens (B, M, D) before the first block."""
        recalled_BMD: Tensor = self.recalled(self.norm_state(state_BMD))
        return recalled_BMD

    def keep(self, state_BMD: Tensor, compressed_BMD: Tensor) -> Tensor:
        """Return the next state (B, M, D), of the last one and of the compressed tokens of the last block."""
        new_BMD = self.norm_new(compressed_BMD)
        gate_BMD = torch.sigmoid(self.gate_new(new_BMD) + self.gate_state(state_BMD))
        state_BMD = state_BMD + gate_BMD.to(state_BMD.dtype) * (new_BMD - state_BMD)
        return state_BMD


class StreamingLookupViT(LookupViT):
    """LookupViT whose compressed tokens begin with what earlier tubelets left, see ``Memory``.

    ``forward`` unrolls the steps of a clip: in eval mode it gives the logits of the last one, in training mode those of
    each. In training the second half of a batch begins with the states that the first half ends with, without
    gradients, so that the model learns to drop what another video left; only the first half begins with empty states.

    Args:
        num_frames: of the clips of training and test; ``forward`` takes any number of tubelets.
        compressed_grid: 1 x h x w of the compressed tokens.
        reset: let every step begin with an empty state: a control without memory.

    The other arguments are those of ``LookupViT``. The only head is that of the compressed tokens.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        num_frames: int = 16,
        size: int = 224,
        tubelet: Grid = (2, 16, 16),
        input: str = "frames",
        compressed_grid: tuple[int, ...] = (1, 7, 7),
        dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        resize: str = "triangle",
        pool: str = "average",
        drop_path: float = 0.0,
        dropout: float = 0.0,
        options: BlockOptions = PLAIN,
        reset: bool = False,
    ):
        super().__init__(
            num_classes=num_classes, num_frames=tubelet[0], size=size, tubelet=tubelet, input=input,
            compressed_grid=compressed_grid, dim=dim, depth=depth, num_heads=num_heads, resize=resize,
            heads=("compressed",), inference_head="compressed", pool=pool, drop_path=drop_path, dropout=dropout,
            options=options,
        )  # fmt: skip
        self.reset = reset
        self.memory = Memory(dim, options)

    def start_state(self, batch: int = 1) -> Tensor:
        """Return the state (B, 2 M, D) before the first tubelet of streams.

        Its first half is what ``Memory`` keeps, the other one the compressed tokens of the last tubelet before block 1.
        It is a plain tensor, to be saved as any other.
        """
        gate = self.memory.gate_new.weight
        return gate.new_zeros(batch, 2 * math.prod(self.grids[0]), gate.shape[0])

    def step(self, frames_BCtHW: Tensor, state_BMD: Tensor) -> tuple[Tensor, Tensor]:
        """Take in the next tubelet of each stream: return logits (B, K) and the next state (B, 2 M, D).

        Args:
            frames_BCtHW: normalized.
            state_BMD: (B, 2 M, D), of ``start_state`` or of the step before.
        """
        state_BMD, _ = self._advanced(self.tokenizer(frames_BCtHW), state_BMD)
        return self._answer(state_BMD), state_BMD

    def _advanced(self, tokens_BND: Tensor, state_BMD: Tensor) -> tuple[Tensor, Tensor]:
        """Return the next state and the lookup tokens (B, N, D) of a step."""
        budget = self.check_budget(None)
        if self.reset:
            state_BMD = torch.zeros_like(state_BMD)
        tokens = self.start(tokens_BND, budget)
        seen_BMD, (kept_BMD, before_BMD) = tokens.compressed, state_BMD.chunk(2, dim=1)
        kept_BMD = self.memory.forget(kept_BMD, seen_BMD, before_BMD)
        compressed_BMD = seen_BMD + self.memory.recall(kept_BMD).to(seen_BMD.dtype)
        tokens = self.advance(tokens._replace(compressed=compressed_BMD), budget)
        kept_BMD = self.memory.keep(kept_BMD, tokens.compressed)
        return torch.cat([kept_BMD, seen_BMD.to(kept_BMD.dtype)], dim=1), tokens.lookup

    def _answer(self, state_BMD: Tensor) -> Tensor:
        kept_BMD, _ = state_BMD.chunk(2, dim=1)
        logits_BK: Tensor = self.heads["compressed"](kept_BMD)
        return logits_BK

    def unroll(self, clip_BCTHW: Tensor, state_BMD: Tensor | None = None) -> tuple[list[Tensor], Tensor]:
        """Return the state (B, 2 M, D) after each step of a clip, and the lookup tokens (B, N, D) of the last one.

        Args:
            state_BMD: what the clips begin with; None: empty states.

        Raises:
            UserError: the clip's frames are not a multiple of a tubelet's.
        """
        frames, t = clip_BCTHW.shape[2], self.tokenizer.clip_shape[1]
        if frames == 0 or frames % t:
            raise UserError(f"a clip of {frames} frames cannot be cut into tubelets of {t} frames")
        if state_BMD is None:
            state_BMD = self.start_state(clip_BCTHW.shape[0])
        tubelets = clip_BCTHW.unflatten(2, (frames // t, t)).transpose(1, 2)  # (B, S, C, t, H, W)
        tokens_BSND = self.tokenizer(tubelets.flatten(0, 1)).unflatten(0, tubelets.shape[:2])
        states = []
        for tokens_BND in tokens_BSND.unbind(1):
            state_BMD, lookup_BND = self._advanced(tokens_BND, state_BMD)
            states.append(state_BMD)
        return states, lookup_BND

    def _unroll_in_halves(self, clip_BCTHW: Tensor) -> tuple[list[Tensor], Tensor]:
        """Return ``unroll`` of a training batch, whose second half begins where the first one ended."""
        half = clip_BCTHW.shape[0] // 2
        if not half:
            return self.unroll(clip_BCTHW)
        first, lookup = self.unroll(clip_BCTHW[:half])
        begun = torch.cat([first[-1].detach(), self.start_state(clip_BCTHW.shape[0] % 2)])
        second, others = self.unroll(clip_BCTHW[half:], begun)
        return [torch.cat(pair) for pair in zip(first, second, strict=True)], torch.cat([lookup, others])

    def _features_of(self, state_BMD: Tensor, lookup_BND: Tensor) -> Features:
        compressed_grid: Any = self.grids[0]
        kept_BMD, _ = state_BMD.chunk(2, dim=1)
        return Features(lookup_BND, self.tokenizer.grid, compressed=kept_BMD, compressed_grid=compressed_grid)

    def forward_features(
        self,
        clip_BCTHW: Tensor,
        budget: Budget | Sequence[int] | None = None,
        return_attention: bool = False,
        heads: Sequence[str] = ("compressed",),
    ) -> Features:
        """Return what is kept (B, M, D) after a clip as the compressed tokens, and the last tubelet's lookup tokens.

        Raises:
            UserError: attention maps were requested, which are of single steps.
        """
        if return_attention:
            raise UserError("MODEL.STREAMING: attention is of one tubelet at a time; there is no map of a clip")
        self.check_budget(budget)
        states, lookup_BND = self.unroll(clip_BCTHW)
        return self._features_of(states[-1], lookup_BND)

    def forward(
        self, clip_BCTHW: Tensor, budget: Budget | Sequence[int] | None = None, *, with_features: bool = False
    ) -> Output | tuple[Output, Features]:
        """Classify a normalized clip (B, C, T, H, W), in training mode after each of its steps."""
        self.check_budget(budget)
        states, lookup_BND = self._unroll_in_halves(clip_BCTHW) if self.training else self.unroll(clip_BCTHW)
        output = tuple(map(self._answer, states)) if self.training else self._answer(states[-1])
        return (output, self._features_of(states[-1], lookup_BND)) if with_features else output
