#!/usr/bin/env python3
"""Measure again what a page of docs/ holds: run its commands, print its tables in Markdown."""

import argparse
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import mean, stdev
from typing import Any, NamedTuple

import simplejson

from lookupvit_video.commands.run_command import run_command
from lookupvit_video.errors import RunFailure

EXAMPLE = """example:
  python tools/docs_figures.py inference --jobs 2
  python tools/docs_figures.py ablations --print-only

Run it in the folder of the repository. What is done is not done again: stop it and start it as you like; remove runs/
to measure everything. All pages take many hours of a core: docs/ablations.md is 222 runs of some minutes each.
"""
RATES = ("1e-3", "3e-3")
DATA = "datasets/moving_digits/data_study"
MOTION = f"{DATA}/motion"


class Step(NamedTuple):
    """A command of a page, and the file that is there once it is done (None: the command knows by itself)."""

    command: str
    done: str | None = None


class Table(NamedTuple):
    """A table of a page: its heading, the steps that measure it, and what prints it from the folder of runs."""

    heading: str
    steps: list[Step]
    text: Callable[[Path], str]


def versions_of(used: dict[str, Any]) -> str:
    """Return with what something was measured, as ``measured_with`` of its report has it."""
    return (
        f"commit {used['commit']}, torch {used['torch']}, torchvision {used['torchvision']}, av {used['av']}, "
        f"{used['processor']}, {used['threads']} thread{'s' * (used['threads'] != 1)}"
    )


def provenance(results: list[Path]) -> str:
    """Return the line below a table: with what its runs were measured, each combination once."""
    found: dict[str, int] = {}
    for path in results:
        result = simplejson.loads(path.read_text(encoding="utf-8"))
        used = result.get("measured_with")
        what = "commit and versions not recorded"
        if used:
            what = f"{versions_of(used)}, {result['precision']}"
        found[what] = found.get(what, 0) + 1
    if not found:
        return "Not measured."
    return "Measured: " + "; ".join(f"{what} ({count} run{'s' * (count != 1)})" for what, count in found.items()) + "."


def study_table(name: str, runs: Path) -> str:
    """The table of a study as tools/study.py makes it of the runs that are done."""
    out = runs / "studies" / name
    call(f"tools/study.py --study configs/studies/{name}.yaml --table-only --out {shlex.quote(str(out))}", quiet=True)
    return (
        f"{(out / 'table.md').read_text(encoding='utf-8')}\n{provenance(sorted(out.glob('*/*/*/test_results.json')))}"
    )


def adaptive_table(runs: Path) -> str:
    """What the thresholds of each seed reach on the test videos."""
    lines = [
        "| seed | chosen: grid (threshold) grid | top-1, % | largest grid, 2x4x4, % "
        "| mean MACs of the largest grid's, % |",
        "|---|---|---|---|---|",
    ]
    results = []
    for path in sorted((runs / "studies/resolution/motion/one_model_for_all").glob("*/model.adaptive.json")):
        facts: dict[str, Any] = simplejson.loads(path.read_text(encoding="utf-8"))
        check = facts["check"]
        lines.append(
            f"| {path.parent.name} | {check['cascade']} | {check['top1']:.2f} | {check['top1_of_largest']:.2f} "
            f"| {100 * check['share_of_largest']:.1f} |"
        )
        results.append(path.with_name("test_results.json"))
    return "\n".join(lines) + "\n\n" + provenance(results)


def finetune_table(runs: Path) -> str:
    """The ways to fine-tune, as tools/compare_runs.py compares them, the best first."""
    folders = sorted((runs / "studies/finetune/turning").glob("*/*/test_results.json"))
    if not folders:
        return provenance([])
    names = " ".join(shlex.quote(str(path.parent)) for path in folders)
    head, rule, *rows = call(f"tools/compare_runs.py {names}", quiet=True).strip().splitlines()
    rows.sort(key=lambda row: -float(row.split("**")[1]))
    return "\n".join([head, rule, *rows]) + "\n\n" + provenance(folders)


