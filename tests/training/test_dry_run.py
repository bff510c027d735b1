"""The estimate of a run's memory, by hand."""

import torch
from torch import nn

from lookupvit_video.distributed.parallel import checkpoint_activations
from lookupvit_video.training.dry_run import step_bytes

MIB = 2**20


class Exponentials(nn.Module):
    """Two blocks of four exponentials, each of which keeps its result for the backward pass."""

    def __init__(self):
        super().__init__()
        self.factor = nn.Parameter(torch.ones(()))
        self.blocks = nn.Sequential(*[nn.Sequential(*[Exponential() for _ in range(4)]) for _ in range(2)])

    def forward(self, clips):
        return (self.blocks(clips * self.factor),)


class Exponential(nn.Module):
    def forward(self, tokens):
        return tokens.exp()


def test_the_memory_of_a_step_is_what_it_keeps_at_most():
    model, clips = Exponentials(), torch.zeros(2, MIB // 4)  # 1 MiB a clip
    one, two = (step_bytes(model, clips[:count], torch.float32) for count in (1, 2))
    # the clip, its product, eight exponentials, and one or two gradients in the backward pass
    assert 11 * MIB <= one <= 12.1 * MIB
    assert abs(two - 2 * one) < 4096
    assert model.factor.grad is None
    for block in model.blocks:
        checkpoint_activations(block, "full")
    assert 8 * MIB <= step_bytes(model, clips[:1], torch.float32) <= 9.1 * MIB  # one block is made again at a time
