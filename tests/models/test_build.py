"""From a config to a model. What each model then does: test_models.py."""

import pytest
import torch

from lookupvit_video.config import CHOICES, load_config
from lookupvit_video.models.build import compressed_grids
from tests.models.test_models import MODELS, SMALL, clips, config, every_model, small_model


def test_the_names_in_the_contract_are_what_a_config_can_name():
    """Every choice that changes a model must stand in a model of test_models.py."""
    models = [config(name).MODEL for name in MODELS]
    keys = "ARCH ENCODER RESIZE REVERSE_WEIGHTS HEADS INFERENCE_HEAD POOL TOKENS ACTIVATION"
    for key in keys.split():
        assert all(choice in [model[key] for model in models] for choice in CHOICES[f"MODEL.{key}"]), key
    for key in ("QK_NORM", "LAYER_SCALE", "COMPRESSED_GRIDS", "FREEZE_ENCODER"):
        assert any(model[key] for model in models), key


def test_grids_of_training_and_test_are_named_once_the_default_first():
    cfg = load_config(None, [*SMALL, "MODEL.COMPRESSED_GRIDS", "[[2,1,1],[1,2,2]]", "TEST.GRIDS", "[[2,2,2],[2,1,1]]"])
    assert compressed_grids(cfg) == [(1, 2, 2), (2, 1, 1), (2, 2, 2)]


@pytest.mark.parametrize(
    "override",
    [
        "VARIANT S MODEL.DIM 0", "DIM 48", "DEPTH 1", "NUM_HEADS 2", "NUM_CLASSES 4", "TUBELET [4,8,8]",
        "COMPRESSED_GRID [1,2,1]", "RESIZE trilinear", "REVERSE_WEIGHTS scaled", "REVERSE_WEIGHTS transpose",
        "HEADS ['lookup']", "INFERENCE_HEAD lookup", "POOL average_norm", "QK_NORM True", "LAYER_SCALE 0.1",
        "ACTIVATION gelu_tanh", "ACTIVATION quick_gelu", "NORM_EPS 1e-3",
    ],
)  # fmt: skip
@pytest.mark.parametrize("name", ["lookupvit", "factorised"])
def test_what_a_config_sets_reaches_the_model(name, override):
    if name == "factorised":
        override = override.replace("[1,2,1]", "[2,1]").replace("[4,8,8]", "[1,8,8]")
    model, changed = small_model(name).eval(), small_model(name, f"MODEL.{override}").eval()
    with torch.no_grad():
        assert not torch.equal(model(clips()), changed(clips()))  # from the same seed


@every_model
def test_weights_follow_from_the_seed_and_are_finite(name):
    model, same = small_model(name), small_model(name)
    other = small_model(name, seed=1)
    differ = 0
    for (key, a), b, c in zip(
        model.state_dict().items(), same.state_dict().values(), other.state_dict().values(), strict=True
    ):
        assert torch.equal(a, b), key
        assert a.isfinite().all(), key
        differ += not torch.equal(a, c)
    assert differ > 10
