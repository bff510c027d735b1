"""One step of a streaming model as a file: a tubelet and a state in, probabilities and the next state out.

Shape letters: B streams, C channels, t frames of a tubelet, H W pixels, M compressed tokens, D width, K classes.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lookupvit_video.errors import UserError
from lookupvit_video.files import atomic_write
from lookupvit_video.inference.export.export import TOLERANCE, DeployedModel, example_clips
from lookupvit_video.inference.export.formats import FORMATS, onnx_session, write_onnx
from lookupvit_video.inference.predictor import Predictor

FILES = {"pt2": "step.pt2", "onnx": "step.onnx", "aoti": "step_aoti.pt2"}  # other formats: not yet tried
INPUTS, OUTPUTS = ["tubelets", "state"], ["probabilities", "next_state"]
Step = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""uint8 tubelets (B, C, t, H, W) and float32 states (B, 2 M, D) -> probabilities (B, K) and the next states."""


class DeployedStep(nn.Module):
    """Pixels and a state in, probabilities and the next state out; a stream begins with a state of zeros."""

    def __init__(self, deployed: DeployedModel):
        super().__init__()
        self.deployed = deployed

    def forward(self, tubelets: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Take in uint8 tubelets (B, C, t, H, W) and states (B, 2 M, D)."""
        model: Any = self.deployed.model
        logits, state = model.step(self.deployed.inputs(tubelets), state)
        return self.deployed.probabilities(logits), state


def export_step(predictor: Predictor, deployed: DeployedModel, path: Path, kind: str) -> dict[str, Any]:
    """Write the step of a streaming model in one format, for any number of streams, and compare three steps of it.

    Args:
        kind: "pt2", "onnx" or "aoti".

    Returns:
        size of the file, and the largest difference of a probability or number of a state.

    Raises:
        UserError: the file's answers differ.
    """
    step, clips = DeployedStep(deployed), example_clips(predictor, 3)
    frames = predictor.window_plan.times.num_frames
    tubelets = [clips[:, :, i : i + frames] for i in range(0, clips.shape[2] - frames + 1, frames)][:3]
    state = predictor.start_state(3)
    batch = torch.export.Dim("batch")
    shapes = {"tubelets": {0: batch}, "state": {0: batch}}
    with torch.no_grad():
        program = torch.export.export(step, (tubelets[0], state), dynamic_shapes=shapes)
        with atomic_write(path) as temporary:
            if kind == "onnx":
                write_onnx(program, temporary, INPUTS, OUTPUTS)
            else:
                FORMATS[kind].write(program, temporary)
            run = load_step(temporary, kind)
            difference = _difference(run, step, tubelets, [state, state[:1]])
            if not difference <= TOLERANCE:
                raise UserError(
                    f"{path}: a value of the {kind} step differs by {difference:.2g}, more than {TOLERANCE:g}; "
                    "nothing was written"
                )
    return {"format": kind, "bytes": path.stat().st_size, "max_difference": difference}


def _difference(run: Step, step: Step, tubelets: list[Tensor], starts: list[Tensor]) -> float:
    """Return the largest difference between two ways to step, each with states of its own; nan counts as most.

    Args:
        starts: the first states (B, 2 M, D) of each comparison; B at most as of the tubelets.
    """
    found = []
    for start in starts:
        state = theirs = start
        for tubelet in tubelets:
            ours = step(tubelet[: len(start)], state)
            others = run(tubelet[: len(start)], theirs)
            found += [(a.cpu() - b.cpu()).abs().max() for a, b in zip(ours, others, strict=True)]
            state, theirs = ours[1], others[1]
    return float(torch.stack(found).max())  # Python's maximum ignores nan


def load_step(path: str | Path, kind: str) -> Step:
    """Load an exported step; only files that you trust, since those of torch contain code."""
    if kind == "onnx":
        session = onnx_session(path)

        def run(tubelets: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
            found = session.run(None, {"tubelets": tubelets.cpu().numpy(), "state": state.cpu().numpy()})
            return torch.from_numpy(found[0]), torch.from_numpy(found[1])

        return run
    if kind == "aoti":
        return torch._inductor.aoti_load_package(str(path))
    step: Step = torch.export.load(path).module()
    return step
