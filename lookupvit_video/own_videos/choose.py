"""A config without choices -> the config of a run: find the videos, split them, measure, choose, and say why."""

import hashlib
import logging
import math
import os
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from fvcore.common.config import CfgNode

from lookupvit_video.checkpoints.checkpoint import training_checkpoints
from lookupvit_video.config import KEYS, config_from_text, differences, get_defaults, get_key, with_settings
from lookupvit_video.config.keys import MULTI_LABEL_METRICS
from lookupvit_video.data.manifest import Video, label_cell
from lookupvit_video.decoding.backends import VideoInfo
from lookupvit_video.distributed.world import World, gather_objects
from lookupvit_video.errors import RunFailure, UserError
from lookupvit_video.log import clock
from lookupvit_video.own_videos.facts import open_sample, this_machine, video_facts
from lookupvit_video.own_videos.find import FoundVideos, find_videos
from lookupvit_video.own_videos.measure import measure
from lookupvit_video.own_videos.rules import (
    MIN_EPOCHS,
    RULES,
    SCALES,
    Known,
    choose_settings,
    epoch_seconds,
    fixed_seconds,
)
from lookupvit_video.own_videos.split import complete_splits, imbalance, shared_names, write_splits
from lookupvit_video.own_videos.weights import settings_of_weights
from lookupvit_video.text import one_line, shown, write_csv, write_text

logger = logging.getLogger(__name__)
_FIXED = ("RNG_SEED", "AUTO.MINUTES", "AUTO.GROUP_BY")  # of a run that resumes
_OF_DATA = ("DATA.PATH_TO_DATA_DIR", "DATA.PATH_PREFIX", "MODEL.NUM_CLASSES", "MODEL.TASK")
_CHOSEN = {"AUTO.ENABLE": False}
_TRIAL = {**_CHOSEN, "SOLVER.MAX_EPOCH": 1, "SOLVER.WARMUP_EPOCHS": 0}
_DIGEST, _LEFT_OUT = "videos.sha256", "left_out.csv"


def output_dir_of(data: str) -> str:
    """Return the default OUTPUT_DIR of a run on a folder or list: runs/NAME.

    Raises:
        UserError: no folder was given.
    """
    if not data:
        raise UserError("DATA.PATH_TO_DATA_DIR is empty; name your folder or list of videos: --data PLACE")
    place = Path(data).resolve()
    return f"runs/{place.stem if place.is_file() else place.name}"


def choose_config(cfg: CfgNode, given: set[str], world: World, folder: Path) -> CfgNode:
    """Return the config of a run on the videos in DATA.PATH_TO_DATA_DIR, with AUTO.ENABLE off; all processes call it.

    The splits are written to ``folder``. A run that resumes keeps its splits and settings.

    Args:
        given: keys that the user set; the others of ``rules.RULES`` are chosen.

    Raises:
        UserError: there are no labeled videos, or others than this run began with.
        RunFailure: no video can be read.
        SystemExit: in the other processes, in place of these.
    """
    values: dict[str, Any] | None = None
    error: UserError | RunFailure | None = None
    if world.is_main:
        try:
            found = find_videos(Path(cfg.DATA.PATH_TO_DATA_DIR), cfg.AUTO.GROUP_BY)
            resumes = bool(training_checkpoints(cfg.OUTPUT_DIR))
            fixed = {name: get_key(cfg, name) for name in _FIXED}
            values = (
                _as_before(Path(cfg.OUTPUT_DIR), given, fixed, found) if resumes
                else _chosen(cfg, given, found, world, folder)
            )  # fmt: skip
        except (UserError, RunFailure) as failure:
            error = failure
    values = gather_objects(values, world)[0]
    if error:
        raise error
    if values is None:
        raise SystemExit(2)
    return with_settings(cfg, values)


def _as_before(output: Path, given: set[str], fixed: Mapping[str, Any], found: FoundVideos) -> dict[str, Any]:
    """Return what was chosen when the run in ``output`` began.

    Args:
        fixed: the values of ``_FIXED`` now.

    Raises:
        UserError: the videos, or what decides splits and length, are not the same.
    """
    path = output / "config.yaml"
    advice = f"choose another OUTPUT_DIR, or resume the run as it was: --cfg {path}"
    try:
        before = config_from_text(path.read_text(encoding="utf-8"), str(path))
        digest = (path.parent / "data" / _DIGEST).read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{error.filename}: {error.strerror}, but there are checkpoints; {advice}") from None
    if digest != _digest(found):
        raise UserError(f"DATA.PATH_TO_DATA_DIR: its videos are not those that this run began with; {advice}")
    for name, now in fixed.items():
        then = get_key(before, name)
        if then != now:
            raise UserError(f"{name} was {then!r} when this run began and is now {now!r}; {advice}")
    logger.info("splits and settings: as in %s, from which this run resumes", path)
    return {name: get_key(before, name) for name in KEYS if name not in given or name in (*_CHOSEN, *_OF_DATA)}


def _digest(found: FoundVideos) -> str:
    """Return a text that changes with the videos, their classes and groups."""
    rows = sorted(
        (split, os.path.abspath(video.path), label_cell(video, found.classes), video.group, str(video.start),
         str(video.end))
        for split, videos in found.splits.items() for video in videos
    )  # fmt: skip
    return hashlib.sha256(repr(rows).encode("utf-8", "surrogateescape")).hexdigest()


