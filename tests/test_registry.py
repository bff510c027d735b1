"""The registry of models: what names there are, and that nothing heavy is imported for them."""

import subprocess
import sys

import pytest

from lookupvit_video.config import KEYS
from lookupvit_video.registry import MODELS, VIT_SIZES, list_models, models_with


def test_the_vits_have_vits_sizes():
    """Width, blocks and heads: ViT (arXiv 2010.11929), table 1, and DeiT (2012.12877), table 1."""
    assert VIT_SIZES == {"Ti": (192, 12, 3), "S": (384, 12, 6), "B": (768, 12, 12), "L": (1024, 24, 16)}


def test_every_variant_has_a_name_of_its_own():
    names = list_models()
    assert len(set(names)) == len(names) == sum(len(entry.variants) for entry in MODELS.values())
    assert {"lookupvit_base_16x2", "vit_small_16x2", "mvit_base", "x3d_m"} <= set(names)


def test_the_config_takes_the_names_of_the_registry():
    assert KEYS["MODEL.ARCH"].choices == tuple(MODELS)


def test_capabilities_are_fields():
    assert models_with("compressed_grids") == ("lookupvit",)
    assert models_with("shards") == ("lookupvit", "vit", "mvit")
    with pytest.raises(AttributeError):
        models_with("flies")


def test_names_do_not_need_torch():
    code = "import sys, lookupvit_video.registry as r; r.list_models(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
