#!/usr/bin/env python3
"""What finished runs trained, how long that took and how good they are: one table, a line for each run."""

from lookupvit_video.commands.run_command import run_command  # first: Ctrl-C in a later import gives one line

# isort: split
import argparse
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import simplejson
import torch

from lookupvit_video.config import config_from_text, differences
from lookupvit_video.errors import UserError
from lookupvit_video.log import read_json_lines
from lookupvit_video.models.build import build_model
from lookupvit_video.models.complexity import count_parameters

EXAMPLE = """example:
  python tools/compare_runs.py runs/studies/finetune/turning/*/*

Each folder is the OUTPUT_DIR of a run that was trained and tested. Folders named by a number (the seeds of
tools/study.py) make one line for the folder above them: means, and the deviation of the accuracy. Their configs must be
equal except for RNG_SEED, which must differ, and OUTPUT_DIR.
"""
# What may differ between the seeds of a line: it changes no result.
NO_MATTER = {"RNG_SEED", "OUTPUT_DIR"}


def facts_of(folder: Path) -> dict[str, Any]:
    """Return a run's config, what it trained, its seconds and its accuracy; ValueError where it is no finished run."""
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
            "steps": before, "top1": result["top1"], "videos": result["videos"],
            "views": result.get("views", "")}  # fmt: skip


def group_runs(folders: Sequence[Path]) -> dict[str, list[dict[str, Any]]]:
    """Return the facts of the runs of each line of the table, by the shortest names that tell the lines apart.

    Raises:
        UserError: a folder is named twice or is no finished run, or runs that would be averaged are not the same but
            for the seed.
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
    """Raise ValueError where two runs differ in more than their seeds."""
    found = [
        f"{name} {value!r} and {others!r}" for name, value, others in differences(one["config"], other["config"])
        if name not in NO_MATTER
    ]  # fmt: skip
    found += [f"{name} {one[name]} and {other[name]}" for name in ("videos", "views") if one[name] != other[name]]
    if found:
        raise UserError(
            f"{one['folder']} and {other['folder']} would be averaged as seeds of one run, but differ in "
            f"{'; '.join(found[:3])}{f' and {len(found) - 3} more' if len(found) > 3 else ''}; compare them in folders "
            "of different names"
        )


def short_names(folders: Sequence[Path]) -> list[str]:
    """Name each folder by as few of its last parts as tell all of them apart."""
    deepest = max(len(folder.parts) for folder in folders)
    for count in range(1, deepest + 1):
        names = ["/".join(folder.parts[-count:]).replace("_", " ") for folder in folders]
        if len(set(names)) == len(names):
            return names
    return list(map(str, folders))


def table_of(runs: dict[str, list[dict[str, Any]]]) -> str:
    """Return the Markdown table."""
    lines = [
        "| run | trains, k | of, k | share | steps | training without waiting for data, s | top-1, mean ± deviation |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, seeds in runs.items():
        top1 = [facts["top1"] for facts in seeds]
        spread = f" ± {np.std(top1, ddof=1):.1f}" if len(top1) > 1 else ""
        first, seconds = seeds[0], np.mean([facts["seconds"] for facts in seeds])
        lines.append(
            f"| {name} | {first['trained'] / 1000:.1f} | {first['total'] / 1000:.1f} "
            f"| {100 * first['trained'] / first['total']:.1f} % | {first['steps']} | {seconds:.1f} "
            f"| **{np.mean(top1):.1f}**{spread} |"
        )
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="FOLDER")
    print(table_of(group_runs(parser.parse_args().runs)))
    return 0


if __name__ == "__main__":
    run_command(main)
