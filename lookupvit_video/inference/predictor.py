"""A checkpoint and a video -> class names with probabilities, and where the model looked.

Shape letters: B clips, V views, C channels, T frames, H W pixels, K classes.
"""

import logging
import math
import warnings
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any, overload

import torch
from fvcore.common.config import CfgNode
from torch import Tensor, nn

from lookupvit_video.checkpoints.checkpoint import Checkpoint, load_checkpoint, load_weights
from lookupvit_video.data.transforms import normalize
from lookupvit_video.decoding.reader import DecodeError
from lookupvit_video.distributed.precision import autocast, autocast_dtype
from lookupvit_video.errors import UserError
from lookupvit_video.evaluation.calibration import Calibration, Reject, Selection, read_calibration
from lookupvit_video.evaluation.evaluate import CompressedGrid, as_probabilities, predict_clips
from lookupvit_video.files import model_file
from lookupvit_video.inference.budget import (
    Cascade,
    Costs,
    Grid,
    best_within,
    budget_name,
    cascade_macs,
    check_budget,
    check_grid,
    load_cascade,
    measured_latencies,
    run_cascade,
)
from lookupvit_video.inference.hub import read_pretrained, write_pretrained
from lookupvit_video.inference.prediction import Prediction, prediction_of
from lookupvit_video.inference.views import Failure, Plan, Source, Views, make_plan, read_views
from lookupvit_video.models.budget import as_budget, parse_budget
from lookupvit_video.models.build import build_model, model_spec
from lookupvit_video.models.complexity import count_parameters, measured_macs
from lookupvit_video.models.kernels.compiler import require_compiler
from lookupvit_video.models.kernels.int8 import linear_layers, quantize
from lookupvit_video.models.streaming.model import StreamingLookupViT
from lookupvit_video.registry import MODELS
from lookupvit_video.remote import is_hub_id
from lookupvit_video.text import shown

logger = logging.getLogger(__name__)
HELD = 8  # batches of clips that a cascade has at once


