"""What the page shows for an uploaded video: the answer, where the model looked, a timeline, the time of each step.

Nothing here depends on Gradio; ``lookupvit_video.inference.page.gradio_page`` does.
"""

import copy
import logging
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import perf_counter
from typing import Any

from lookupvit_video.decoding.backends import DecodeError
from lookupvit_video.errors import RunFailure, UserError
from lookupvit_video.inference.annotate import write_overlay
from lookupvit_video.inference.budget import load_cascade
from lookupvit_video.inference.draw import draw_prediction, draw_timeline
from lookupvit_video.inference.explain import explain_attention, heat_maps
from lookupvit_video.inference.page.upload import Limits, Upload, read_upload
from lookupvit_video.inference.prediction import Prediction
from lookupvit_video.inference.predictor import Predictor
from lookupvit_video.inference.timeline import find_segments, plan_windows, read_timeline
from lookupvit_video.inference.views import Views
from lookupvit_video.models.budget import parse_budget
from lookupvit_video.text import one_line, printable, shortened

logger = logging.getLogger(__name__)
ADAPTIVE = "adaptive"
MAX_WINDOWS = 200  # of a timeline: someone waits for it


@dataclass(frozen=True)
class Shown:
    """What the page shows after a step."""

    status: str
    """One line."""
    failed: bool = False
    """The line reports why the answer is missing or incomplete."""
    classes: dict[str, float] = field(default_factory=dict)
    """Probability of the likeliest classes."""
    numbers: tuple[int, ...] = ()
    """Their places in the class list."""
    steps: tuple[tuple[str, float], ...] = ()
    """Each step and its seconds."""
    sheet: Path | None = None
    """PNG: frames, heat maps, classes."""
    overlay: Path | None = None
    """mp4: frames next to the same under a heat map; models with compressed tokens only."""
    timeline: Path | None = None
    """PNG; only of videos longer than a clip."""

    def after(self, status: str, step: str, began: float, **found: Any) -> "Shown":
        """Return what is shown once a step is done; ``began`` is its start by ``perf_counter``."""
        return replace(self, status=status, steps=(*self.steps, (step, perf_counter() - began)), **found)


