"""What every model of the registry does: the one interface that training, test, prediction and export use.

Shape letters: B batch, C channels, T frames, H W pixels, N lookup tokens, M compressed tokens, D width, K classes.
"""

import math
import re
from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor, nn

from lookupvit_video.errors import UserError
from lookupvit_video.models.tokenizer import Grid

Output = Tensor | tuple[Tensor, ...]
"""Logits (B, K) in eval mode; in training mode a tuple with those of each head, for a loss that averages over heads."""
NOT_DECAYED = ("positions", "class_token", "registers", "attentive.query", "positional_encoding")


class Features(NamedTuple):
    """What a model makes of a clip before its heads and their norms; tokens in t, h, w order of their grid."""

    tokens: Tensor
    """(B, N, D), without the class token."""
    grid: Grid | None
    """None where tokens were dropped or merged."""
    class_token: Tensor | None = None
    """(B, 1, D)"""
    compressed: Tensor | None = None
    """(B, M, D), of models with compressed tokens."""
    compressed_grid: Grid | None = None
    attention: Sequence[Tensor] = ()
    """Per block (B, heads, M, N), factorized (B t, heads, M / t, N / t), where requested."""
    blocks: int = 0
    """How many blocks were run, where an early exit classifies; 0: all."""
    by_block: Sequence[tuple[Tensor, Tensor | None]] = ()
    """Where requested, the lookup tokens after each block that changed them: those it worked on (G, n, D), in G = B
    groups, factorized B t, and which of their group's these are (G, n), in rising order; None: all."""


class VideoModel(nn.Module):
    """Base class of all models: ``tokenizer``, ``blocks`` and ``head`` (or ``heads``), called one after the other.

    A subclass sets these three, takes keyword arguments (see ``ModelSpec.arguments``), and defines
    ``forward_features``. The names of its parameters decide their weight decay and layer.
    """

    tokenizer: nn.Module
    blocks: nn.ModuleList | nn.Sequential
    head: nn.Module
    grids: tuple[tuple[int, ...], ...] = ()
    """The compressed grids of the budgets that ``forward`` takes, the default one first; empty: it takes none."""
    output_weights: tuple[float, ...] | None = None
    """What each of the logits of training mode weighs in the loss; they sum to 1. None: all the same."""

    def forward_features(self, clip_BCTHW: Tensor) -> Features:
        """Run tokenizer and blocks on a normalized clip (B, C, T, H, W)."""
        raise NotImplementedError

    def forward_head(self, features: Features) -> Output:
        """Classify what ``forward_features`` returned."""
        logits_BK = self.head(features.tokens if features.class_token is None else features.class_token)
        return (logits_BK,) if self.training else logits_BK

    def forward(self, clip_BCTHW: Tensor, *, with_features: bool = False) -> Output | tuple[Output, Features]:
        """Classify a normalized clip (B, C, T, H, W).

        Args:
            with_features: return (logits, features), which distillation compares.
        """
        features = self.forward_features(clip_BCTHW)
        output = self.forward_head(features)
        return (output, features) if with_features else output

    def normed_tokens(self, features: Features, name: str) -> Tensor:
        """Return the "lookup" or "compressed" tokens of ``forward_features`` after the norm of their classifier.

        Raises:
            UserError: the model has no such tokens, or no norm for them.
        """
        raise UserError(f"{name} tokens: {type(self).__name__} has no norm for single tokens; use pooled")

    def classifiers(self) -> list[nn.Module]:
        """Return every head."""
        return [self.head]

    def reset_classifier(self, num_classes: int) -> None:
        """Replace the last linear layer of each head by a fresh one for ``num_classes`` classes."""
        for head in self.classifiers():
            name, old = [item for item in head.named_modules() if isinstance(item[1], nn.Linear)][-1]
            fresh = nn.Linear(old.in_features, num_classes).to(old.weight)
            nn.init.trunc_normal_(fresh.weight, std=0.02)
            nn.init.zeros_(fresh.bias)
            head.set_submodule(name, fresh)

    def no_weight_decay(self) -> set[str]:
        """Return the parameters with several axes that do not decay: positions and learned tokens."""
        return {name for name, _ in self.named_parameters() if any(part in name for part in NOT_DECAYED)}

    def group_matcher(self) -> dict[str, list[tuple[str, tuple[int, ...] | None]]]:
        """Return patterns of parameter names from the input upwards, as timm reads them; the rest is on top.

        Adapters are on top as well, wherever they are: like the heads they are new, and learn at the full rate.
        """
        old = r"(?!.*(?:\.adapter\.|\.lora_))"
        return {
            "stem": [(rf"{old}(?:tokenizer\.|class_token|registers)", None)],
            "blocks": [(rf"{old}blocks\.(\d+)\.", None)],
            "temporal": [
                (r"temporal\.positions|frame_norm", (0,)),  # with its first block
                (rf"{old}temporal\.blocks\.(\d+)\.", None),
            ],
        }

    def layer_ids(self) -> dict[str, int]:
        """Return the layer of each parameter by ``group_matcher``: 0 the stem, then the blocks, at last the heads.

        BEiT (arXiv 2106.08254) and MAE count so.
        """
        keys: dict[str, tuple[float, ...]] = {}
        for name, _ in self.named_parameters():
            keys[name] = (math.inf,)
            for ordinal, patterns in enumerate(self.group_matcher().values()):
                for pattern, suffix in patterns:
                    if match := re.match(pattern, name):
                        keys[name] = (ordinal, *map(int, match.groups()), *(suffix or ()))
        ranks = {key: rank for rank, key in enumerate(sorted(set(keys.values())))}
        return {name: ranks[key] for name, key in keys.items()}
