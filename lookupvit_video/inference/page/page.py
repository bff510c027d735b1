"""What the page shows of an uploaded video: the answer, where the model looked, a time line, what each step took.

Nothing here knows of Gradio, which ``lookupvit_video.inference.page.gradio_page`` puts in front of it.
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import perf_counter
from typing import Any

from lookupvit_video.decoding.backends import DecodeError
from lookupvit_video.errors import RunFailure, UserError
from lookupvit_video.inference.annotate import write_overlay
from lookupvit_video.inference.budget import load_cascade, parse_grid
from lookupvit_video.inference.draw import draw_prediction, draw_sheet, draw_timeline
from lookupvit_video.inference.explain import explain_attention, heat_maps
from lookupvit_video.inference.page.upload import Limits, Upload, read_upload
from lookupvit_video.inference.predictor import Prediction, Predictor
from lookupvit_video.inference.timeline import find_segments, plan_windows, read_timeline
from lookupvit_video.inference.views import Views, make_plan
from lookupvit_video.models.lookupvit import LookupViT, grid_name
from lookupvit_video.text import one_line, printable, shortened

logger = logging.getLogger(__name__)
ADAPTIVE = "adaptive"
MAX_WINDOWS = 200  # of a time line: someone waits for it


@dataclass(frozen=True)
class Shown:
    """What the page shows at a time."""

    status: str
    """One line."""
    failed: bool = False
    """The line tells why there is no answer, or not all of it."""
    classes: dict[str, float] = field(default_factory=dict)
    """Probability of the likeliest classes."""
    steps: tuple[tuple[str, float], ...] = ()
    """What was done, and the seconds it took."""
    sheet: Path | None = None
    """PNG: frames, heat maps, classes."""
    overlay: Path | None = None
    """mp4: frames, and beside them the same under a heat map; LookupViT only."""
    timeline: Path | None = None
    """PNG; only of videos longer than a clip."""

    def after(self, status: str, step: str, began: float, **found: Any) -> "Shown":
        """Return what is shown once a step is done that began at a time of ``perf_counter``."""
        return replace(self, status=status, steps=(*self.steps, (step, perf_counter() - began)), **found)


class Page:
    """A model and the limits of what strangers may ask of it.

    Args:
        topk: classes shown.
        num_views, num_crops: clips in time and crops in space; None: as the checkpoint was tested.
        timeout: seconds for looking at a file, for opening it, for decoding its clips, and for its time line.
        calibration: file of ``tools/calibrate.py``; None: no adaptive budget.

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
        cfg = predictor.cfg.clone()
        cfg.defrost()
        cfg.DATA.INDEX_CACHE = ""  # the page writes to its own folder only
        cfg.freeze()
        self.predictor = Predictor(predictor.model, cfg, predictor.classes, predictor.device, predictor.source)
        self.limits, self.topk = limits, topk
        self.plan = make_plan(cfg, num_views, num_crops, "pyav", timeout)
        self.cascade = load_cascade(calibration, predictor.model, cfg) if calibration else None
        self.budgets = {name: f"{name}: {gmacs:.3g} GMACs a view" for name, gmacs in self.predictor.grids.items()}
        """What may be chosen, in words by name; empty for models without compressed grids."""
        if self.cascade is not None:
            self.budgets[ADAPTIVE] = f"{ADAPTIVE}: {self.cascade.name}"

    @property
    def default_budget(self) -> str | None:
        """The grid that the checkpoint uses unless told."""
        return grid_name(self.predictor.cfg.MODEL.COMPRESSED_GRID) if self.budgets else None

    def answer(self, path: str | None, budget: str | None, folder: Path) -> Iterator[Shown]:
        """Yield what is known after each step. It raises nothing: the last one is whole, or its line tells why not.

        Args:
            path: the uploaded file; None: there is none.
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
            why = f"{name}: needs more memory than there is"
        except (UserError, OSError, RunFailure) as error:
            why = str(error)
        except Exception:  # a bug: whoever runs the page is to see it, whoever uses it is not
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
        step = f"answer{on}: {prediction.gmacs:.3g} GMACs"
        yield (shown := shown.after(f"{name}: drawing …", step, began, classes=classes))
        began = perf_counter()
        pictures = self._draw(prediction, folder)
        yield (shown := shown.after(f"{name}: time line …", "draw where the model looked", began, **pictures))
        yield from self._finish(shown, path, upload, prediction, folder)

    def _predict(self, views: Views, budget: str | None) -> Prediction:
        chosen: dict[str, Any] = {"adaptive": self.cascade} if budget == ADAPTIVE else {"grid": budget}
        answer = next(self.predictor.answers([views], self.topk, **chosen))
        assert isinstance(answer, Prediction)
        return answer

    def _draw(self, prediction: Prediction, folder: Path) -> dict[str, Path]:
        sheet, overlay = folder / "sheet.png", folder / "overlay.mp4"
        if not isinstance(self.predictor.model, LookupViT):
            draw_prediction(prediction, None, sheet)
            return {"sheet": sheet}
        attention = explain_attention(self.predictor, prediction.clip, parse_grid(prediction.grid))
        frames_THWC = prediction.clip.permute(1, 2, 3, 0).numpy()
        classes = list(zip(prediction.labels, prediction.probabilities, strict=True))
        draw_sheet(frames_THWC, heat_maps(attention), classes, prediction.path, sheet)
        write_overlay(frames_THWC, attention.answer_map(), overlay)
        return {"sheet": sheet, "overlay": overlay}

    def _finish(self, shown: Shown, path: str, upload: Upload, prediction: Prediction, folder: Path) -> Iterator[Shown]:
        """Yield the last of what is shown, with a time line where the video is longer than a clip."""
        _, window = plan_windows(self.predictor.cfg, upload.duration, 1.0, None)
        rest = upload.duration - window
        note = f" ({prediction.note})" if prediction.note else ""
        status = f"{prediction.path}: {one_line(prediction.label)}, {prediction.probability:.0%}{note}"
        if rest <= 1e-3:  # one window is all of it
            yield replace(shown, status=status)
            return
        first, last = prediction.times[0]
        count = len(prediction.times)
        status += f" (second {first:.1f} to {last:.1f})" if count == 1 else f" (mean of {count} clips over time)"
        began = perf_counter()
        stride = max(window / 4, rest / (MAX_WINDOWS - 1), 0.01)
        grid = parse_grid(prediction.grid) if prediction.grid else None
        found = read_timeline(self.predictor, path, stride=stride, grid=grid, timeout=self.plan.timeout)
        picture = folder / "timeline.png"
        draw_timeline(found, find_segments(found), picture, self.topk)
        step = f"time line: {len(found.starts)} windows of {window:g} s"
        yield shown.after(status, step, began, timeline=picture)