class Page:
    """A model, and limits on uploads.

    Args:
        topk: classes shown.
        num_views, num_crops: clips in time, crops in space; None: as the checkpoint was tested.
        timeout: seconds for inspecting a file, for opening it, for decoding its clips, and for its timeline.
        calibration: file of ``lookupvit calibrate``; None: no adaptive budget.

    Raises:
        UserError: a calibration of another checkpoint, views that do not fit into memory.
    """

    def __init__(
        self,
        predictor: Predictor,
        limits: Limits,
        *,
        topk: int = 5,
        num_views: int | None = None,
        num_crops: int | None = None,
        timeout: float = 60.0,
        calibration: str | None = None,
    ):
        self.predictor = copy.copy(predictor)
        self.predictor.plan = replace(predictor.plan, index_cache="")  # the page writes to its own folder only
        self.limits, self.topk = limits, topk
        self.plan = self.predictor.plan.changed(num_views, num_crops, "pyav", timeout)
        self.cascade = load_cascade(calibration, predictor.model, predictor.costs) if calibration else None
        self.budgets = {name: f"{name}: {gmacs:.3g} GMACs a view" for name, gmacs in self.predictor.grids.items()}
        """Description of each choice; empty for models without compressed grids."""
        if self.cascade is not None:
            self.budgets[ADAPTIVE] = f"{ADAPTIVE}: {self.cascade.name}"

    @property
    def default_budget(self) -> str | None:
        """The checkpoint's default grid."""
        return self.predictor.budget_name(None) or None

    def answer(self, path: str | None, budget: str | None, folder: Path) -> Iterator[Shown]:
        """Yield the state after each step. It raises nothing: the last state is complete or reports the error.

        Args:
            path: the uploaded file; None: nothing was uploaded.
            budget: one of ``budgets``; None: the checkpoint's default.
            folder: for the pictures.
        """
        name = shortened(Path(path).name or path, 80) if path else ""
        shown = Shown(f"{name}: reading …")
        try:
            for shown in self._steps(path, name, budget, folder):
                yield shown
            return
        except DecodeError as error:
            why = f"{name}: {error.reason}"
        except MemoryError:
            why = f"{name}: not enough memory"
        except (UserError, OSError, RunFailure) as error:
            why = str(error)
        except Exception:  # a bug: for the log of whoever runs the page, not for its users
            logger.exception("%s: no answer", name)
            why = f"{name}: internal error; see the server log"
        yield replace(shown, status=printable(why.partition("\n")[0]), failed=True)

    def _steps(self, path: str | None, name: str, budget: str | None, folder: Path) -> Iterator[Shown]:
        if not path:
            raise UserError("choose a video, or drop one")
        if budget is not None and budget not in self.budgets:
            raise UserError(f"budget {budget!r:.40}: choose one of {', '.join(self.budgets) or 'none'}")
        yield (shown := Shown(f"{name}: reading …"))
        began = perf_counter()
        upload = read_upload(path, self.plan, self.limits)
        count = len(upload.views.clips)
        step = f"read: {count} {'clip' if count == 1 else 'clips'} of {self.predictor.cfg.DATA.NUM_FRAMES} frames"
        yield (shown := shown.after(f"{name}: answering …", step, began))
        began = perf_counter()
        prediction = self._predict(upload.views._replace(name=name), budget)
        on = f" on grid {prediction.grid}" if prediction.grid else ""
        classes = dict(zip(map(one_line, prediction.labels), prediction.probabilities, strict=True))
        numbers = tuple(map(self.predictor.classes.index, prediction.labels))
        step = f"answer{on}: {prediction.gmacs:.3g} GMACs"
        yield (shown := shown.after(f"{name}: drawing …", step, began, classes=classes, numbers=numbers))
        began = perf_counter()
        pictures = self._draw(prediction, folder)
        yield (shown := shown.after(f"{name}: timeline …", "draw where the model looked", began, **pictures))
        yield from self._finish(shown, path, upload, prediction, folder)

    def _predict(self, views: Views, budget: str | None) -> Prediction:
        chosen: dict[str, Any] = {"adaptive": self.cascade} if budget == ADAPTIVE else {"grid": budget}
        answer = next(self.predictor.answers([views], self.topk, **chosen))
        assert isinstance(answer, Prediction)
        return answer

    def _draw(self, prediction: Prediction, folder: Path) -> dict[str, Path]:
        pictures, rows = {"sheet": folder / "sheet.png"}, []
        if prediction.grid and not self.predictor.is_streaming:  # whose attention is of one tubelet at a time
            attention = explain_attention(self.predictor, prediction.clip, parse_budget(prediction.grid))
            rows, pictures["overlay"] = heat_maps(attention), folder / "overlay.mp4"
            write_overlay(prediction.clip.permute(1, 2, 3, 0).numpy(), attention.answer_map(), pictures["overlay"])
        draw_prediction(prediction, rows, pictures["sheet"], self.predictor.classes)
        return pictures

    def _finish(self, shown: Shown, path: str, upload: Upload, prediction: Prediction, folder: Path) -> Iterator[Shown]:
        """Yield the last state, with a timeline where the video is longer than a clip."""
        _, window = plan_windows(self.plan, upload.duration, 1.0, None)
        rest = upload.duration - window
        note = f" ({prediction.note})" if prediction.note else ""
        share = f", {prediction.probability:.0%}" if prediction.present is None else ""
        status = f"{prediction.path}: {one_line(prediction.label)}{share}{note}"
        if rest <= 1e-3:  # a single window
            yield replace(shown, status=status)
            return
        first, last = prediction.times[0]
        count = len(prediction.times)
        status += f" (second {first:.1f} to {last:.1f})" if count == 1 else f" (mean of {count} clips over time)"
        began = perf_counter()
        stride = max(window / 4, rest / (MAX_WINDOWS - 1), 0.01)
        grid = parse_budget(prediction.grid).bare if prediction.grid else None
        found = read_timeline(
            self.predictor,
            path,
            stride=None if self.predictor.is_streaming else stride,
            grid=grid,
            timeout=self.plan.timeout,
        )
        picture = folder / "timeline.png"
        draw_timeline(found, find_segments(found), picture, self.topk)
        step = f"timeline: {len(found.starts)} windows of {window:g} s"
        yield shown.after(status, step, began, timeline=picture)