def robustness_table(runs: Path) -> str:
    """LookupViT against each of its controls on corrupted videos, as tools/robustness.py compares them."""
    lines = [
        "| config | against | suite | clean top-1, % | mPC, % | rPC, % | mCE, % | difference in mPC | in rPC |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    found: dict[str, int] = {}
    for config, row in COMPARED:
        path = runs / "robustness" / f"{config}_{row}.json"
        if not path.exists():
            continue
        report: dict[str, Any] = simplejson.loads(path.read_text(encoding="utf-8"))
        for one in report["grids"][0]["summaries"]:
            gaps = [_with_interval(one["difference"][name]) for name in ("mPC", "rPC")]
            values = [f"{one[name]['value']:.1f}" for name in ("clean", "mPC", "rPC")]
            cells = [config, row.replace("_", " "), one["suite"], *values, f"{one['mCE']:.1f}", *gaps]
            lines.append(f"| {' | '.join(cells)} |")
        line = f"{versions_of(report['measured_with'])}, float32, {report['videos']} videos"
        found[line] = found.get(line, 0) + 1
    return "\n".join(lines) + "\n\n" + (f"Measured: {'; '.join(found)}." if found else "Not measured.")


def _with_interval(value: dict[str, Any]) -> str:
    low, high = value["interval_95"]
    return f"{value['value']:+.1f} ({low:+.1f} to {high:+.1f})"


def pretraining_table(runs: Path, kind: str) -> str:
    """What pre-training gains with few labels: for each start the better rate, means over seeds; a picture.

    Args:
        kind: motion or digit.
    """
    lines = [
        "| labels a class | model | random weights: top-1, % | pre-trained: top-1, % | gain | gain of each draw |",
        "|---|---|---|---|---|---|",
    ]
    folder, classes = runs / "studies" / f"pretrained_{kind}", CLASSES[kind]
    curves: dict[str, list[tuple[float, list[float]]]] = {}
    for number in LABELED[kind]:
        draws = [
            {row["row"]: mean(row["top1"].values()) for row in simplejson.loads(path.read_text(encoding="utf-8"))}
            for path in sorted(folder.glob(f"{number}_*/table.json"))
        ]
        for model, prefix in (("LookupViT", ""), ("dense ViT", "dense ViT, ")):
            starts = [f"{prefix}random weights", f"{prefix}pre-trained"]
            done = [
                draw for draw in draws if all(f"{start}, rate {rate}" in draw for start in starts for rate in RATES)
            ]
            if not done:
                continue
            before, after = ([draw[_better_rate(done, start)] for draw in done] for start in starts)
            gains = [b - a for a, b in zip(before, after, strict=True)]
            cells = [*map(_spread, (before, after)), f"{mean(gains):+.1f}", ", ".join(f"{gain:+.1f}" for gain in gains)]
            lines.append(f"| {number // classes} | {model} | {' | '.join(cells)} |")
            for start, values in (("random weights", before), ("pre-trained", after)):
                curves.setdefault(f"{model}, {start}", []).append((number / classes, values))
    if curves:
        _plot_labels(curves, folder / "curves.png")
    return "\n".join(lines) + "\n\n" + provenance(sorted(folder.glob("*/*/*/*/test_results.json")))


def _better_rate(draws: list[dict[str, float]], start: str) -> str:
    """Return the row of a start with the rate whose mean over the draws is higher."""
    return max((f"{start}, rate {rate}" for rate in RATES), key=lambda row: mean(draw[row] for draw in draws))


def _spread(values: list[float]) -> str:
    return f"**{mean(values):.1f}**" + (f" ± {stdev(values):.1f}" if len(values) > 1 else "")


def _plot_labels(curves: dict[str, list[tuple[float, list[float]]]], path: Path) -> None:
    from lookupvit_video.drawing.figures import class_color, new_figure, save_figure

    figure: Any = new_figure(6, 4)
    axis = figure.subplots()
    for number, (name, points) in enumerate(sorted(curves.items())):
        labels, values = zip(*points, strict=True)
        style = {"color": class_color(number // 2), "linestyle": "-" if "pre-trained" in name else "--"}
        axis.plot(labels, [mean(of) for of in values], marker="o", ms=4, label=name, **style)
        axis.vlines(labels, [min(of) for of in values], [max(of) for of in values], color=style["color"], alpha=0.4)
    axis.set_xscale("log")
    axis.set_xticks(sorted({at for points in curves.values() for at, _ in points}))
    axis.xaxis.set_major_formatter("{x:g}")
    axis.minorticks_off()
    axis.set_xlabel("labeled videos a class")
    axis.set_ylabel("top-1, %")
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    save_figure(figure, path)


def study(name: str) -> Step:
    return Step(f"tools/study.py --study configs/studies/{name}.yaml")


PREPARED = Step(f"datasets/moving_digits/prepare.py --test 1440 --out {DATA}", f"{MOTION}/classes.txt")

DIGITS = Step(
    "datasets/moving_digits/prepare.py --digits 3 --test 1440 --out datasets/moving_digits/data_digits",
    "datasets/moving_digits/data_digits/digits/classes.txt",
)
DISTRACTORS = Step(
    "datasets/moving_digits/prepare.py --distractors 1 --test 1440 --out datasets/moving_digits/data_distractors",
    "datasets/moving_digits/data_distractors/digit/classes.txt",
)


def calibration(seed: int) -> Step:
    folder = f"runs/studies/resolution/motion/one_model_for_all/{seed}"
    lists = f"--list {MOTION}/val.csv --check-list {MOTION}/test.csv"
    return Step(
        f"tools/calibrate.py --checkpoint {folder}/model.pt {lists} --drop 0.5", f"{folder}/model.adaptive.json"
    )


def subset(name: str, rest: str, kind: str = "motion") -> Step:
    return Step(
        f"datasets/moving_digits/subset.py --of {DATA}/{kind} --out {DATA}/{name} {rest}", f"{DATA}/{name}/classes.txt"
    )


STRAIGHT = Step(
    f"tools/run_net.py --cfg configs/small_motion.yaml OUTPUT_DIR runs/straight DATA.PATH_TO_DATA_DIR {DATA}/straight "
    "MODEL.NUM_CLASSES 4 SOLVER.MAX_EPOCH 2",
    "runs/straight/test_results.json",
)
FINETUNE = [
    PREPARED,
    subset("straight", "--classes 'left to right' 'right to left' upward downward"),
    subset("turning", "--train 480 --classes clockwise counter-clockwise approaching leaving"),
    STRAIGHT,
    study("finetune"),
]
CONNECTOR = [
    *FINETUNE[:3],
    Step(
        f"{STRAIGHT.command} MODEL.ENCODER factorised MODEL.COMPRESSED_GRID [2,2] OUTPUT_DIR runs/straight_factorised",
        "runs/straight_factorised/test_results.json",
    ),
    study("connector"),
]
CONTROLS = ("dense_ViT", "resized_tokens", "random_tokens")
COMPARED = [(config, row) for config in ("motion", "digit") for row in CONTROLS]
SUITES = "--suite minikinetics-c schiappa-p --videos 480"


def seeds_of(config: str, row: str) -> str:
    return " ".join(f"runs/studies/controls_{config}/{config}/{row}/{seed}" for seed in range(3))


CLASSES = {"motion": 8, "digit": 10}
LABELED = {"motion": {16: (16, 500), 40: (32, 125), 80: (32, 83), 400: (32, 38)},
           "digit": {100: (32, 320), 500: (32, 32), 2000: (32, 16)}}  # fmt: skip
"""Labeled videos: clips of a step, epochs. Motion: 250 steps, and twice as many with the fewest and with the most
videos; digit: 960 to 992."""


def few_labels(kind: str, number: int, draw: int) -> list[Step]:
    """Draw ``draw`` of ``number`` labeled videos, and the study on them."""
    batch, epochs = LABELED[kind][number]
    name, out = f"{kind}_{number}_{draw}", f"runs/studies/pretrained_{kind}/{number}_{draw}"
    settings = (
        f"DATA.PATH_TO_DATA_DIR {DATA}/{name} TRAIN.BATCH_SIZE {batch} SOLVER.MAX_EPOCH {epochs} "
        f"SOLVER.WARMUP_EPOCHS {round(epochs / 10)} TRAIN.CHECKPOINT_PERIOD {epochs}"
    )
    return [
        subset(name, f"--train {number} --skip {number * draw}", kind),
        Step(f"tools/study.py --study configs/studies/pretrained_{kind}.yaml --out {out} {settings}"),
    ]


PRETRAIN = "tools/run_net.py --cfg configs/demo_pretrain.yaml"
PRETRAINING = [
    PREPARED,
    Step(PRETRAIN, "runs/demo_pretrain/model.pt"),
    Step(f"{PRETRAIN} MODEL.ARCH vit OUTPUT_DIR runs/demo_pretrain_vit", "runs/demo_pretrain_vit/model.pt"),
    *(step for number in LABELED["motion"] for draw in range(3) for step in few_labels("motion", number, draw)),
]
PRETRAINING_DIGITS = [
    PREPARED,
    Step("tools/run_net.py --cfg configs/demo_pretrain_moving.yaml", "runs/demo_pretrain_moving/model.pt"),
    *(step for number in LABELED["digit"] for draw in range(3) for step in few_labels("digit", number, draw)),
]


def robustness_steps(config: str) -> list[Step]:
    """All models answer together, so that each corrupted video is made once; then they are compared."""
    models = " ".join(seeds_of(config, row) for row in ("LookupViT", *CONTROLS))
    everything = f"runs/robustness/{config}_all.json"
    comparisons = [
        Step(
            f"tools/robustness.py --checkpoint {seeds_of(config, 'LookupViT')} --reference {seeds_of(config, row)} "
            f"{SUITES} --json runs/robustness/{config}_{row}.json",
            f"runs/robustness/{config}_{row}.json",
        )
        for row in CONTROLS
    ]
    together = f"tools/robustness.py --checkpoint {models} {SUITES} --json {everything}"
    return [PREPARED, study(f"controls_{config}"), Step(together, everything), *comparisons]


STUDIES = {
    "controls_digit": [], "controls_motion": [], "resolution": [], "budgets_motion": [], "options_motion": [],
    "options_digit": [], "lookup_conv_digit": [], "lookup_conv_motion": [], "tokenizer_digit": [],
    "tokenizer_motion": [], "distill_digit": [study("tokenizer_digit")], "controls_digits": [DIGITS],
    "budgets_digit": [], "keep_distractors": [DISTRACTORS],
    "long_tail_motion": [subset("motion_long_tail", "--long-tail 100")],
}  # fmt: skip
PAGES = {
    "ablations": [
        Table(name, [PREPARED, *more, study(name)], lambda runs, name=name: study_table(name, runs))  # type: ignore[misc]
        for name, more in STUDIES.items()
    ],
    "inference": [Table("adaptive", [PREPARED, study("resolution"), *map(calibration, range(3))], adaptive_table)],
    "finetuning": [
        Table("a frozen spatial stage", CONNECTOR, lambda runs: study_table("connector", runs)),
        Table("ways to fine-tune", FINETUNE, finetune_table),
    ],
    "pretraining": [
        Table("few labels of motion", PRETRAINING, lambda runs: pretraining_table(runs, "motion")),
        Table("few labels of digit", PRETRAINING_DIGITS, lambda runs: pretraining_table(runs, "digit")),
    ],
    "robustness": [
        Table("LookupViT and its controls", [*robustness_steps("motion"), *robustness_steps("digit")], robustness_table)
    ],
}


def call(command: str, quiet: bool = False) -> str:
    """Run a script of this repository with this Python; return what it prints, where it is not to be seen at once.

    Raises:
        RunFailure: it fails.
    """
    done = subprocess.run(  # noqa: S603 - commands of this file
        [sys.executable, *shlex.split(command)], stdout=subprocess.PIPE if quiet else None, text=True
    )
    if done.returncode:
        raise RunFailure(f"exit code {done.returncode} of: python {command}")
    return done.stdout or ""


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("pages", nargs="*", metavar="PAGE", help=f"of docs/: {', '.join(PAGES)} (default: all)")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="runs of a study at the same time (default 1)")
    parser.add_argument("--print-only", action="store_true", help="print the tables of what is done")
    parser.add_argument("--runs", type=Path, default=Path("runs"), metavar="FOLDER", help="with --print-only: where")
    arguments = parser.parse_args()
    if unknown := [page for page in arguments.pages if page not in PAGES]:
        parser.error(f"{unknown[0]} is no page with figures; choose from {', '.join(PAGES)}")
    if arguments.runs != Path("runs") and not arguments.print_only:
        parser.error("--runs: the commands of the pages write to runs/; use it with --print-only")
    for page in arguments.pages or PAGES:
        print(f"# docs/{page}.md", flush=True)
        for table in PAGES[page]:
            for step in [] if arguments.print_only else table.steps:
                jobs = f" --jobs {arguments.jobs}" if "study.py" in step.command else ""
                print(f"$ python {step.command}{jobs}", flush=True)
                if step.done is None or not Path(step.done).exists():
                    call(step.command + jobs)
            print(f"\n## {table.heading}\n\n{table.text(arguments.runs)}\n", flush=True)
    return 0


if __name__ == "__main__":
    run_command(main)
