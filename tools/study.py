#!/usr/bin/env python3
"""Train every row of a study for every seed; table of mean and spread of top-1 beside GMACs and parameters."""

import argparse
import logging
import os
import threading
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import simplejson
import torch
import yaml

from lookupvit_video.cli import run_command
from lookupvit_video.config import load_config
from lookupvit_video.data.manifest import load_classes
from lookupvit_video.engine.log import setup_logging
from lookupvit_video.engine.test import test
from lookupvit_video.engine.train import train
from lookupvit_video.engine.world import World
from lookupvit_video.files import written_whole

EXAMPLE = """example:
  python tools/study.py --study configs/studies/options_motion.yaml --jobs 2

A study is a YAML file: configs (name: file), seeds, rows (name: {KEY: value}), and settings that hold for all rows.
A run that is done is not done again: stop it and start it as you like. Runs land in OUT/CONFIG/ROW/SEED, the table in
OUT/table.md and OUT/table.json.
"""


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--study", required=True, type=Path, metavar="FILE", help="what to compare")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="default: runs/studies/NAME")
    parser.add_argument("--jobs", type=int, default=1, help="runs side by side, one thread each (default 1)")
    parser.add_argument("--table-only", action="store_true", help="make the table of the runs that are done")
    return parser.parse_args()


def read_study(path: Path) -> dict[str, Any]:
    """Read a study file; ValueError where it is none."""
    try:
        study = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise ValueError(f"{path}: this study cannot be read ({' '.join(str(error).split())})") from None
    if not isinstance(study, dict) or not {"configs", "seeds", "rows"} <= study.keys():
        raise ValueError(f"{path}: a study has the keys configs, seeds and rows")
    for key in ("configs", "rows"):
        if not isinstance(study[key], dict) or not all(isinstance(name, str) for name in study[key]):
            raise ValueError(
                f"{path}: {key} holds lines 'name: ...'; quote a name that is a number, on, off, yes or no"
            )
    folders = [row.replace(" ", "_") for row in study["rows"]]
    if twice := sorted({folder for folder in folders if folders.count(folder) > 1}):
        raise ValueError(f"{path}: two rows would share the folder {twice[0]}; name them apart")
    return study


def overrides_of(settings: dict[str, Any]) -> list[str]:
    return [str(part) for pair in settings.items() for part in pair]


def plan(study: dict[str, Any], out: Path) -> list[tuple[Path, str, list[str]]]:
    """Return (folder, config file, overrides) of every run, seed by seed, so that a stopped study is balanced."""
    runs = []
    for seed in study["seeds"]:
        for config, file in study["configs"].items():
            for row, changes in study["rows"].items():
                folder = out / config / row.replace(" ", "_") / str(seed)
                settings = {**(study.get("settings") or {}), **(changes or {}), "RNG_SEED": seed, "OUTPUT_DIR": folder}
                overrides = overrides_of(settings)
                load_config(file, overrides)  # what is wrong is told before any work
                runs.append((folder, file, overrides))
    return runs


def die_with(parent: int) -> None:
    """End this process soon after its parent, also where that was killed: nobody would know of its runs."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def run(folder: Path, file: str, overrides: list[str]) -> float:
    """Train and test one run in this process, on one thread; return the seconds it took."""
    torch.set_num_threads(1)
    logging.disable(logging.INFO)
    setup_logging(True)
    began = time.perf_counter()
    cfg = load_config(file, overrides)
    with written_whole(folder / "config.yaml") as temporary:
        temporary.write_text(cfg.dump(), encoding="utf-8")
    classes, world = load_classes(cfg), World(0, 1, torch.device("cpu"))
    train(cfg, classes, world)
    test(cfg, classes, world)
    for checkpoint in (folder / "checkpoints").glob("*.pt"):
        checkpoint.unlink()  # model.pt stays; a study has hundreds of runs
    return time.perf_counter() - began


def results_of(study: dict[str, Any], out: Path) -> list[dict[str, Any]]:
    """Return one entry per config, row and compressed grid: top-1 of each seed that is done, GMACs, parameters."""
    entries = []
    for config in study["configs"]:
        for row in study["rows"]:
            found: dict[str, dict[str, Any]] = {}
            for seed in study["seeds"]:
                path = out / config / row.replace(" ", "_") / str(seed) / "test_results.json"
                if not path.exists():
                    continue
                result = simplejson.loads(path.read_text(encoding="utf-8"))
                own = {"grid": "", **{key: result[key] for key in ("gmacs_per_view", "top1")}}
                for line in result.get("grids", [own]):
                    entry = found.setdefault(
                        line["grid"],
                        {"config": config, "row": row, "grid": line["grid"], "gmacs": line["gmacs_per_view"],
                         "parameters": result["parameters"], "videos": result["videos"], "top1": {}},
                    )  # fmt: skip
                    entry["top1"][str(seed)] = line["top1"]
            entries += found.values()
    return entries


def table_of(entries: list[dict[str, Any]]) -> str:
    """Return the Markdown table of one study."""
    lines = [
        "| config | row | grid | MMACs a view | parameters, k | top-1, mean ± deviation over seeds | each seed |",
        "|---|---|---|---|---|---|---|",
    ]
    for entry in entries:
        values = list(entry["top1"].values())
        spread = f" ± {np.std(values, ddof=1):.1f}" if len(values) > 1 else ""
        lines.append(
            f"| {entry['config']} | {entry['row']} | {entry['grid']} | {1000 * entry['gmacs']:.2f} "
            f"| {entry['parameters'] / 1000:.0f} | **{np.mean(values):.1f}**{spread} "
            f"| {', '.join(f'{value:.1f}' for value in values)} |"
        )
    return "\n".join(lines) + "\n"


def main() -> int:
    arguments = parse_arguments()
    study = read_study(arguments.study)
    out = arguments.out or Path("runs/studies") / arguments.study.stem
    runs = [job for job in plan(study, out) if not (job[0] / "test_results.json").exists()]
    if arguments.table_only:
        runs = []
    print(f"{len(runs)} runs to do, {arguments.jobs} side by side; table: {out / 'table.md'}", flush=True)
    failed = []
    with ProcessPoolExecutor(arguments.jobs, get_context("spawn"), die_with, (os.getpid(),)) as pool:
        waiting = {pool.submit(run, *job): job[0] for job in runs}
        for number, future in enumerate(as_completed(waiting), 1):
            folder = waiting[future]
            if future.exception():
                failed.append(f"{folder}: {future.exception()}")
                print(f"[{number}/{len(runs)}] failed: {failed[-1]}", flush=True)
            else:
                result = simplejson.loads((folder / "test_results.json").read_text(encoding="utf-8"))
                print(f"[{number}/{len(runs)}] {folder}: {result['top1']:.2f} % in {future.result():.0f} s", flush=True)
    entries = results_of(study, out)
    table = table_of(entries)
    for name, text in (("table.md", table), ("table.json", simplejson.dumps(entries, indent=1) + "\n")):
        with written_whole(out / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
    print(table)
    return 1 if failed else 0


if __name__ == "__main__":
    run_command(main)