def _chosen(cfg: CfgNode, given: set[str], found: FoundVideos, world: World, folder: Path) -> dict[str, Any]:
    """Split, measure and choose; return the values of all chosen keys."""
    began = time.monotonic()
    splits, infos = _split(found, cfg.RNG_SEED, folder)
    facts, machine = video_facts(splits, len(found.classes), infos), this_machine(world)
    logger.info("the median video: %.3g s, %.3g frames/s, short side %d", facts.seconds, facts.fps, facts.short_side)
    task = "multi_label" if found.multi_label else "single_label"
    of_data: dict[str, Any] = dict(zip(_OF_DATA, (str(folder), "", facts.classes, task), strict=True))
    if found.multi_label and "TRAIN.BEST_METRIC" not in given:
        of_data |= MULTI_LABEL_METRICS
    weights = settings_of_weights(cfg.MODEL.INIT_FROM) if cfg.MODEL.INIT_FROM else {}
    weights = {name: choice for name, choice in weights.items() if name not in given}
    base = with_settings(cfg, of_data | {name: value for name, (value, _) in weights.items()})
    fixed = {name: get_key(base, name) for name in KEYS if name in given or name in weights or name not in RULES}
    limit = 60 * (cfg.AUTO.MINUTES or (10.0 if machine.device == "cpu" else 60.0))
    for scale in [scale for scale in SCALES[machine.device] if facts.train >= scale.from_videos]:
        known = Known(facts, machine, scale, fixed)
        trial = with_settings(base, {name: value for name, (value, _) in choose_settings(known).items()} | _TRIAL)
        known = replace(known, costs=measure(trial, splits["train"], world.device))
        known = replace(known, seconds=limit - (time.monotonic() - began))
        chosen = choose_settings(known)
        values = {name: value for name, (value, _) in chosen.items()}
        known = replace(known, values=fixed | values)
        if known["SOLVER.MAX_EPOCH"] >= MIN_EPOCHS or "DATA.TRAIN_CROP_SIZE" in fixed:
            break
    config = with_settings(base, values | _CHOSEN)
    settings = [(name, value) for name, value, _ in differences(config, get_defaults())]
    _report(settings, {name: reason for name, (_, reason) in (weights | chosen).items()}, known, began)
    return {name: get_key(config, name) for name in (*_CHOSEN, *of_data, *weights, *values)}


def _report(settings: Sequence[tuple[str, Any]], reasons: Mapping[str, str], known: Known, began: float) -> None:
    """Log the settings as YAML, each chosen one with its reason, and the time that they will take."""
    assert known.costs
    logger.info(
        "settings, with the reasons for those that were chosen; save them as a config to change and reuse them:"
    )
    group = ""
    for name, value in settings:
        *groups, last = name.split(".")
        if groups and groups[0] != group:
            group = groups[0]
            logger.info("%s:", group)
        text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=math.inf).split("\n")[0]
        logger.info("%s%s: %s%s", "  " * len(groups), last, text, f"  # {reasons[name]}" if name in reasons else "")
    costs, epochs = known.costs, known["SOLVER.MAX_EPOCH"]
    begun = time.monotonic() - began
    logger.info(
        "predicted: %s for %d epochs and the test; measured: %.3g s to read a video, %.3g s if read before, %.3g s to "
        "train on a clip, %.3g s to test on one; %s used so far",
        clock(fixed_seconds(known) + epochs * epoch_seconds(known)), epochs, *costs[:4], clock(begun),
    )  # fmt: skip


def _split(found: FoundVideos, seed: int, folder: Path) -> tuple[dict[str, list[Video]], dict[str, VideoInfo]]:
    """Write the splits, without the videos that cannot be read unless they are in a test that was given."""
    infos, bad = open_sample([video for videos in found.splits.values() for video in videos], seed)
    usable = {
        split: [video for video in videos if split in ("val", "test") or video.path not in bad]
        for split, videos in found.splits.items()
    }
    splits, said = complete_splits(usable, seed)
    hints = [*found.hints, shared_names(next(iter(usable.values()))), imbalance(found.classes, splits)]
    if bad:
        first, reason = next(iter(bad.items()))
        hints.append(f"{len(bad)} videos cannot be read, see {folder / _LEFT_OUT}; for instance {first}: {reason}")
        write_csv(folder / _LEFT_OUT, ["path", "reason"], sorted(bad.items()))
    write_splits(folder, found.classes, splits)
    write_text(folder / _DIGEST, _digest(found))
    logger.info("%s: %d videos of %d classes", folder, sum(map(len, usable.values())), len(found.classes))
    for line in said:
        logger.info("%s: %s", folder, line)
    for split, videos in splits.items():
        counts = Counter(found.classes[label] for video in videos for label in video.every_label)
        logger.info("%s: %d videos: %s", split, len(videos), shown(f"{name} {counts[name]}" for name in found.classes))
    for hint in filter(None, hints):
        logger.warning("%s", one_line(hint))
    return splits, infos
