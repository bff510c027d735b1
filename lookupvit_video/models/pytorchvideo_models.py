"""Baselines of other families with the interface of this project's models: PyTorchVideo's MViT and X3D.

Papers: Multiscale Vision Transformers (ICCV 2021, arXiv 2104.11227); X3D: Expanding Architectures for Efficient Video
Recognition (CVPR 2020, arXiv 2004.04730). Layers and initialisation are PyTorchVideo's; here they take the names that
``training/optim.py`` knows: ``tokenizer`` (what comes first), ``blocks``, and the rest.
Shape letters: B batch, C channels, T frames, H W pixels, N tokens, D width, K classes.
"""

from collections import OrderedDict
from collections.abc import Sequence

from pytorchvideo.models.vision_transformers import create_multiscale_vision_transformers
from pytorchvideo.models.x3d import create_x3d
from torch import Tensor, nn

from lookupvit_video.errors import UserError
from lookupvit_video.models.tokenizer import Grid
from lookupvit_video.models.vit import DenseFeatures


class MViT(nn.Module):
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

    def _run_blocks(self, clip_BCTHW: Tensor) -> tuple[Tensor, Grid]:
        """Return class token and tokens (B, 1 + N, D), and the grid of the N."""
        if tuple(clip_BCTHW.shape[1:]) != self.clip_shape:
            raise UserError(f"expected clips of {self.clip_shape} in the batch, got {tuple(clip_BCTHW.shape[1:])}")
        tokens, grid = self.tokenizer(clip_BCTHW), self.grid
        for block in self.blocks:
            tokens, grid = block(tokens, grid)
        return tokens, (grid[0], grid[1], grid[2])  # the blocks return a list

    def forward_features(self, clip_BCTHW: Tensor) -> DenseFeatures:
        """Map a normalised clip (B, C, T, H, W) to tokens (B, N, D), before the head, and their grid."""
        tokens, grid = self._run_blocks(clip_BCTHW)
        return DenseFeatures(tokens[:, 1:], grid)

    def forward(self, clip_BCTHW: Tensor) -> tuple[Tensor, ...] | Tensor:
        """Classify a normalised clip: logits (B, K), in training mode as a tuple of one (see ``LookupViT``)."""
        logits_BK = self.head(self._run_blocks(clip_BCTHW)[0])
        return (logits_BK,) if self.training else logits_BK


class X3D(nn.Module):
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

    def _run_blocks(self, clip_BCTHW: Tensor) -> Tensor:
        """Return the last feature map (B, D, t, h, w)."""
        features = self.tokenizer(clip_BCTHW)
        for block in self.blocks:
            features = block(features)
        return features

    def forward_features(self, clip_BCTHW: Tensor) -> DenseFeatures:
        """Map a normalised clip (B, C, T, H, W) to the places (B, N, D) of the last feature map, and their grid."""
        features = self._run_blocks(clip_BCTHW)
        t, h, w = features.shape[2:]
        return DenseFeatures(features.flatten(2).transpose(1, 2), (t, h, w))

    def forward(self, clip_BCTHW: Tensor) -> tuple[Tensor, ...] | Tensor:
        """Classify a normalised clip: logits (B, K), in training mode as a tuple of one (see ``LookupViT``)."""
        logits_BK = self.head(self._run_blocks(clip_BCTHW))
        return (logits_BK,) if self.training else logits_BK
