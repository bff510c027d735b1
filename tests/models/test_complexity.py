"""Measured multiply-accumulates = closed form = the published figures."""

import logging
from collections import Counter

import pytest
import torch
from fvcore.nn import FlopCountAnalysis

from lookupvit_video.models.blocks import LookupViTBlock, TransformerBlock
from lookupvit_video.models.complexity import (
    count_parameters,
    lookupvit_block_macs,
    lookupvit_macs,
    measured_macs,
    vit_block_macs,
    vit_macs,
)
from lookupvit_video.models.lookupvit import LookupViT
from lookupvit_video.models.vit import ViT

BASE = {"tubelet": (2, 16, 16), "dim": 768, "depth": 12}


def close(got, want, tolerance):
    assert abs(got / want - 1) <= tolerance, f"{got} is not within {tolerance:.1%} of {want}"


@pytest.mark.parametrize(
    ("frames", "compressed_grid", "gmacs"),
    [
        (16, (2, 5, 5), 53.8), (16, (2, 7, 7), 61.1), (16, (4, 7, 7), 76.3), (16, (8, 7, 7), 107.7),
        (16, (8, 10, 10), 178),
        (32, (4, 5, 5), 112), (32, (4, 7, 7), 131), (32, (8, 7, 7), 171), (32, (16, 7, 7), 255),
    ],
)  # fmt: skip
def test_joint_lookupvit_table(frames, compressed_grid, gmacs):
    macs = lookupvit_macs(grid=(frames // 2, 14, 14), compressed_grid=compressed_grid, num_classes=400, **BASE)
    close(macs / 1e9, gmacs, 0.01)


@pytest.mark.parametrize(("frames", "gmacs"), [(16, 180.3), (32, 451.3)])
def test_dense_table(frames, gmacs):
    close(vit_macs(grid=(frames // 2, 14, 14), num_classes=400, **BASE) / 1e9, gmacs, 0.01)


@pytest.mark.parametrize(
    ("size", "grid", "gmacs"),
    [(224, 3, 6.7), (224, 5, 8.5), (224, 7, 11.2), (224, 10, 17.0), (384, 3, 17.8), (384, 5, 19.7), (384, 7, 22.7),
     (384, 10, 29.0)],
)  # fmt: skip
def test_image_table(size, grid, gmacs):
    macs = lookupvit_macs(
        grid=(1, size // 16, size // 16), compressed_grid=(1, grid, grid), tubelet=(1, 16, 16), dim=768, depth=12,
        num_classes=1000,
    )  # fmt: skip
    close(macs / 1e9, gmacs, 0.01)


def test_measured_equals_closed_form_for_whole_models_at_base_width():
    kwargs = {"num_classes": 400, "num_frames": 16, "size": 224, "dim": 768, "depth": 1, "num_heads": 12}
    clip = torch.zeros(1, 3, 16, 224, 224)
    shape = {"grid": (8, 14, 14), "tubelet": (2, 16, 16), "dim": 768, "depth": 1, "num_classes": 400}
    close(measured_macs(LookupViT(**kwargs), clip), lookupvit_macs(compressed_grid=(4, 7, 7), **shape), 0.001)
    close(measured_macs(ViT(**kwargs), clip), vit_macs(**shape), 0.001)


def test_measured_counts_attention_and_leaves_the_mode_alone():
    block = TransformerBlock(24, 3).train()
    assert measured_macs(block, torch.zeros(1, 500, 24)) == vit_block_macs(500, 24)
    assert block.training


def test_fvcore_counts_the_lookup_block_alike():
    logging.getLogger("fvcore.nn.jit_analysis").setLevel(logging.ERROR)
    block = LookupViTBlock(48, 3).eval()
    analysis = FlopCountAnalysis(block, (torch.zeros(1, 16, 48), torch.zeros(1, 200, 48)))
    # fvcore counts norms, which the closed form leaves out, and not SDPA: 2 M^2 D for the refinement.
    analysis.set_op_handle("aten::layer_norm", lambda inputs, outputs: Counter())
    assert analysis.total() + 2 * 16 * 16 * 48 == lookupvit_block_macs(200, 16, 48)


def test_base_block_parameters():
    assert 19 * 12 * 768**2 == pytest.approx(134.5e6, rel=1e-3)
    assert count_parameters(TransformerBlock(768, 12)) * 12 == pytest.approx(84.9e6 + 12 * 13 * 768, rel=1e-3)
