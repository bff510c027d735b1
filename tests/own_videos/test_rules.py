"""The rules: what they choose for data sets and machines of many kinds, and that the docs list them."""

import itertools
import re
from dataclasses import replace

import pytest

from lookupvit_video.config import KEYS, get_key, load_config, with_settings
from lookupvit_video.own_videos.facts import Machine, VideoFacts
from lookupvit_video.own_videos.rules import (
    RULES,
    SCALES,
    Costs,
    Known,
    choose_settings,
    epoch_seconds,
    fixed_seconds,
)
from tests.small import ROOT

GIB = 1 << 30
FACTS = VideoFacts(train=43, val=15, test=15, classes=4, seconds=1.7, fps=15, short_side=360, decoded_bytes=20e6)
COSTS = Costs(read=0.2, again=0.01, clip=0.02, view=0.006, clip_bytes=10 << 20)
LAPTOP = Machine("cpu", 2, 4 * GIB)


def known(facts=FACTS, machine=LAPTOP, scale=0, costs=COSTS, seconds=600.0, **given):
    cfg = load_config("own_videos")
    values = {name: get_key(cfg, name) for name in KEYS if name not in RULES}
    values |= {name.replace("__", "."): value for name, value in given.items()}
    return Known(facts, machine, SCALES[machine.device][scale], values, costs, seconds)


def chosen(*args, **changes):
    return {name: value for name, (value, _) in choose_settings(known(*args, **changes)).items()}


def test_each_choice_is_a_config_that_can_be_run():
    cfg = load_config("own_videos")
    for train, seconds, fps, side, device, scale in itertools.product(
        (1, 9, 700), (0.3, 11), (5, 240), (5, 24, 50, 360), ("cpu", "cuda"), (0, -1)
    ):
        facts = replace(FACTS, train=train, seconds=seconds, fps=fps, short_side=side)
        machine = Machine(device, 4, 8 * GIB, 16 * GIB * (device == "cuda"))
        values = chosen(facts, machine, scale)
        config = with_settings(cfg, values)
        assert values.keys() == RULES.keys()
        assert config.TRAIN.BATCH_SIZE // config.AUG.NUM_SAMPLE <= train
        assert config.DATA.TRAIN_CROP_SIZE <= max(8, side)  # of videos that are smaller still, nothing is lost


def test_what_is_given_is_not_chosen_and_decides_the_rest():
    values = chosen(DATA__TRAIN_CROP_SIZE=96, DATA__NUM_FRAMES=8, AUG__NUM_SAMPLE=3)
    assert not {"DATA.TRAIN_CROP_SIZE", "DATA.NUM_FRAMES", "AUG.NUM_SAMPLE"} & values.keys()
    assert (values["DATA.TEST_CROP_SIZE"], values["MODEL.COMPRESSED_GRID"]) == (96, [2, 3, 3])
    assert values["TRAIN.BATCH_SIZE"] % 3 == 0


def test_without_costs_the_length_stays_open():
    assert "SOLVER.MAX_EPOCH" not in chosen(costs=None)
    assert "DATA.NUM_FRAMES" in chosen(costs=None)


@pytest.mark.parametrize(("changes", "name", "value"), [
    ({}, "DATA.SAMPLING", "segments"), ({"seconds": 6}, "DATA.SAMPLING", "clip"),
    ({"seconds": 0.5}, "DATA.NUM_FRAMES", 8), ({}, "DATA.NUM_FRAMES", 16),
    ({"seconds": 600}, "TEST.NUM_ENSEMBLE_VIEWS", 5), ({}, "TEST.NUM_ENSEMBLE_VIEWS", 2),
    ({}, "MODEL.TOKENIZER", "convolutional"), ({"train": 149}, "MODEL.TOKENIZER", "convolutional"),
    ({"train": 150}, "MODEL.TOKENIZER", "linear"), ({"short_side": 9}, "MODEL.TOKENIZER", "linear"),
    ({}, "MODEL.INPUT", "changes"), ({"train": 501}, "MODEL.INPUT", "frames"),
    ({}, "DATA.CACHE_VIDEOS", True), ({"decoded_bytes": 8e9}, "DATA.CACHE_VIDEOS", False),
    ({"seconds": 31}, "DATA.CACHE_VIDEOS", False),
    ({}, "DATA_LOADER.NUM_WORKERS", 0), ({"decoded_bytes": 8e9}, "DATA_LOADER.NUM_WORKERS", 1),
    ({"train": 9}, "AUG.NUM_SAMPLE", 4), ({"train": 65}, "AUG.NUM_SAMPLE", 1),
    ({"train": 65, "decoded_bytes": 8e9}, "AUG.NUM_SAMPLE", 2),
    ({"train": 65, "decoded_bytes": 8e9, "seconds": 31}, "AUG.NUM_SAMPLE", 4),
    ({}, "TRAIN.BATCH_SIZE", 8), ({"train": 500}, "TRAIN.BATCH_SIZE", 16), ({"train": 2000}, "TRAIN.BATCH_SIZE", 32),
    ({}, "TRAIN.ACCUMULATION_STEPS", 1), ({}, "SOLVER.MAX_EPOCH", 60), ({"train": 3}, "SOLVER.MAX_EPOCH", 333),
])  # fmt: skip
def test_choices(changes, name, value):
    assert chosen(replace(FACTS, **changes))[name] == value


def test_pretraining_takes_the_linear_tokenizer():
    assert chosen(TRAIN__TASK="masked")["MODEL.TOKENIZER"] == "linear"
    for arch in ("mvit", "x3d"):  # which have no tubelets
        found = chosen(MODEL__ARCH=arch)
        assert (found["MODEL.INPUT"], found["MODEL.TOKENIZER"]) == ("frames", "linear")


def test_memory_that_is_short():
    tight = Machine("cpu", 8, GIB // 2)
    values = chosen(replace(FACTS, train=3000, decoded_bytes=8e9), tight, costs=COSTS._replace(clip_bytes=GIB // 100))
    assert (values["DATA.CACHE_VIDEOS"], values["DATA_LOADER.NUM_WORKERS"]) == (False, 1)
    assert values["TRAIN.BATCH_SIZE"] / values["TRAIN.ACCUMULATION_STEPS"] * GIB / 100 < 0.4 * tight.memory


@pytest.mark.parametrize("seconds", [20, 60, 240])
@pytest.mark.parametrize("changes", [{}, {"train": 400, "val": 100, "decoded_bytes": 8e9}])
def test_the_prediction_keeps_to_the_time(seconds, changes):
    case = known(replace(FACTS, **changes), seconds=seconds)
    values = {name: value for name, (value, _) in choose_settings(case).items()}
    case = replace(case, values={**case.values, **values})
    predicted = fixed_seconds(case) + values["SOLVER.MAX_EPOCH"] * epoch_seconds(case)
    assert predicted <= seconds or values["SOLVER.MAX_EPOCH"] == 1


def test_several_processes_share_a_step():
    values = chosen(machine=Machine("cpu", 2, 4 * GIB, processes=3))
    assert values["TRAIN.BATCH_SIZE"] // values["AUG.NUM_SAMPLE"] % 3 == 0


def test_the_docs_have_a_row_for_each_rule():
    text = (ROOT / "docs" / "own_videos.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `([A-Z_.]+)` \| (.+?) \|$", text, re.MULTILINE))
    assert rows == {key: " ".join((rule.__doc__ or "").split()) for key, rule in RULES.items()}
