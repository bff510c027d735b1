"""A temperature in the attention's softmax at test time, as a defence (Gu et al., ECCV 2022, arXiv 2111.10659)."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn

from lookupvit_video.models.attention import BidirectionalCrossAttention, SelfAttention
from lookupvit_video.models.kernels import Lookup


@contextmanager
def tempered(model: nn.Module, temperature: float) -> Iterator[None]:
    """Divide logits by a temperature while the block is active; above 1, attention is spread over more tokens.

    In a LookupViT those of the gather alone: the write-back with its own softmax and the compressed tokens'
    self-attention stay. In other models those of every self-attention.
    """
    crossing = [module for module in model.modules() if isinstance(module, BidirectionalCrossAttention)]
    chosen: list[Any] = [*crossing] or [module for module in model.modules() if isinstance(module, SelfAttention)]
    with ExitStack() as stack:
        if temperature != 1:
            for module in chosen:
                hook = module.norm_query.register_forward_hook(partial(_divided, temperature))
                stack.callback(hook.remove)
            for module in crossing:
                if module.reverse == "softmax":
                    module.write_back = partial(_untempered, module.write_back, temperature)  # type: ignore[method-assign]
                    stack.callback(delattr, module, "write_back")
        yield


def _divided(temperature: float, _module: nn.Module, _inputs: Any, queries: Tensor) -> Tensor:
    return queries / temperature


def _untempered(write_back: Any, temperature: float, compressed_BMD: Tensor, lookup: Lookup) -> Tensor:
    scores = None if lookup.scores is None else lookup.scores * temperature
    own = lookup._replace(queries=lookup.queries * temperature, scores=scores, kept=None, lse=None)
    update: Tensor = write_back(compressed_BMD, own)
    return update
