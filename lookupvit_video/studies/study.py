"""Studies: every row of settings trained for every seed, in processes side by side."""

import logging
import os
import threading
import time
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from multiprocessing import active_children, get_context
from pathlib import Path
from typing import Any

import numpy as np
import simplejson
import torch

from lookupvit_video.config import config_from_text, differences, get_defaults, load_config, parse_yaml
from lookupvit_video.data.manifest import load_classes
from lookupvit_video.distributed.world import World
from lookupvit_video.errors import UserError
from lookupvit_video.evaluation.metrics import METRICS, main_metric
from lookupvit_video.evaluation.run_test import run_test
from lookupvit_video.log import setup_logging
from lookupvit_video.processes.children import deaf_to
from lookupvit_video.processes.stop_signals import Stopped, StopSignals
from lookupvit_video.text import markdown_table, write_text
from lookupvit_video.training.output import sole_writer
from lookupvit_video.training.train import train

KEYS = ("configs", "seeds", "rows", "settings")
# These change no result: a finished run may have other values of them.
IGNORED = ("OUTPUT_DIR", "LOG_PERIOD", "DIST_TIMEOUT", "TENSORBOARD.", "DATA_LOADER.", "TRAIN.CHECKPOINT_",
           "TRAIN.KEEP_")  # fmt: skip
_stopped: Stopped | None = None  # in a process of ``do_runs``: why it takes no more runs
Run = tuple[Path, str, list[str]]
"""Folder, config file, overrides."""


def read_study(path: Path) -> dict[str, Any]:
    """Read a study file.

    Raises:
        UserError: names the invalid key.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot read this study ({getattr(error, 'strerror', None) or error})") from None
    study = parse_yaml(text, str(path))
    if not isinstance(study, dict) or not {"configs", "seeds", "rows"} <= study.keys():
        raise UserError(f"{path}: a study has the keys configs, seeds and rows")
    if unknown := [key for key in study if key not in KEYS]:
        fix = (
            "settings for all rows go below 'settings:', those of one row below its name"
            if is_setting(unknown[0]) else f"a study has the keys {', '.join(KEYS)}"
        )  # fmt: skip
        raise UserError(f"{path}: unknown key {unknown[0]}; {fix}")
    for key in ("configs", "rows"):
        if not isinstance(study[key], dict) or not study[key]:
            raise UserError(f"{path}: {key} holds lines 'name: ...', at least one")
    for name, file in study["configs"].items():
        if not isinstance(file, str):
            raise UserError(f"{path}: configs: {name} must be the path of a config, got {file!r}")
    seeds = study["seeds"]
    if not isinstance(seeds, list) or not seeds or not all(type(seed) is int and seed >= 0 for seed in seeds):
        raise UserError(f"{path}: seeds must be a list of integers of at least 0, such as [0, 1, 2]; got {seeds!r}")
    if again := [seed for seed in seeds if seeds.count(seed) > 1]:
        raise UserError(f"{path}: seeds: {again[0]} is named twice")
    check_settings(path, "settings", study.get("settings"))
    for name, changes in study["rows"].items():
        check_settings(path, f"row {name!r}", changes)
    for key in ("configs", "rows"):
        folders = [name.replace(" ", "_") for name in study[key]]
        if twice := sorted({folder for folder in folders if folders.count(folder) > 1}):
            raise UserError(f"{path}: two {key} would share the folder {twice[0]}; give them different names")
        if bad := [name for name in study[key] if "/" in name or name in ("", ".", "..")]:
            raise UserError(f"{path}: {key}: {bad[0]!r} cannot be the name of a folder")
    return study


def is_setting(key: str) -> bool:
    """Whether a key is one of a config, or a group of them."""
    return key.split(".")[0] in get_defaults()


def check_settings(path: Path, where: str, settings: Any) -> None:
    """Raise UserError unless the settings of a row, or of all rows, are lines 'KEY: value' of a config's keys."""
    if settings is None:
        return
    if not isinstance(settings, dict):
        raise UserError(f"{path}: {where} holds lines 'KEY: value'; got {settings!r}")
    for key in settings:
        if not is_setting(key):
            raise UserError(f"{path}: {where}: unknown key {key}; write keys of a config, such as MODEL.DEPTH")
        if key in ("RNG_SEED", "OUTPUT_DIR"):
            raise UserError(f"{path}: {where}: {key} is set by the study itself (seeds, --out); remove it")


def plan(study: dict[str, Any], path: Path, out: Path, common: Sequence[str] = ()) -> list[Run]:
    """Return every run, seed by seed, so that a stopped study is balanced.

    Args:
        common: settings over those of the study, key, value, key, value; a row's own stand above them.

    Raises:
        UserError: some settings are invalid; names the study's file and the row.
    """
    runs = []
    for seed in study["seeds"]:
        for config, file in study["configs"].items():
            for row, changes in study["rows"].items():
                folder = out / config / row.replace(" ", "_") / str(seed)
                own = {**(changes or {}), "RNG_SEED": seed, "OUTPUT_DIR": folder}
                overrides = [*_flat(study.get("settings") or {}), *common, *_flat(own)]
                try:
                    load_config(file, overrides)  # mistakes are reported before any work
                except UserError as error:
                    raise UserError(f"{path}: config {config!r}, row {row!r}: {error}") from None
                runs.append((folder, file, overrides))
    return runs


def _flat(settings: dict[str, Any]) -> list[str]:
    return [str(part) for pair in settings.items() for part in pair]


