"""Weights that others trained, loaded into this project's models: ViT, MAE, DINOv2, CLIP, VideoMAE, ViViT, and our own.

``load``: ``init_from`` and its ``Report``; ``files``: files and the Hugging Face Hub; ``names``: whose names are
understood; ``families``: what each family was trained with; ``places``: a dense ViT becomes a LookupViT; ``fitting``:
kernels and positions of another size.
"""

from lookupvit_video.models.pretrained.files import load_safetensors, read_state
from lookupvit_video.models.pretrained.load import init_from
from lookupvit_video.models.pretrained.names import to_vit_names
from lookupvit_video.models.pretrained.report import Report

__all__ = ["Report", "init_from", "load_safetensors", "read_state", "to_vit_names"]
