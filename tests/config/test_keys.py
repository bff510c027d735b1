"""Each key is declared once, with its reason; each of its rules, violated once, gives an error that names the key."""

import re

import pytest

from lookupvit_video.config import KEYS, load_config
from lookupvit_video.config.checks import check_value
from lookupvit_video.errors import UserError


def with_number(default, number):
    """Text of a value of the default's type with a certain first number."""
    if isinstance(default, list):
        return str([number, *default[1:]])
    return str(number)


def violations():
    """(key, text of a value, what the error says) for every rule of every key."""
    for name, key in KEYS.items():
        sample = [key.item] if key.item is not None else key.default
        first = sample
        while isinstance(first, list):
            first = first[0]
        step = 0.001 if isinstance(first, float) else 1

        def text(number, sample=sample):
            return str([[number]]) if sample == [[1]] else with_number(sample, number)

        if key.choices:
            wrong = (
                "[nonsense]" if isinstance(key.default, list) else "2" if isinstance(key.default, int) else "nonsense"
            )
            yield name, wrong, "choose one of "
        if key.lengths:
            yield name, str(list(key.default) * 2), "it takes "
        if key.at_least is not None:
            yield name, text(key.at_least - step), f"it must be at least {key.at_least}"
        if key.above is not None:
            yield name, text(key.above), f"it must be above {key.above}"
        if key.at_most is not None:
            yield name, text(key.at_most + step), f"it must be at most {key.at_most}"
        if key.below is not None:
            yield name, text(float(key.below)), f"it must be below {key.below}"


@pytest.mark.parametrize(("name", "text", "message"), list(violations()))
def test_a_rule_that_is_violated_gives_an_error_that_names_the_key(name, text, message):
    with pytest.raises(UserError, match=rf"^{re.escape(name)} is .*{re.escape(message)}"):
        load_config(None, [name, text])


def bounds():
    """(key, number): each bound itself, which is allowed, for keys that are numbers."""
    for name, key in KEYS.items():
        for bound in (key.at_least, key.at_most):
            if bound is not None and isinstance(key.default, (int, float)):
                yield name, type(key.default)(bound)


@pytest.mark.parametrize(("name", "number"), list(bounds()))
def test_a_bound_itself_is_allowed(name, number):
    check_value(name, KEYS[name], number)


# A value other than the default, for keys that are no switches; settings that do not fit to what a key needs.
CHANGED = {
    "TEST.GRIDS": "[[1,1,1]]", "MODEL.COMPRESSED_GRIDS": "[[1,1,1]]", "MODEL.TOKENS": "merge", "MODEL.ADAPTER": "lora",
    "MODEL.TEMPORAL_INIT": "identity", "MODEL.DROP_PATH": "0.1", "DISTILL.FEATURE_WEIGHT": "1",
    "DISTILL.BLOCK_WEIGHT": "1",
    "TRAIN.ACTIVATION_CHECKPOINTING": "full", "DATA.SAMPLER": "balanced", "MODEL.EXITS": "[1]",
    "MODEL.LOOKUP_CONV": "[3,3,3]", "MODEL.KEEP": "[1,0.5]", "MODEL.KEEPS": "[[1,0.5]]", "MODEL.KEEP_BY": "random",
    "MODEL.REGISTERS": "4", "TRAIN.FINETUNE": "auto",
}  # fmt: skip
UNMET = {
    "MODEL.TASK": ("multi_label",),
    "MODEL.ARCH": ("x3d",),
    "MODEL.ENCODER": ("joint", "factorised"),
    "TRAIN.PARALLEL": ("ddp",),
    "TRAIN.TASK": ("masked",),
    "MODEL.TOKENS": ("resize",),
}


def unmet_needs():
    """(key, its value, another key and its value, which does not fit)."""
    for name, key in KEYS.items():
        for need in key.needs:
            value = need.value or CHANGED.get(name, "True")
            for other, choices in need.others.items():
                yield name, value, other, next(choice for choice in UNMET[other] if choice not in choices)


@pytest.mark.parametrize(("name", "value", "other", "unmet"), list(unmet_needs()))
def test_a_key_that_is_only_for_others_says_so(name, value, other, unmet):
    with pytest.raises(UserError, match=rf"^{re.escape(name)} .* is only for .*; .*{re.escape(other)} is {unmet}"):
        load_config(None, [name, value, other, unmet])


def test_every_key_has_a_reason():
    assert [name for name, key in KEYS.items() if len(key.reason) < 5] == []


def test_rules_name_keys_and_values_that_exist():
    for key in KEYS.values():
        for need in key.needs:
            for other, choices in need.others.items():
                assert set(choices) <= set(KEYS[other].choices)
            assert need.value is None or need.value in key.choices