def die_with(parent: int) -> None:
    """End this process soon after its parent, even a killed one: nobody would know of its runs."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def run(folder: Path, file: str, overrides: list[str]) -> float:
    """Train and test one run in this process, on one thread; return the seconds it took."""
    global _stopped
    if _stopped is not None:
        raise _stopped  # this process got another run before it was stopped
    torch.set_num_threads(1)
    logging.disable(logging.INFO)
    setup_logging(True)
    began = time.perf_counter()
    cfg, world = load_config(file, overrides), World(0, 1, torch.device("cpu"))
    with sole_writer(cfg.OUTPUT_DIR, world):
        write_text(folder / "config.yaml", cfg.dump())
        classes = load_classes(cfg)
        try:
            train(cfg, classes, world)
        except Stopped as stopped:
            _stopped = stopped
            raise
        run_test(cfg, classes, world)
        for checkpoint in (folder / "checkpoints").glob("*.pt"):
            checkpoint.unlink()  # model.pt stays; a study has hundreds of runs
    return time.perf_counter() - began


def results_of(study: dict[str, Any], out: Path) -> list[dict[str, Any]]:
    """Return one entry per config, row and compressed grid: top-1 of each seed that is done, GMACs, parameters."""
    entries: list[dict[str, Any]] = []
    for config in study["configs"]:
        for row in study["rows"]:
            found: dict[str, dict[str, Any]] = {}
            for seed in study["seeds"]:
                path = out / config / row.replace(" ", "_") / str(seed) / "test_results.json"
                if not path.exists():
                    continue
                result = simplejson.loads(path.read_text(encoding="utf-8"))
                metric = main_metric(result)
                own = {"grid": "", **{key: result[key] for key in ("gmacs_per_view", metric)}}
                for line in result.get("grids", [own]):
                    entry = found.setdefault(
                        line["grid"],
                        {"config": config, "row": row, "grid": line["grid"], "gmacs": line["gmacs_per_view"],
                         "parameters": result["parameters"], "videos": result["videos"], metric: {}},
                    )  # fmt: skip
                    entry[metric][str(seed)] = line[metric]
            entries += found.values()
    return entries


def table_of(entries: list[dict[str, Any]]) -> str:
    """Return the Markdown table of one study."""
    labels = dict.fromkeys(METRICS[main_metric(entry)].label for entry in entries)
    titles = ("config", "row", "grid", "MMACs a view", "parameters, k",
              f"{' or '.join(labels) or 'top-1'}, mean ± deviation over seeds", "each seed")  # fmt: skip
    rows = []
    for entry in entries:
        values = list(entry[main_metric(entry)].values())
        rows.append((
            entry["config"], entry["row"], entry["grid"], f"{1000 * entry['gmacs']:.2f}",
            f"{entry['parameters'] / 1000:.0f}", mean_and_spread(values), ", ".join(f"{value:.1f}" for value in values),
        ))  # fmt: skip
    return markdown_table(titles, rows)


def mean_and_spread(values: Sequence[float]) -> str:
    """Return "**mean** ± standard deviation", as the tables of studies have it."""
    spread = f" ± {np.std(values, ddof=1):.1f}" if len(values) > 1 else ""
    return f"**{np.mean(values):.1f}**{spread}"


def check_done(runs: Sequence[Run]) -> None:
    """Raise UserError where a finished run has other settings than the study now: its result is another row's."""
    for folder, file, overrides in runs:
        written = folder / "config.yaml"
        if not written.is_file():
            continue
        before = config_from_text(written.read_text(encoding="utf-8"), str(written))
        changed = [
            f"{name} {old!r}, now {new!r}" for name, old, new in differences(before, load_config(file, overrides))
            if not name.startswith(IGNORED)
        ]  # fmt: skip
        if changed:
            raise UserError(
                f"{folder}: this run was done with other settings ({'; '.join(changed)}); remove the folder to repeat "
                "the run, or choose another --out"
            )


def do_runs(runs: Sequence[Run], jobs: int) -> list[str]:
    """Train and test all runs, some at a time; return what failed.

    Raises:
        Stopped: a signal came; the current runs have saved.
    """
    failed: list[str] = []
    with StopSignals() as stop, ProcessPoolExecutor(jobs, get_context("spawn"), die_with, (os.getpid(),)) as pool:
        with deaf_to("SIGINT"):  # they are ended by SIGTERM, once
            folders = {pool.submit(run, *job): job[0] for job in runs}
        left, number = set(folders), 0
        while left:
            done, left = wait(left, timeout=0.5, return_when=FIRST_COMPLETED)
            if stop.name:
                for future in left:  # not by shutdown(wait=False): its thread would still run when Python ends
                    future.cancel()
                for process in active_children():
                    process.terminate()
                break
            for future in done:
                folder, number = folders[future], number + 1
                if future.exception():
                    failed.append(f"{folder}: {future.exception()}")
                    print(f"[{number}/{len(runs)}] failed: {failed[-1]}", flush=True)
                    continue
                result = simplejson.loads((folder / "test_results.json").read_text(encoding="utf-8"))
                print(
                    f"[{number}/{len(runs)}] {folder}: {result[main_metric(result)]:.2f} % in {future.result():.0f} s",
                    flush=True,
                )
    if stop.name:
        raise Stopped(f"stopped by {stop.name}; rerun the command to resume from what was saved", stop.interrupted)
    return failed
