"""What trains of a pretrained model, by the size of the list, the weights, and what the user says."""

import re

import pytest
import torch

from lookupvit_video.config import load_config
from lookupvit_video.errors import UserError
from lookupvit_video.models.build import build_model
from lookupvit_video.training.finetuning.method import ADAPTERS_FROM, ALL_FROM, choose_method
from tests.models.vits import saved
from tests.small import SMALL

SETTINGS = [str(part) for pair in SMALL.items() for part in pair]


def config(weights="", *more):
    found = ["MODEL.INIT_FROM", str(weights), "TRAIN.FINETUNE", "auto", "SOLVER.LAYER_DECAY", "0.75"]
    return load_config(None, [*SETTINGS, *found, *more])


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("weights")
    return {
        arch: saved(folder / f"{arch}.pt", build_model(config("", "MODEL.ARCH", arch))) for arch in ("lookupvit", "vit")
    }


@pytest.mark.parametrize(
    ("a_class", "name"),
    [(ADAPTERS_FROM - 1, "probe"), (ADAPTERS_FROM, "adapters"), (ALL_FROM - 1, "adapters"), (ALL_FROM, "all")],
)
def test_the_size_of_the_list_chooses(weights, a_class, name):
    chosen = choose_method(config(weights["lookupvit"]), set(), 3 * a_class, 1)
    assert chosen.name == name
    words = rf"fine-tuning: {name}, as there are {a_class} training videos a class, .*; to force another, set TRAIN\."
    assert re.match(words, str(chosen))
    assert "\n" not in str(chosen)
    assert chosen.settings == {
        "probe": {"TRAIN.FINETUNE": "probe", "MODEL.FREEZE_ENCODER": True, "MODEL.ADAPTER": "none",
                  "MODEL.DROP_PATH": 0.0, "TRAIN.EVAL_PERIOD": 1},
        "adapters": {"TRAIN.FINETUNE": "none", "MODEL.ADAPTER": "lora", "SOLVER.LAYER_DECAY": 1.0,
                     "SOLVER.BASE_LR": 4e-3},
        "all": {"TRAIN.FINETUNE": "none"},
    }[name]  # fmt: skip


def test_a_forced_method_stays(weights):
    chosen = choose_method(config(weights["lookupvit"], "TRAIN.FINETUNE", "adapters"), set(), 3, 1)
    assert (chosen.name, str(chosen)) == ("adapters", "fine-tuning: adapters, as TRAIN.FINETUNE says")


def test_the_command_line_comes_first(weights):
    given = {"SOLVER.BASE_LR", "TRAIN.FINETUNE"}
    chosen = choose_method(config(weights["lookupvit"]), given, 3 * ADAPTERS_FROM, 1)
    assert chosen.settings == {"MODEL.ADAPTER": "lora", "SOLVER.LAYER_DECAY": 1.0, "TRAIN.FINETUNE": "none"}


def test_settings_that_decide_leave_no_choice(weights):
    chosen = choose_method(config(weights["lookupvit"], "MODEL.ADAPTER", "adaptformer"), set(), 3, 1)
    assert (chosen.name, chosen.settings) == ("none", {"TRAIN.FINETUNE": "none"})
    assert "as MODEL.ADAPTER is set" in str(chosen)
    chosen = choose_method(config(weights["lookupvit"]), {"MODEL.FREEZE_ENCODER"}, 3, 1)  # to False
    assert "as MODEL.FREEZE_ENCODER is set" in str(chosen)


def test_all_weights_train_where_some_are_new(weights):
    assert choose_method(config(), set(), 3, 1).reason.startswith("MODEL.INIT_FROM is empty")
    chosen = choose_method(config(weights["vit"]), set(), 3, 1)
    assert (chosen.name, chosen.settings) == ("all", {"TRAIN.FINETUNE": "none"})
    assert "this project's ViT's weights have no write-back" in str(chosen)
    assert choose_method(config(weights["vit"], "MODEL.ARCH", "vit"), set(), 3, 1).name == "probe"


@pytest.mark.parametrize(
    ("processes", "more", "why"),
    [
        (2, (), "a probe is in one process"),
        (1, ("MODEL.TASK", "multi_label"), "a probe is for one label a video"),
        (1, ("MODEL.POOL", "attentive"), "MODEL.POOL without a query"),
    ],
)
def test_adapters_where_there_can_be_no_probe(weights, processes, more, why):
    chosen = choose_method(config(weights["lookupvit"], *more), set(), 3, processes)
    assert chosen.name == "adapters"
    assert why in chosen.reason


def test_a_probe_of_nothing_is_refused():
    with pytest.raises(UserError, match=r"MODEL\.INIT_FROM is empty; name the weights to probe"):
        choose_method(config("", "TRAIN.FINETUNE", "probe"), set(), 3, 1)
