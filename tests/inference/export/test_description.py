import re

import pytest

from lookupvit_video.inference.export.description import RULES, STEPS, description
from tests.inference.export.test_export import CLASSES, predictor


def test_the_description_holds_the_numbers(tmp_path):
    model = predictor(tmp_path, "DATA.SAMPLING_RATE 3 DATA.TARGET_FPS 12 DATA.TEST_SHORT_SIDE 40")
    facts = description(model, batch=None, grid=None, int8=False, device=model.device)
    assert facts["input"]["shape"] == ["any", 3, 4, 32, 32]
    assert facts["output"]["shape"] == ["any", 3]
    assert facts["preprocessing"]["step_seconds"] == 0.25
    assert facts["preprocessing"]["short_side"] == 40
    assert facts["preprocessing"]["normalization"]["mean"] == [0.485, 0.456, 0.406]
    assert facts["classes"] == CLASSES
    assert facts["compressed_grid"] == "1x2x2"
    assert description(model, batch=4, grid=None, int8=True, device=model.device)["input"]["shape"][0] == 4


@pytest.mark.parametrize("sampling", ["clip", "segments"])
def test_the_steps_name_every_number_and_no_other(tmp_path, sampling):
    model = predictor(tmp_path, f"DATA.SAMPLING {sampling}")
    rules = description(model, batch=None, grid=None, int8=False, device=model.device)["preprocessing"]
    named = {name.lower() for name in re.findall(r"\b[A-Z][A-Z_]{3,}\b", " ".join(STEPS.values()))} - {"classes"}
    own = set(rules) - {"steps"} | {"step_seconds"}
    assert named == own
    assert set(RULES) <= named
