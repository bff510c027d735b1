#!/usr/bin/env python3
"""What finished runs trained, how long that took and how good they are: one table, a line for each run."""

import argparse
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import simplejson
import torch

from lookupvit_video.cli import run_command
from lookupvit_video.config import config_from_text
from lookupvit_video.engine.log import read_json_lines
from lookupvit_video.models.build import build_model
from lookupvit_video.models.complexity import count_parameters

EXAMPLE = """example:
  python tools/compare_runs.py runs/studies/finetune/turning/*/*

Each folder is the OUTPUT_DIR of a run that was trained and tested. Folders named by a number (the seeds of
tools/study.py) make one line for the folder above them: means, and the deviation of the accuracy.
"""


def facts_of(folder: Path) -> dict[str, Any]:
    """Return what one run trained, its seconds and its accuracy; ValueError where it is no finished run."""
    try:
        text = (folder / "config.yaml").read_text(encoding="utf-8")
        result = simplejson.loads((folder / "test_results.json").read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{error.filename}: {error.strerror}; give the OUTPUT_DIR of a run that was tested") from None
    with torch.device("meta"):
        model = build_model(config_from_text(text, str(folder / "config.yaml")))
    seconds, before = 0.0, 0
    for line in read_json_lines(folder / "log.jsonl", "train"):
        seconds += (line["step"] - before) * (line["step_time"] - line["data_time"])
        before = line["step"]
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    return {"trained": trained, "total": count_parameters(model), "seconds": seconds, "steps": before,
            "top1": result["top1"], "videos": result["videos"]}  # fmt: skip


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
    runs: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for folder in parser.parse_args().runs:
        name = folder.parent.name if folder.name.isdigit() else folder.name
        runs[name.replace("_", " ")].append(facts_of(folder))
    print(table_of(runs))
    return 0


if __name__ == "__main__":
    run_command(main)
