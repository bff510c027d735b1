"""What trains of a pretrained model: classifiers on cached features, adapters, or all weights; by the list's size."""

import logging
from collections.abc import Mapping
from typing import Any, NamedTuple

from lookupvit_video.config import Section, with_settings
from lookupvit_video.data.manifest import load_split
from lookupvit_video.distributed.world import World
from lookupvit_video.errors import UserError
from lookupvit_video.models.pretrained import read_state, to_vit_names
from lookupvit_video.models.pretrained.families import OWN_LOOKUPVIT

logger = logging.getLogger(__name__)
ADAPTERS_FROM, ALL_FROM = 5, 25
"""Training videos a class; measured in docs/finetuning.md."""
ADAPTER_RATE = 4
"""Learning rate of adapters, as a multiple of that for all weights."""
PROBE = {"TRAIN.FINETUNE": "probe", "MODEL.FREEZE_ENCODER": True, "MODEL.ADAPTER": "none", "MODEL.DROP_PATH": 0.0,
         "TRAIN.EVAL_PERIOD": 1}  # fmt: skip
_DECIDING = ("MODEL.ADAPTER", "MODEL.FREEZE_ENCODER", "MODEL.FREEZE_SPATIAL")


class Method(NamedTuple):
    """What trains, the settings for it, and why it was chosen."""

    name: str
    settings: Mapping[str, Any]
    reason: str

    def __str__(self) -> str:
        return f"fine-tuning: {self.name}, as {self.reason}"


def with_method(cfg: Section, given: set[str], classes: list[str], world: World) -> Section:
    """Return a config with what TRAIN.FINETUNE stands for on its training list; see ``choose_method``."""
    videos = load_split(cfg, "train", classes, check=False)
    method = choose_method(cfg, given, len(videos), world.size)
    logger.info("%s", method)
    return with_settings(cfg, method.settings)


def choose_method(cfg: Section, given: set[str], videos: int, processes: int) -> Method:
    """Return what TRAIN.FINETUNE says, or, where it is auto, what suits the list and the weights.

    Args:
        given: keys of the command line, which no method changes.
        videos: in the training list.

    Raises:
        UserError: the weights cannot be read, or a probe of none is wanted.
    """
    name, reason = cfg.TRAIN.FINETUNE, "TRAIN.FINETUNE says"
    if name == "auto":
        name, why = _chosen(cfg, given, videos / cfg.MODEL.NUM_CLASSES, processes)
        reason = f"{why}; to force another, set TRAIN.FINETUNE to probe, adapters, all or none"
    if name == "probe" and not cfg.MODEL.INIT_FROM:
        raise UserError("MODEL.INIT_FROM is empty; name the weights to probe")
    values = _settings(name, cfg.SOLVER.BASE_LR)
    return Method(name, {key: value for key, value in values.items() if key not in given - {"TRAIN.FINETUNE"}}, reason)


def _chosen(cfg: Section, given: set[str], a_class: float, processes: int) -> tuple[str, str]:
    model = cfg.MODEL
    set_ones = [key for key in _DECIDING if key in given or model[key.removeprefix("MODEL.")] not in ("none", False)]
    if set_ones:
        return "none", f"{set_ones[0]} is set"
    if not model.INIT_FROM:
        return "all", "MODEL.INIT_FROM is empty"
    kind = to_vit_names(read_state(model.INIT_FROM))[1]
    if model.ARCH == "lookupvit" and kind != OWN_LOOKUPVIT:
        return "all", f"{kind}'s weights have no write-back to the lookup tokens"
    size = f"there are {a_class:.3g} training videos a class"
    if a_class >= ALL_FROM:
        return "all", f"{size}, {ALL_FROM} or more"
    if a_class >= ADAPTERS_FROM:
        return "adapters", f"{size}, fewer than {ALL_FROM}"
    if processes > 1 or model.TASK != "single_label" or model.POOL == "attentive":
        why = "in one process" if processes > 1 else "for one label a video and MODEL.POOL without a query"
        return "adapters", f"{size}, and a probe is {why}"
    return "probe", f"{size}, fewer than {ADAPTERS_FROM}"


def _settings(name: str, rate: float) -> dict[str, Any]:
    """Return the settings of a method; what they say completely is then no longer TRAIN.FINETUNE's to say."""
    if name == "probe":
        return PROBE
    adapters = {"MODEL.ADAPTER": "lora", "SOLVER.LAYER_DECAY": 1.0, "SOLVER.BASE_LR": ADAPTER_RATE * rate}
    return {"TRAIN.FINETUNE": "none", **(adapters if name == "adapters" else {})}
