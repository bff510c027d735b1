"""Baselines of other families with the interface of this project's models: PyTorchVideo's MViT and X3D.

Papers: Multiscale Vision Transformers (ICCV 2021, arXiv 2104.11227); X3D: Expanding Architectures for Efficient Video
Recognition (CVPR 2020, arXiv 2004.04730). Layers and initialization are PyTorchVideo's; here they take the names of
``contract.VideoModel``: ``tokenizer`` (what comes first), ``blocks``, and the rest.
Shape letters: B batch, C channels, T frames, H W pixels, N tokens, D width, K classes.
"""

import warnings
from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor, nn

with warnings.catch_warnings(action="ignore", category=FutureWarning):  # of torch.jit, which fvcore.nn uses as it loads
    from pytorchvideo.models.vision_transformers import create_multiscale_vision_transformers
    from pytorchvideo.models.x3d import create_x3d

from lookupvit_video.errors import UserError
from lookupvit_video.models.contract import Features, Output, VideoModel
from lookupvit_video.models.tokenizer import Grid


class MViT(VideoModel):
    """Multiscale Vision Transformer: attention pools queries, keys and values; a class token is classified.

    Args:
        num_classes: K.
        num_frames: T, even.
        size: H and W in pixels, a multiple of 4.
        dim, depth: first width, and blocks. The defaults are the paper's B.
        halving: blocks that halve h and w and follow a doubling of width and heads. Not the last one: only its class
            token is read, so that its pooling of queries would learn nothing.
        stride_kv: stride of the first keys and values in h and w.
        drop_path: stochastic depth of the last block; it rises linearly from 0 (published B 16x4: 0.2).
        dropout: before the classifier (published: 0.5).
    """

    def __init__(
        self,
        *,
        num_classes: int,
        num_frames: int = 16,
        size: int = 224,
        dim: int = 96,
        depth: int = 16,
        halving: Sequence[int] = (1, 3, 14),
        stride_kv: int = 8,
        drop_path: float = 0.0,
        dropout: float = 0.0,
    ):
        super().__init__()
        if num_frames % 2 or size % 4:
            raise UserError(
                f"DATA.NUM_FRAMES is {num_frames} and DATA.TRAIN_CROP_SIZE {size}; "
                "MViT takes frames in parts of 2 and pixels in parts of 4"
            )
        network = create_multiscale_vision_transformers(
            spatial_size=size,
            temporal_size=num_frames,
            depth=depth,
            patch_embed_dim=dim,
            embed_dim_mul=[[i, 2.0] for i in halving],
            atten_head_mul=[[i, 2.0] for i in halving],
            pool_q_stride_size=[[i, 1, 2, 2] for i in halving],
            pool_kv_stride_adaptive=[1, stride_kv, stride_kv],
            pool_kvq_kernel=[3, 3, 3],
            droppath_rate_block=drop_path,
            head_dropout_rate=dropout,
            head_num_classes=num_classes,
        )
        self.clip_shape = (3, num_frames, size, size)
        positions = network.cls_positional_encoding
        self.grid: Grid = tuple(positions.patch_embed_shape)
        self.tokenizer = nn.Sequential(OrderedDict(patches=network.patch_embed, positions=positions))
        self.blocks = network.blocks
        self.head = nn.Sequential(OrderedDict(norm=network.norm_embed, classifier=network.head))

    def forward_features(self, clip_BCTHW: Tensor) -> Features:
        """Run tokenizer and blocks on a normalized clip (B, C, T, H, W)."""
        if tuple(clip_BCTHW.shape[1:]) != self.clip_shape:
            raise UserError(f"expected clips of {self.clip_shape} in the batch, got {tuple(clip_BCTHW.shape[1:])}")
        tokens, grid = self.tokenizer(clip_BCTHW), self.grid
        for block in self.blocks:
            tokens, grid = block(tokens, grid)
        return Features(tokens[:, 1:], (grid[0], grid[1], grid[2]), class_token=tokens[:, :1])  # the grid is a list

    def forward_head(self, features: Features) -> Output:
        """Classify what ``forward_features`` returned."""
        assert features.class_token is not None
        logits_BK = self.head(torch.cat([features.class_token, features.tokens], dim=1))  # as PyTorchVideo's head does
        return (logits_BK,) if self.training else logits_BK


class X3D(VideoModel):
    """Expanded 3-D network: residual blocks around depthwise convolutions. Blocks start as their shortcuts (scale 0).

    In eval mode clips may be larger than ``num_frames`` and ``size``: logits are averaged over places, as published.
    Other arguments as ``MViT``; ``size`` is at least 32, ``depth_factor`` 2.2 for XS, S and M, and 5 for L.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        num_frames: int = 16,
        size: int = 224,
        depth_factor: float = 2.2,
        dropout: float = 0.0,
    ):
        super().__init__()
        if size < 32:
            raise UserError(f"DATA.TRAIN_CROP_SIZE is {size}; X3D halves it five times, so take 32 or more")
        network = create_x3d(
            input_clip_length=num_frames,
            input_crop_size=size,
            model_num_class=num_classes,
            depth_factor=depth_factor,
            dropout_rate=dropout,
            inner_act=nn.SiLU,  # equal to PyTorchVideo's Swish, whose backward pass torch.compile cannot trace
            head_activation=None,  # raw logits
        )
        self.tokenizer, *stages, head = network.blocks
        self.blocks = nn.ModuleList(block for stage in stages for block in stage.res_blocks)
        head.pool.pool.kernel_size = tuple(map(int, head.pool.pool.kernel_size))  # torch.compile stops at NumPy's
        self.head = head

    def forward_features(self, clip_BCTHW: Tensor) -> Features:
        """Map a normalized clip (B, C, T, H, W) to the places (B, N, D) of the last feature map (B, D, t, h, w)."""
        features = self.tokenizer(clip_BCTHW)
        for block in self.blocks:
            features = block(features)
        t, h, w = features.shape[2:]
        return Features(features.flatten(2).transpose(1, 2), (t, h, w))

    def forward_head(self, features: Features) -> Output:
        """Classify what ``forward_features`` returned."""
        assert features.grid is not None
        logits_BK = self.head(features.tokens.transpose(1, 2).unflatten(2, features.grid))
        return (logits_BK,) if self.training else logits_BK
