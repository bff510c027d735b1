"""A checkpoint and a video -> class names with probabilities, and what was looked at.

Shape letters: B clips, V views, C channels, T frames, H W pixels, K classes.
"""

import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, overload

import torch
from fvcore.common.config import CfgNode
from torch import Tensor, nn

from lookupvit_video.checkpoints.checkpoint import Checkpoint, load_checkpoint, load_weights
from lookupvit_video.data.transforms import normalize
from lookupvit_video.errors import UserError
from lookupvit_video.evaluation.evaluate import predict_clips
from lookupvit_video.inference.budget import (
    Cascade,
    Grid,
    cascade_macs,
    check_budget,
    check_grid,
    grid_costs,
    grid_within_latency,
    grid_within_macs,
    load_cascade,
    macs_a_view,
    measured_latencies,
    parse_grid,
    run_cascade,
)
from lookupvit_video.inference.hub import is_hub_id, read_pretrained, write_pretrained
from lookupvit_video.inference.views import Failure, Source, Views, make_plan, read_views
from lookupvit_video.models.attention import head_mean
from lookupvit_video.models.build import build_model
from lookupvit_video.models.complexity import count_parameters
from lookupvit_video.models.lookupvit import LookupViT, grid_name
from lookupvit_video.registry import MODELS


@dataclass(frozen=True)
class Prediction:
    """The answer for one video."""

    path: str
    labels: list[str]
    """Class names, likeliest first."""
    probabilities: list[float]
    """Of those classes; softmax averaged over the views."""
    clip: Tensor = field(repr=False)
    """(C, T, H, W) uint8: the middle one of the views that the answer comes from."""
    times: list[tuple[float, float]] = field(default_factory=list)
    """Seconds at which the first and the last frame of each clip in time are shown."""
    grid: str = ""
    """Compressed grid that gave the answer, such as 4x7x7; empty for models without."""
    gmacs: float = 0.0
    """10^9 multiply-accumulates that the answer took: all views, all passes."""
    note: str = ""
    """What the reader of the answer should know, such as that the video is shorter than the clip."""

    @property
    def label(self) -> str:
        """The likeliest class."""
        return self.labels[0]

    @property
    def probability(self) -> float:
        """Of the likeliest class."""
        return self.probabilities[0]

    def as_dict(self) -> dict[str, Any]:
        """Return all but the pixels, as JSON holds it."""
        return {
            "path": self.path,
            "classes": dict(zip(self.labels, self.probabilities, strict=True)),
            "times": self.times,
            "grid": self.grid,
            "gmacs": self.gmacs,
            "note": self.note,
        }