class Predictor:
    """A trained model with what it needs to read a video; ``load_model`` makes one."""

    def __init__(
        self,
        model: nn.Module,
        cfg: CfgNode,
        classes: list[str],
        device: torch.device,
        source: Path | None = None,
        thresholds: Sequence[float] = (),
        calibration: Mapping[str, Calibration] | None = None,
    ):
        self.multi_label = cfg.MODEL.TASK == "multi_label"
        """Whether a video may have several labels."""
        self.thresholds = list(thresholds or [0.5] * len(classes)) if self.multi_label else []
        """Of several labels a video: from which probability on each class is answered."""
        self.calibration = dict(calibration or {})
        """By the grid's name ("" for a model without) or ``Cascade.name``, what ``lookupvit calibrate`` found."""
        self.model, self.cfg, self.classes, self.device = model.to(device).eval(), cfg, classes, device
        self.source = source
        """The file or folder that it was loaded from."""
        self.plan = make_plan(cfg)
        """How the checkpoint's test reads a video."""
        self._spec = model_spec(cfg)
        costs = {budget.bare: self._spec.budget_macs(budget) for budget in self._spec.budgets}
        shape = self._spec.shape if costs else None
        tokens, depth = (math.prod(shape.block_grid), shape.depth) if shape else (0, 0)
        self.costs = Costs(costs, tokens, depth)
        """Of each budget; empty for a model without compressed grids."""
        self._compiled_batch = 0
        self._number_format = ""

    def __repr__(self) -> str:
        model, data, names = self.cfg.MODEL, self.cfg.DATA, self.classes
        seconds = f" over {self.plan.clip_seconds:.3g} s" if self.plan.clip_seconds else " over the complete video"
        return (
            f"Predictor({model.ARCH} {model.VARIANT}, {count_parameters(self.model) / 1e6:.3g} M parameters, clips of "
            f"{data.NUM_FRAMES} frames of {self.plan.size} x {self.plan.size}{seconds}, "
            f"{len(names)} classes: {shown(names, 5)}; {self.source or 'not from a file'}, on {self.device})"
        )

    @overload
    def predict(self, videos: Source, topk: int = 5, **options: Any) -> Prediction: ...
    @overload
    def predict(
        self, videos: list[Source] | tuple[Source, ...], topk: int = 5, **options: Any
    ) -> list[Prediction | Failure]: ...
    def predict(
        self,
        videos: Source | list[Source] | tuple[Source, ...],
        topk: int = 5,
        *,
        num_views: int | None = None,
        num_crops: int | None = None,
        backend: str | None = None,
        fps: float | None = None,
        **budget: Any,
    ) -> Prediction | list[Prediction | Failure]:
        """Classify a video, or a list of them in batches.

        In a list, a file that cannot be read is a ``Failure``, whose ``error`` says why; ``error`` of an answer is "".

        Args:
            videos: a source of ``read_views`` (path, open file, frames), or a list of them. A video shorter than a clip
                is read to its end, its last frame repeated (``Prediction.note`` reports it).
            topk: classes in the answer.
            num_views, num_crops, backend: clips in time, crops in space, decoder; None: the checkpoint's.
            fps: frames a second of tensors; None: each holds the frames of one clip, as many as the model takes.
            budget: ``grid``, ``adaptive``, ``batch_size``, ``reject``, ``coverage`` and ``sets`` of ``answers``.

        Raises:
            DecodeError: a file cannot be read, if it is the only one.
            UserError: wrong frames, unknown grid or missing decoder.
        """
        plan = self.plan.changed(num_views, num_crops, backend)
        if not isinstance(videos, (list, tuple)):
            (answer,) = self.answers([read_views(videos, plan, fps)], topk, **budget)
            assert isinstance(answer, Prediction)
            return answer
        failures: dict[int, Failure] = {}

        def readable() -> Iterator[Views]:
            for place, source in enumerate(videos):
                try:
                    yield read_views(source, plan, fps)
                except DecodeError as error:
                    failures[place] = Failure(error.path, error.reason)

        answers = iter(list(self.answers(readable(), topk, **budget)))
        return [failures.get(place) or next(answers) for place in range(len(videos))]

    def answers(
        self,
        videos: Iterable[Views | Failure],
        topk: int = 5,
        *,
        grid: str | Grid | None = None,
        adaptive: str | Path | Cascade | None = None,
        batch_size: int = 8,
        reject: str | float | None = None,
        coverage: float | None = None,
        sets: str = "lac",
    ) -> Iterator[Prediction | Failure]:
        """Yield the answers to videos that are read already, in their order; failures pass through.

        Args:
            videos: from ``read_views``; taken one batch at a time.
            grid: of the compressed tokens, such as "4x7x7" or (4, 7, 7), or a budget with fewer blocks or tokens,
                such as "4x7x7,b8,k1-0.5" (see ``grids``); None: the checkpoint's default.
            adaptive: thresholds of ``lookupvit calibrate``: a small grid first, larger ones while not confident.
            batch_size: clips in one pass of the model, of as many videos as fit.
            reject: the largest rate of errors among accepted answers (0.05 or "error=0.05"), or of accepted videos of
                unknown classes ("unknown=0.05"); the other answers are "none of these". None: all are accepted.
            coverage: the share of videos, such as 0.9, whose true class is to be in ``Prediction.members``, a set that
                conformal prediction makes; None: no sets.
            sets: their kind: lac, aps or class, see ``evaluation/conformal.py``.

        Raises:
            UserError: this checkpoint does not have the grid or thresholds, or was not calibrated for ``reject`` and
                ``coverage``; answers are not finite.
        """
        if topk < 1 or batch_size < 1:
            raise UserError(f"topk {topk}, batch_size {batch_size}: both must be at least 1")
        if grid is not None and adaptive is not None:
            raise UserError("grid and adaptive: give one of them")
        if grid is not None:
            grid = (parse_budget(grid) if isinstance(grid, str) else as_budget(grid)).bare
            check_grid(self.costs, grid)
        if adaptive is not None and self.multi_label:
            raise UserError("adaptive: the confidence of a single answer; this checkpoint gives several labels a video")
        if adaptive is not None and not isinstance(adaptive, Cascade):
            adaptive = load_cascade(adaptive, self.model, self.costs)
        selection = Selection()
        if reject is not None or coverage is not None:
            name = adaptive.name if adaptive is not None else self.budget_name(grid)
            wish = None if reject is None else Reject.parse(reject)
            selection = self._calibrated(name).selection(len(self.classes), wish, coverage, sets)
        if adaptive is not None:
            shares = self._shares_adaptive(videos, adaptive, batch_size)
            macs, grids = cascade_macs(adaptive, self.costs), list(map(budget_name, adaptive.grids))
        else:
            shares = self._shares(videos, grid, batch_size)
            macs, grids = [self.macs_a_view(grid)], [self.budget_name(grid)]
        return self._answers(shares, topk, selection, macs, grids)

    def _calibrated(self, name: str) -> Calibration:
        """Return the calibration of a budget, for a choice among answers."""
        if self.multi_label:
            raise UserError(
                "reject, coverage: for one label a video; with several labels, none of them may be present "
                "(TEST.THRESHOLDS chooses by precision or recall)"
            )
        if name not in self.calibration:
            budget = f" for {name}" if self.calibration and name else ""
            raise UserError(f"{self.source or 'model'}: not calibrated{budget}; run lookupvit calibrate first")
        found = self.calibration[name]
        views = f"{self.plan.times.num_clips}x{self.plan.num_crops}"
        if found.views != views:
            logger.warning(
                "calibrated with %s views; with %s, rates of errors and coverage may differ", found.views, views
            )
        return found

    def budget_name(self, grid: CompressedGrid) -> str:
        """Return the name of the grid or budget in use; "" for a model without."""
        budget = grid or self.default_budget
        return budget_name(budget) if budget and self.costs else ""

    @property
    def default_budget(self) -> CompressedGrid:
        """The budget of the model where none is given; None for a model without compressed grids."""
        return self._spec.budgets[0].bare if self.costs else None

    def temperature(self, grid: CompressedGrid = None) -> Sequence[float]:
        """Return the temperature of a grid's logits: one number, or one a class; empty: 1. None: the default grid."""
        found = self.calibration.get(self.budget_name(grid))
        return found.temperature if found else ()

    def _shares(
        self, videos: Iterable[Views | Failure], grid: Grid | None, batch_size: int
    ) -> Iterator[tuple[Views, Tensor, int] | Failure]:
        """Yield the mean probabilities (K,) of each video; each batch but the last one is full."""
        waiting: deque[Views] = deque()  # without all of their answers
        clips: list[Tensor] = []  # theirs, those that have no answer yet
        answers: list[Tensor] = []  # of their other clips
        for video in chain(videos, [None]):
            if isinstance(video, Failure):
                yield video
                continue
            if video is not None:
                waiting.append(video)
                clips += torch.from_numpy(video.clips)
            while clips and (len(clips) >= batch_size or video is None):
                answers += self.predict_clips(torch.stack(clips[:batch_size]), grid)
                del clips[:batch_size]
            while waiting and len(answers) >= (count := len(waiting[0].clips)):
                yield waiting.popleft(), torch.stack(answers[:count]).mean(0), 0
                del answers[:count]

    def _shares_adaptive(
        self, videos: Iterable[Views | Failure], cascade: Cascade, batch_size: int
    ) -> Iterator[tuple[Views, Tensor, int] | Failure]:
        """Yield the mean probabilities (K,) of each video, and the place of its grid in the cascade.

        Videos wait for others, so that the few that go on to a larger budget fill a batch of their own.
        """
        dtype = autocast_dtype(self.cfg.TRAIN.PRECISION, self.device)
        temperatures = list(map(self.temperature, cascade.grids))
        waiting: list[Views] = []
        for video in chain(videos, [None]):
            if isinstance(video, Failure):
                yield video
                continue
            waiting += [] if video is None else [video]
            counts = [len(views.clips) for views in waiting]
            if waiting and (video is None or sum(counts) >= HELD * batch_size):
                clips = torch.cat([torch.from_numpy(views.clips) for views in waiting])
                inputs = map(self.inputs, torch.split(clips, batch_size))
                shares = run_cascade(self.model, cascade, inputs, counts, batch_size, dtype, temperatures)
                for views, (share_K, step) in zip(waiting, shares, strict=True):
                    yield views, share_K, step
                waiting = []

    def _answers(
        self,
        shares: Iterable[tuple[Views, Tensor, int] | Failure],
        topk: int,
        selection: Selection,
        macs: Sequence[int],
        grids: Sequence[str],
    ) -> Iterator[Prediction | Failure]:
        for found in shares:
            if isinstance(found, Failure):
                yield found
                continue
            views, share_K, step = found
            if not share_K.isfinite().all():
                raise UserError(
                    f"{self.source or 'model'}: the answer to {views.name} is not finite; the weights are damaged"
                )
            yield prediction_of(
                views, share_K, self.classes, topk=topk, selection=selection, grid=grids[step], macs=macs[step],
                thresholds=self.thresholds if self.multi_label else None,
            )  # fmt: skip

    def quantize(self, clips_BCTHW: Tensor) -> list[str]:
        """Compute with 8-bit weights and activations from now on; return the linear layers that stay in float.

        It is faster than floats on a CPU with instructions for it, see docs/export.md. Load thresholds before: a file
        of ``lookupvit calibrate`` belongs to the float weights.

        Args:
            clips_BCTHW: uint8 clips as of ``predict_clips``, on which layers are found that would cost accuracy.

        Raises:
            UserError: the model is compiled.
        """
        if self._compiled_batch:
            raise UserError("quantize: compiled code takes another way through the 8-bit layers; do not compile")
        inputs = self.inputs(clips_BCTHW)

        def run() -> Tensor:
            with torch.inference_mode():
                logits: Tensor = self.model(inputs)
            return logits

        quantize(self.model, run)
        self._number_format = "int8"
        return list(linear_layers(self.model))

    def compile(self, batch_size: int = 8, **options: Any) -> None:
        """Compile the model, with CUDA graphs on GPUs: minutes at first, then less time for each batch.

        Each compressed grid in use is compiled once, since smaller batches are padded to ``batch_size``. Adaptive
        answers and attention maps do not use it; choose a grid by latency before. On a CPU it does not pay
        (docs/performance.md).

        Args:
            batch_size: clips in one pass of the model; pass the same to ``predict`` and ``answers``.
            options: of ``torch.compile``, in place of those that suit the device.

        Raises:
            UserError: there is no compiler for the code that PyTorch generates.
        """
        if options.get("backend", "inductor") == "inductor":
            require_compiler("--compile", self.device.type, "without it the answers are the same")
        options = options or {"mode": "reduce-overhead" if self.device.type == "cuda" else "default"}
        self.model.compile(dynamic=False, **options)
        self._compiled_batch = batch_size

    def predict_clips(self, clips_BCTHW: Tensor, grid: CompressedGrid = None) -> Tensor:
        """Return the probabilities (B, K), float32 on the CPU, of uint8 clips (B, C, T, H, W) of the test's size."""
        batch, missing = len(clips_BCTHW), self._compiled_batch - len(clips_BCTHW)
        if missing > 0:
            clips_BCTHW = torch.cat([clips_BCTHW, clips_BCTHW[-1:].expand(missing, *clips_BCTHW.shape[1:])])
        data, precision = self.cfg.DATA, self.cfg.TRAIN.PRECISION
        return predict_clips(
            self.model,
            clips_BCTHW,
            self.device,
            mean=data.MEAN,
            std=data.STD,
            precision=precision,
            grid=grid,
            multi_label=self.multi_label,
            temperature=self.temperature(grid),
        )[:batch]

    @property
    def is_streaming(self) -> bool:
        """Whether the checkpoint answers after each tubelet, from a state (MODEL.STREAMING)."""
        return self._spec.is_streaming

    @property
    def window_plan(self) -> Plan:
        """How the windows of long and live video are read: clips as those of the test, or the tubelets of a stream."""
        if not self.is_streaming:
            return self.plan
        times = replace(self.plan.times, num_frames=self.cfg.MODEL.TUBELET[0])
        return replace(self.plan, times=times, clip_seconds=times.num_frames * times.step, is_step=True)

    @property
    def _streaming_model(self) -> StreamingLookupViT:
        if not isinstance(self.model, StreamingLookupViT):
            raise UserError(f"{self.source or 'model'}: has no state to step with; train with MODEL.STREAMING True")
        return self.model

    def start_state(self, batch: int = 1) -> Tensor:
        """Return the state (B, 2 M, D) of streams before their first tubelet, for ``predict_step``."""
        return self._streaming_model.start_state(batch)

    def predict_step(self, tubelets_BCtHW: Tensor, state_BMD: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Take in the next tubelet of each of B streams: return probabilities (B, K) on the CPU, and the next state.

        Args:
            tubelets_BCtHW: uint8, of the test's size.
            state_BMD: what the step before returned; None: the streams begin.

        Raises:
            UserError: the checkpoint has no state.
        """
        if state_BMD is None:
            state_BMD = self.start_state(len(tubelets_BCtHW))
        dtype = autocast_dtype(self.cfg.TRAIN.PRECISION, self.device)
        with torch.inference_mode(), autocast(self.device, dtype):
            logits, state_BMD = self._streaming_model.step(self.inputs(tubelets_BCtHW), state_BMD)
        return as_probabilities(logits.float(), self.multi_label, self.temperature()).cpu(), state_BMD

    def inputs(self, clips_BCTHW: Tensor) -> Tensor:
        """Return uint8 clips (B, C, T, H, W) as the model takes them: normalized, on its device."""
        return normalize(clips_BCTHW.to(self.device), self.cfg.DATA.MEAN, self.cfg.DATA.STD)

    def macs_a_view(self, grid: Grid | None = None) -> int:
        """Return the multiply-accumulates of one view: in closed form, or counted for models that have none."""
        if parts := self.costs.get(grid) if grid else self._spec.macs():
            return sum(parts.values())
        return measured_macs(self.model, self._blank_clip().to(self.device, torch.float32))

    def blank_views(self) -> Views:
        """Return the views of a black video, to try options with."""
        return Views("blank", self._blank_clip().numpy(), [(0.0, 0.0)])

    def _blank_clip(self) -> Tensor:
        return torch.zeros(1, 3, self.plan.times.num_frames, self.plan.size, self.plan.size, dtype=torch.uint8)

    @property
    def grids(self) -> dict[str, float]:
        """The budgets of the checkpoint and the GMACs of a view within each, the cheapest first.

        Their names: "4x7x7", a compressed grid; "4x7x7,b8", 8 blocks of it; "4x7x7,k1-0.5", half of the lookup tokens
        in the second half of the blocks.
        """
        return {budget_name(grid): sum(parts.values()) / 1e9 for grid, parts in self.costs.items()}

    @property
    def top1(self) -> dict[str, float]:
        """Top-1 in percent of each calibrated budget, on the videos that it was calibrated on."""
        return {name: 100 * sum(found.right) / len(found.right)
                for name, found in self.calibration.items() if found.right}  # fmt: skip

    def grid_within(self, *, gmacs: float | None = None, latency_ms: float | None = None) -> str:
        """Return the best budget within a limit for one view.

        That is the most accurate one on the videos of ``lookupvit calibrate``; without a calibration of every budget
        the dearest.

        Args:
            gmacs: 10^9 multiply-accumulates, in closed form.
            latency_ms: milliseconds, without decoding; measured once on this device and kept in the user's cache.

        Raises:
            UserError: even the smallest grid costs more; none or both budgets; or a latency after ``compile``.
        """
        if (gmacs is None) == (latency_ms is None):
            raise UserError("gmacs, latency_ms: give one of them")
        if latency_ms is None:
            check_grid(self.costs)
            return best_within(self.grids, gmacs or 0.0, "GMACs a view", self.top1)
        check_budget(latency_ms)
        if self._compiled_batch:  # which pads batches, while a latency is of a single view
            raise UserError("latency_ms: choose the grid before compiling the model")
        check_grid(self.costs)
        precision = self._number_format or str(autocast_dtype(self.cfg.TRAIN.PRECISION, self.device))
        model = {"precision": precision, "model": self.cfg.MODEL.dump()}
        times = measured_latencies(self.predict_clips, self._blank_clip(), self.costs, model, self.device)
        return best_within(times, latency_ms, "ms a view on this device", self.top1)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write config.json, model.safetensors and README.md (a model card), as the Hugging Face Hub expects them.

        The card's accuracy is that of the test_results.json next to the checkpoint, if it is of this checkpoint. Of
        LookupViT and the dense ViT also the code with which transformers loads the folder.
        """
        from lookupvit_video.inference.huggingface import bundle

        state = self.model.state_dict()
        loaded = Checkpoint(
            self.source or Path(), self.cfg, self.classes, state, optimizer=None, step=0, best_top1=-1.0,
            thresholds=self.thresholds,
            calibration={name: found.as_dict() for name, found in self.calibration.items()},
        )  # fmt: skip
        gmacs = self.grids or {"": self.macs_a_view() / 1e9}
        entries = bundle.config_entries(self._spec, self.plan.times.num_frames, self.temperature(), self.multi_label)
        write_pretrained(Path(folder), loaded, type(self.model).__name__, gmacs, count_parameters(self.model), entries)
        if entries:
            bundle.write_code(Path(folder), self.plan, self.cfg.DATA.MEAN, self.cfg.DATA.STD)

    @classmethod
    def from_pretrained(cls, source: str | Path, device: str = "auto", revision: str | None = None) -> "Predictor":
        """Load what ``save_pretrained`` wrote: a folder, or an id of the Hugging Face Hub ("org/name").

        Args:
            revision: branch, tag or commit on the Hub.

        Raises:
            UserError: it is missing or cannot be read.
        """
        return _predictor(read_pretrained(source, revision), device)


def load_model(checkpoint: str | Path, device: str = "auto") -> Predictor:
    """Load a trained model; its file holds all that a prediction needs: config, class names and normalization.

    Example:
        model = load_model("runs/mine")
        answer = model.predict("video.mp4")
        print(answer.label, answer.probability)

    Args:
        checkpoint: the folder of a run (its model.pt is loaded), a .pt file of training, a folder of
            ``Predictor.save_pretrained``, or an id of the Hugging Face Hub ("org/name").
        device: "auto" (a GPU if there is one), "cpu", "cuda", "cuda:1", ...

    Raises:
        UserError: the checkpoint cannot be read or contradicts itself, or the device is missing.
    """
    checkpoint = model_file(checkpoint)
    if Path(checkpoint).is_dir() or is_hub_id(str(checkpoint)):
        return Predictor.from_pretrained(checkpoint, device)
    if Path(checkpoint).exists() and not Path(checkpoint).is_file():
        raise UserError(f"{checkpoint}: neither a file nor a folder; give a .pt file that training wrote")
    try:
        loaded = load_checkpoint(checkpoint, mapped=True)
    except (TypeError, AttributeError, KeyError, RecursionError):
        raise UserError(f"{checkpoint}: not a checkpoint of this project: its contents have the wrong type") from None
    return _predictor(loaded, device)


def _predictor(loaded: Checkpoint, device: str) -> Predictor:
    place = _device(device)
    _check_consistent(loaded)
    model = build_model(loaded.config, empty=True)
    load_weights(model, loaded, assign=True)
    try:
        calibration = {
            str(name): read_calibration(
                found, len(loaded.classes), multi_label=loaded.config.MODEL.TASK == "multi_label"
            )
            for name, found in loaded.calibration.items()
        }
    except (ValueError, TypeError, KeyError, AttributeError):
        raise UserError(f"{loaded.path}: its calibration is damaged; run lookupvit calibrate again") from None
    return Predictor(model, loaded.config, loaded.classes, place, loaded.path, loaded.thresholds, calibration)


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        place = torch.device(name)
        torch.empty(1, device=place).cpu()  # some devices exist in name only
    except (RuntimeError, AssertionError, NotImplementedError, ImportError) as error:
        raise UserError(f"--device {name}: {str(error).splitlines()[0]}") from None
    return place


def _check_consistent(loaded: Checkpoint) -> None:
    """Raise UserError where a checkpoint contradicts itself, before its config's sizes take any memory."""
    path, cfg, classes, state = loaded.path, loaded.config, loaded.classes, loaded.model
    if not isinstance(classes, list) or not all(isinstance(name, str) and name for name in classes):
        raise UserError(f"{path}: its class list holds something other than names")
    if len(set(classes)) != len(classes):
        raise UserError(f"{path}: its class list has duplicates")
    if len(classes) != cfg.MODEL.NUM_CLASSES:
        raise UserError(
            f"{path}: it names {len(classes)} classes, but its MODEL.NUM_CLASSES is {cfg.MODEL.NUM_CLASSES}"
        )
    if loaded.thresholds and len(loaded.thresholds) != len(classes):
        raise UserError(f"{path}: it names {len(classes)} classes, but has {len(loaded.thresholds)} thresholds")
    is_sound = isinstance(state, dict) and all(
        isinstance(tensor, Tensor) and tensor.layout == torch.strided and not tensor.is_complex()
        for tensor in state.values()
    )
    if not is_sound:
        raise UserError(f"{path}: its weights are not plain tensors by name")
    if not MODELS[cfg.MODEL.ARCH].tubelets:
        return  # of a few fixed sizes
    if max(cfg.MODEL.DEPTH, cfg.MODEL.TEMPORAL_DEPTH if cfg.MODEL.ENCODER == "factorised" else 0) > len(state):
        raise UserError(f"{path}: its config has more blocks than the file has weights")
    with torch.device("meta"), warnings.catch_warnings(action="ignore"):  # shapes only: no memory is taken
        try:
            model = build_model(cfg)
        except (RuntimeError, OverflowError, TypeError) as error:  # numbers out of bounds
            why = str(error).splitlines()[0]
            raise UserError(f"{path}: the model of its config cannot be built ({why})") from None
        load_weights(model, loaded)  # torch warns that nothing is copied
    stored = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in state.values()}
    if sum(tensor.numel() * tensor.element_size() for tensor in state.values()) > 2 * sum(stored.values()):
        raise UserError(f"{path}: its weights are larger than the file's data")
