"""The exported step of a streaming model: its own states, any number of streams, the checkpoint's answers."""

import json

import pytest
import torch

from lookupvit_video.commands.export import write_steps
from lookupvit_video.errors import UserError
from lookupvit_video.inference.export import step as step_module
from lookupvit_video.inference.export.export import deployed_model
from lookupvit_video.inference.export.step import export_step, load_step
from tests.inference.export.test_export import predictor
from tests.models.test_models import STREAMING
from tests.small import call_tool

LONG = f"{STREAMING} DATA.NUM_FRAMES 8 MODEL.DEPTH 1"


def tubelets(batch, count=4):
    generator = torch.Generator().manual_seed(2)
    return torch.randint(0, 256, (count, batch, 3, 2, 32, 32), dtype=torch.uint8, generator=generator)


def check(folder, kind):
    model = predictor(folder, LONG)
    found = export_step(model, deployed_model(model), folder / "x", kind)
    assert found == {"format": kind, "bytes": (folder / "x").stat().st_size, "max_difference": found["max_difference"]}
    run = load_step(folder / "x", kind)
    for batch in (1, 4):
        ours = theirs = model.start_state(batch)
        for tubelet in tubelets(batch):
            wanted, ours = model.predict_step(tubelet, ours)
            answer, theirs = run(tubelet, theirs)
            torch.testing.assert_close(answer, wanted, rtol=0, atol=1e-4)
        torch.testing.assert_close(theirs, ours, rtol=0, atol=1e-4)


def test_torch_export_steps_as_the_checkpoint_does(tmp_path):
    check(tmp_path, "pt2")


def test_onnx_steps_as_the_checkpoint_does(tmp_path):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    check(tmp_path, "onnx")


@pytest.mark.parametrize("shift", [2e-4, float("nan")])
@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("batch", [1, 3])
def test_a_step_that_answers_otherwise_is_not_written(tmp_path, monkeypatch, which, shift, batch):
    model = predictor(tmp_path, LONG)
    deployed = deployed_model(model)

    def load(path, kind):
        step = step_module.DeployedStep(deployed)

        def run(tubelet, state):
            found = list(step(tubelet, state))
            found[which] = found[which] + shift if len(state) == batch else found[which]
            return tuple(found)

        return run

    monkeypatch.setattr(step_module, "load_step", load)
    with pytest.raises(UserError, match=r"of the pt2 step differs by .*; nothing was written"):
        export_step(model, deployed, tmp_path / "x", "pt2")
    assert not (tmp_path / "x").exists()


def test_the_command_writes_the_step_of_a_streaming_checkpoint_too(tmp_path, capsys):
    predictor(tmp_path, LONG)
    call_tool("tools/export.py", "--checkpoint", tmp_path / "model.pt", "--out", tmp_path / "out")
    facts = json.loads((tmp_path / "out" / "model.json").read_text())["step"]
    assert (tmp_path / "out" / "step.pt2").exists()
    assert facts["state"] == [8, 24]
    assert facts["frames"] == 2
    assert facts["inputs"] == ["tubelets", "state"]
    assert list(facts["files"]) == ["step.pt2"]


def test_formats_without_a_step_are_told(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(step_module, "export_step", lambda *given: {"bytes": 5, "max_difference": 0.0})
    facts = write_steps(predictor(tmp_path, LONG), None, tmp_path, ["openvino", "pt2"])
    assert list(facts["files"]) == ["step.pt2"]
    assert "openvino: the model of a clip only; a step is written as pt2, onnx, aoti" in capsys.readouterr().out