class Predictor:
    """A trained model with all that it needs to read a video: made by ``load_model``."""

    def __init__(
        self, model: nn.Module, cfg: CfgNode, classes: list[str], device: torch.device, source: Path | None = None
    ):
        self.model, self.cfg, self.classes, self.device = model.to(device).eval(), cfg, classes, device
        self.source = source
        """The file or folder that it was loaded from."""
        self._compiled_batch = 0

    @overload
    def predict(self, videos: Source, topk: int = 5, **options: Any) -> Prediction: ...
    @overload
    def predict(self, videos: list[Source] | tuple[Source, ...], topk: int = 5, **options: Any) -> list[Prediction]: ...
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
    ) -> Prediction | list[Prediction]:
        """Classify a video, or a list of them in batches.

        Args:
            videos: a path, a file opened for reading bytes, or frames, uint8 (T, H, W, C) or (C, T, H, W), RGB, as a
                tensor or array; or a list of such. A video shorter than a clip is read to its end, its last frame
                repeated (``Prediction.note`` says so).
            topk: classes in the answer.
            num_views, num_crops: clips in time, crops in space; by default those of the checkpoint's test.
            backend: decoder, by default the checkpoint's.
            fps: frames a second of tensors; None: each holds the frames of one clip, as many as the model takes.
            budget: ``grid``, ``adaptive`` and ``batch_size`` of ``answers``.

        Raises:
            DecodeError: a file cannot be read; it is a ValueError that names file and reason.
            UserError: frames of a wrong shape or type, a grid or decoder that there is not.
        """
        plan = make_plan(self.cfg, num_views, num_crops, backend)
        sources = list(videos) if isinstance(videos, (list, tuple)) else [videos]
        found = self.answers((read_views(source, plan, fps) for source in sources), topk, **budget)
        answers = [answer for answer in found if isinstance(answer, Prediction)]
        return answers if isinstance(videos, (list, tuple)) else answers[0]

    def answers(
        self,
        videos: Iterable[Views | Failure],
        topk: int = 5,
        *,
        grid: str | Grid | None = None,
        adaptive: str | Path | Cascade | None = None,
        batch_size: int = 8,
    ) -> Iterator[Prediction | Failure]:
        """Yield the answers to videos that are read already, in their order; failures pass through.

        Args:
            videos: what ``read_views`` returned; no more are asked for than one batch takes.
            grid: of the compressed tokens, such as "4x7x7" or (4, 7, 7); None: the checkpoint's default.
            adaptive: thresholds of ``tools/calibrate.py``: a small grid first, larger ones while not confident.
            batch_size: clips in one pass of the model, of as many videos as fit.

        Raises:
            UserError: a grid or thresholds that this checkpoint has not; answers that are not finite.
        """
        if topk < 1 or batch_size < 1:
            raise UserError(f"topk {topk}, batch_size {batch_size}: both must be at least 1")
        if grid is not None and adaptive is not None:
            raise UserError("grid and adaptive: give one of them")
        grid = parse_grid(grid) if isinstance(grid, str) else grid
        if grid is not None:
            check_grid(self.cfg, tuple(grid))
        if adaptive is not None and not isinstance(adaptive, Cascade):
            adaptive = load_cascade(adaptive, self.model, self.cfg)
        return self._answers(videos, topk, grid, adaptive, batch_size)

    def _answers(
        self,
        videos: Iterable[Views | Failure],
        topk: int,
        grid: Grid | None,
        cascade: Cascade | None,
        batch_size: int,
    ) -> Iterator[Prediction | Failure]:
        waiting: list[Views] = []
        for video in videos:
            if isinstance(video, Failure):
                yield video
                continue
            waiting.append(video)
            if sum(len(views.clips) for views in waiting) >= batch_size:
                yield from self._answer_batch(waiting, topk, grid, cascade, batch_size)
                waiting = []
        if waiting:
            yield from self._answer_batch(waiting, topk, grid, cascade, batch_size)

    def _answer_batch(
        self, videos: list[Views], topk: int, grid: Grid | None, cascade: Cascade | None, batch_size: int
    ) -> Iterator[Prediction]:
        counts = [len(views.clips) for views in videos]
        clips = torch.cat([torch.from_numpy(views.clips) for views in videos])
        shares: Iterable[tuple[Tensor, int]]
        if cascade is not None:
            assert isinstance(self.model, LookupViT)
            shares = run_cascade(self.model, self.cfg, self.device, cascade, clips, counts, batch_size)
            macs, grids = cascade_macs(cascade, self.cfg), list(map(grid_name, cascade.grids))
        else:
            table_BK = torch.cat([self.predict_clips(part, grid) for part in clips.split(batch_size)])
            shares = ((part.mean(0), 0) for part in table_BK.split(counts))
            macs = [macs_a_view(self.model, self.cfg, grid)]
            has_grids = MODELS[self.cfg.MODEL.ARCH].compressed_grids
            grids = [grid_name(grid or self.cfg.MODEL.COMPRESSED_GRID) if has_grids else ""]
        for views, (share_K, step) in zip(videos, shares, strict=True):
            if not share_K.isfinite().all():
                raise UserError(f"{self.source or 'model'}: its answer to {views.name} is not finite: damaged weights")
            best = share_K.topk(min(topk, len(self.classes)))
            yield Prediction(
                path=views.name,
                labels=[self.classes[label] for label in best.indices.tolist()],
                probabilities=best.values.tolist(),
                clip=torch.from_numpy(views.clips[len(views.clips) // 2]),
                times=views.times,
                grid=grids[step],
                gmacs=len(views.clips) * macs[step] / 1e9,
                note=views.note,
            )

    def compile(self, batch_size: int = 8, **options: Any) -> None:
        """Have torch compile the model, with CUDA graphs on GPUs: minutes at first, then less time for each batch.

        Each compressed grid that is used is compiled once: smaller batches are filled up to ``batch_size``. Adaptive
        answers and attention maps do not use it; a grid within a latency is to be chosen before. On a CPU it does not
        pay (docs/performance.md).

        Args:
            batch_size: clips in one pass of the model; what ``predict`` and ``answers`` are then given.
            options: of ``torch.compile``, in place of those that suit the device.
        """
        options = options or {"mode": "reduce-overhead" if self.device.type == "cuda" else "default"}
        self.model.compile(dynamic=False, **options)
        self._compiled_batch = batch_size

    def predict_clips(self, clips_BCTHW: Tensor, grid: Grid | None = None) -> Tensor:
        """Return the probabilities (B, K), float32 on the CPU, of uint8 clips (B, C, T, H, W) of the test crop's size.

        Args:
            grid: of the compressed tokens; None: the model's default.
        """
        batch, missing = len(clips_BCTHW), self._compiled_batch - len(clips_BCTHW)
        if missing > 0:
            clips_BCTHW = torch.cat([clips_BCTHW, clips_BCTHW[-1:].expand(missing, *clips_BCTHW.shape[1:])])
        return predict_clips(self.model, self.cfg, clips_BCTHW, self.device, grid)[:batch]

    @property
    def grids(self) -> dict[str, float]:
        """The compressed grids of the checkpoint and the GMACs of a view on each, the cheapest first."""
        if not MODELS[self.cfg.MODEL.ARCH].compressed_grids:
            return {}
        return {grid_name(grid): macs / 1e9 for grid, macs in grid_costs(self.cfg).items()}

    def grid_within(self, *, gmacs: float | None = None, latency_ms: float | None = None) -> str:
        """Return the largest grid within a budget for one view.

        Args:
            gmacs: 10^9 multiply-accumulates, in closed form.
            latency_ms: milliseconds, without decoding; measured once on this device and kept in the user's cache.

        Raises:
            UserError: even the smallest grid costs more; not one budget of the two; or a latency after ``compile``.
        """
        if gmacs is not None and latency_ms is None:
            return grid_name(grid_within_macs(self.cfg, gmacs))
        if latency_ms is not None and gmacs is None:
            check_budget(latency_ms)
            if self._compiled_batch:  # it fills batches up, and a single view is what is measured and kept
                raise UserError("latency_ms: choose the grid before the model is compiled")
            times = measured_latencies(self.predict_clips, self.cfg, self.device)
            return grid_name(grid_within_latency(times, latency_ms))
        raise UserError("gmacs, latency_ms: give one of them")

    def save_pretrained(self, folder: str | Path) -> None:
        """Write config.json, model.safetensors and README.md (a model card), as the Hugging Face Hub expects them.

        The card's accuracy is that of test_results.json beside the checkpoint, if it tells of this checkpoint.
        """
        macs = self.grids or {"": macs_a_view(self.model, self.cfg) / 1e9}
        write_pretrained(
            Path(folder), self.model, self.cfg, self.classes, macs, count_parameters(self.model), self.source
        )

    @classmethod
    def from_pretrained(cls, source: str | Path, device: str = "auto", revision: str | None = None) -> "Predictor":
        """Load what ``save_pretrained`` wrote: a folder, or an id of the Hugging Face Hub ("org/name").

        Args:
            revision: branch, tag or commit on the Hub.

        Raises:
            UserError: there is none, or it cannot be read.
        """
        return _predictor(read_pretrained(source, revision), device)

    def attention_maps(self, clip_CTHW: Tensor) -> Tensor | None:
        """Return where the compressed tokens look in a uint8 clip: (t, h, w), summing to 1; None for other models.

        The gather weights of the last block, averaged over heads and compressed tokens.
        """
        if not isinstance(self.model, LookupViT):
            return None
        with torch.inference_mode():
            clips = normalize(clip_CTHW[None].to(self.device), self.cfg.DATA.MEAN, self.cfg.DATA.STD)
            weights = self.model.forward_features(clips, return_attention=True).attention[-1]
        looked_BN = head_mean(weights).mean(1)  # a factorised encoder has a row for each time index
        return (looked_BN / len(looked_BN)).view(self.model.tokenizer.grid).cpu()


def load_model(checkpoint: str | Path, device: str = "auto") -> Predictor:
    """Load any checkpoint of this project for prediction; config, classes and normalisation are in it.

    Args:
        checkpoint: a .pt file of training; or a folder or Hub id as ``Predictor.from_pretrained`` takes.
        device: "auto" (a GPU if there is one), "cpu", "cuda", "cuda:1", ...

    Raises:
        UserError: the checkpoint cannot be read or does not hold together, or there is no such device.
    """
    if Path(checkpoint).is_dir() or is_hub_id(str(checkpoint)):
        return Predictor.from_pretrained(checkpoint, device)
    if Path(checkpoint).exists() and not Path(checkpoint).is_file():
        raise UserError(f"{checkpoint}: neither a file nor a folder; give a .pt file that tools/run_net.py wrote")
    try:
        loaded = load_checkpoint(checkpoint)
    except (TypeError, AttributeError, KeyError, RecursionError):
        raise UserError(f"{checkpoint}: no checkpoint of this project: what is in it has the wrong type") from None
    return _predictor(loaded, device)


def _predictor(loaded: Checkpoint, device: str) -> Predictor:
    place = _device(device)
    _check_whole(loaded)
    model = build_model(loaded.config)
    load_weights(model, loaded)
    return Predictor(model, loaded.config, loaded.classes, place, loaded.path)


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        place = torch.device(name)
        torch.empty(1, device=place).cpu()  # there are devices that exist in name only
    except (RuntimeError, AssertionError, NotImplementedError, ImportError) as error:
        raise UserError(f"--device {name}: {str(error).splitlines()[0]}") from None
    return place


def _check_whole(loaded: Checkpoint) -> None:
    """Raise ValueError where a checkpoint contradicts itself, before memory is taken for what its config says."""
    path, cfg, classes, state = loaded.path, loaded.config, loaded.classes, loaded.model
    if not isinstance(classes, list) or not all(isinstance(name, str) and name for name in classes):
        raise UserError(f"{path}: its class list holds other things than names")
    if len(set(classes)) != len(classes):
        raise UserError(f"{path}: its class list names a class twice")
    if len(classes) != cfg.MODEL.NUM_CLASSES:
        raise UserError(
            f"{path}: it names {len(classes)} classes, but its MODEL.NUM_CLASSES is {cfg.MODEL.NUM_CLASSES}"
        )
    is_sound = isinstance(state, dict) and all(
        isinstance(tensor, Tensor) and tensor.layout == torch.strided and not tensor.is_complex()
        for tensor in state.values()
    )
    if not is_sound:
        raise UserError(f"{path}: its weights are no plain tensors by name")
    if not MODELS[cfg.MODEL.ARCH].tubelets:
        return  # of a few fixed sizes
    if max(cfg.MODEL.DEPTH, cfg.MODEL.TEMPORAL_DEPTH if cfg.MODEL.ENCODER == "factorised" else 0) > len(state):
        raise UserError(f"{path}: its config has more blocks than it holds weights")
    with torch.device("meta"), warnings.catch_warnings(action="ignore"):  # shapes only: no memory is taken
        try:
            model = build_model(cfg)
        except (RuntimeError, OverflowError, TypeError) as error:  # numbers beyond all bounds
            why = str(error).splitlines()[0]
            raise UserError(f"{path}: its config describes no model that can be built ({why})") from None
        load_weights(model, loaded)  # torch warns that nothing is copied
    stored = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in state.values()}
    if sum(tensor.numel() * tensor.element_size() for tensor in state.values()) > 2 * sum(stored.values()):
        raise UserError(f"{path}: its weights are larger than what the file holds of them")
