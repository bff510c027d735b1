"""Options that commands share: the same checks and words everywhere, and choices as the modules below have them."""

import argparse

import pytest

from lookupvit_video.commands import options
from lookupvit_video.commands.explain import CHANGE_COST
from lookupvit_video.commands.export import CHOICES
from lookupvit_video.commands.prepare import KINETICS, SSV
from lookupvit_video.decoding.backends import BACKENDS
from lookupvit_video.inference import timeline
from lookupvit_video.inference.export import formats
from lookupvit_video.models.attention import KERNELS
from lookupvit_video.preparation import kinetics, something_something


def test_choices_are_those_of_the_modules_below():
    """They are repeated in the commands, whose --help is not to import those modules."""
    assert tuple(BACKENDS) == options.BACKENDS
    assert KERNELS == options.KERNELS
    assert (*formats.FORMATS, "web") == CHOICES
    assert timeline.CHANGE_COST == CHANGE_COST
    assert tuple(kinetics.CLASSES) == KINETICS
    assert tuple(something_something.PUBLISHED) == SSV


@pytest.mark.parametrize(("check", "good", "bad"), [
    (options.positive, {"1": 1, "700": 700}, ["0", "-1", "1.5", "x", ""]),
    (options.natural, {"0": 0}, ["-1", "nan"]),
    (options.number(float, 0, 100), {"0": 0, "99.5": 99.5}, ["-0.1", "100.1", "nan", "inf"]),
    (options.seconds, {"0.5": 0.5, "60": 60}, ["0", "-1", "nan", "inf", "x"]),
    (options.grid, {"4x7x7": (4, 7, 7)}, ["4x7", "0x7x7", "4x7x7x7", "4 7 7", "x"]),
])  # fmt: skip
def test_checks(check, good, bad):
    assert {text: check(text) for text in good} == good
    for text in bad:
        with pytest.raises(argparse.ArgumentTypeError):
            check(text)
