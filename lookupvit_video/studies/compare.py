"""Finished runs in one table: what they trained, how long that took and how good they are."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import simplejson
import torch

from lookupvit_video.config import config_from_text, differences
from lookupvit_video.errors import UserError
from lookupvit_video.evaluation.metrics import main_metric
from lookupvit_video.log import read_json_lines
from lookupvit_video.models.build import build_model
from lookupvit_video.models.complexity import count_parameters
from lookupvit_video.studies.study import mean_and_spread
from lookupvit_video.text import markdown_table

# These may differ between the seeds of a line.
IGNORED = {"RNG_SEED", "OUTPUT_DIR"}


def facts_of(folder: Path) -> dict[str, Any]:
    """Return a run's config, what it trained, its seconds and its accuracy.

    Raises:
        UserError: the run is not finished.
    """
    try:
        text = (folder / "config.yaml").read_text(encoding="utf-8")
        result = simplejson.loads((folder / "test_results.json").read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{error.filename}: {error.strerror}; give the OUTPUT_DIR of a run that was tested") from None
    except simplejson.JSONDecodeError as error:
        raise UserError(f"{folder / 'test_results.json'}: damaged ({error}); test the run again") from None
    with torch.device("meta"):
        cfg = config_from_text(text, str(folder / "config.yaml"))
        model = build_model(cfg)
    seconds, before = 0.0, 0
    for line in read_json_lines(folder / "log.jsonl", "train"):
        seconds += (line["step"] - before) * (line["step_time"] - line["data_time"])
        before = line["step"]
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    return {"folder": folder, "config": cfg, "trained": trained, "total": count_parameters(model), "seconds": seconds,
            "steps": before, "accuracy": result[main_metric(result)], "videos": result["videos"],
            "views": result.get("views", "")}  # fmt: skip


def group_runs(folders: Sequence[Path]) -> dict[str, list[dict[str, Any]]]:
    """Return the facts of the runs of each line of the table, by the shortest names that differ.

    Raises:
        UserError: a folder is named twice or its run is not finished, or runs to average differ in more than the seed.
    """
    groups: dict[Path, list[dict[str, Any]]] = defaultdict(list)
    seen: set[Path] = set()
    for folder in folders:
        place = folder.resolve()
        if place in seen:
            raise UserError(f"{folder}: this run is named twice")
        seen.add(place)
        groups[place.parent if place.name.isdigit() else place].append(facts_of(folder))
    for runs in groups.values():
        for run in runs[1:]:
            check_seeds(runs[0], run)
        seeds = [run["config"].RNG_SEED for run in runs]
        if again := [run for run, seed in zip(runs, seeds, strict=True) if seeds.count(seed) > 1]:
            raise UserError(
                f"{again[0]['folder']} and {again[1]['folder']} have the same RNG_SEED {again[0]['config'].RNG_SEED}: "
                "they are not two seeds of one line; give one of them"
            )
    return dict(zip(short_names(list(groups)), groups.values(), strict=True))


def check_seeds(one: dict[str, Any], other: dict[str, Any]) -> None:
    """Raise UserError where two runs differ in more than their seeds."""
    found = [
        f"{name} {value!r} and {others!r}" for name, value, others in differences(one["config"], other["config"])
        if name not in IGNORED
    ]  # fmt: skip
    found += [f"{name} {one[name]} and {other[name]}" for name in ("videos", "views") if one[name] != other[name]]
    if found:
        raise UserError(
            f"{one['folder']} and {other['folder']} would be averaged as seeds of one run, but differ in "
            f"{'; '.join(found[:3])}{f' and {len(found) - 3} more' if len(found) > 3 else ''}; compare them in folders "
            "of different names"
        )


def short_names(folders: Sequence[Path]) -> list[str]:
    """Name each folder by as few of its last parts as make all names differ."""
    deepest = max(len(folder.parts) for folder in folders)
    for count in range(1, deepest + 1):
        names = ["/".join(folder.parts[-count:]).replace("_", " ") for folder in folders]
        if len(set(names)) == len(names):
            return names
    return list(map(str, folders))


def table_of(runs: dict[str, list[dict[str, Any]]]) -> str:
    """Return the Markdown table."""
    titles = ("run", "trains, k", "of, k", "share", "steps", "training without waiting for data, s",
              "accuracy, mean ± deviation")  # fmt: skip
    rows = []
    for name, seeds in runs.items():
        first, seconds = seeds[0], np.mean([facts["seconds"] for facts in seeds])
        rows.append((
            name, f"{first['trained'] / 1000:.1f}", f"{first['total'] / 1000:.1f}",
            f"{100 * first['trained'] / first['total']:.1f} %", first["steps"], f"{seconds:.1f}",
            mean_and_spread([facts["accuracy"] for facts in seeds]),
        ))  # fmt: skip
    return markdown_table(titles, rows)
