#!/usr/bin/env python3
"""Open and decode every video of a data set; report what there is, what is wrong with it, and what to do about it."""

from lookupvit_video.commands.run_command import run_command  # first: Ctrl-C in a later import gives one line

# isort: split
import argparse
import logging
import os
from collections.abc import Callable, Sequence
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import Any

from fvcore.common.config import CfgNode

from lookupvit_video.arguments import parse_with_settings
from lookupvit_video.config import load_config
from lookupvit_video.data.manifest import load_classes
from lookupvit_video.data.sampling import build_time_sampler
from lookupvit_video.data.transforms import mirrored_labels
from lookupvit_video.files import joined, write_json
from lookupvit_video.log import setup_logging
from lookupvit_video.preparation.check import (
    KINDS,
    Row,
    check_files,
    check_repeats,
    check_spans,
    file_digests,
    report_of,
    rows_of_lists,
    rows_of_path,
    summarize,
)
from lookupvit_video.preparation.contact_sheet import (
    Strip,
    draw_sheet,
    model_views,
    pick_rows,
    strip_as_seen,
    strip_of_file,
)
from lookupvit_video.preparation.coverage import classes_beside, warnings_of_rows
from lookupvit_video.processes.pool import run_isolated
from lookupvit_video.progress import progress
from lookupvit_video.text import printable, write_csv

EXAMPLE = """examples:
  python tools/check_dataset.py --cfg configs/demo_motion.yaml
  python tools/check_dataset.py --cfg configs/k400_lvit.yaml --split train --thorough DATA.PATH_TO_DATA_DIR /data/k400
  python tools/check_dataset.py my_videos/ --duplicates --out runs/my_videos

Writes into --out: report.csv and report.json (every file), bad_videos.csv (files that cannot be used, if there are
any; training leaves them out with DATA.SKIP_LIST), contact_sheet.png (some clips as the model sees them, before erasing
and mixup). Exit code 0: every file can be used, also with notes ("can be used as they are"); 1: some files, or spans
that a list takes of them, cannot be used; 2: invalid input; 130: interrupted.
"""
SPLITS = ("train", "val", "test")
SHOWN = 3  # examples of each kind of problem


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("inputs", nargs="*", metavar="PATH | KEY VALUE", help="lists, folders or videos; with --cfg: settings over it")
    add("--cfg", metavar="FILE", help="check the lists of a config, such as configs/demo_motion.yaml")
    add("--split", nargs="+", metavar="SPLIT", help="train, val, test: those lists of the config (default: all)")
    add("--thorough", action="store_true", help="decode all frames, not just the first, middle and last")
    add("--duplicates", action="store_true", help="find files of the same content, for example in train and test")
    add("--timeout", type=float, default=30.0, metavar="S", help="seconds for one file (default: 30)")
    add("--processes", type=int, default=os.cpu_count() or 1, metavar="N", help="default: one per core")
    add("--sheet", type=int, default=24, metavar="N", help="videos on the contact sheet; 0: none (default: 24)")
    add("--seed", type=int, default=0, metavar="N", help="chooses the videos on the sheet (default: 0)")
    add("--out", type=Path, default=Path("runs/check_dataset"), metavar="FOLDER", help="default: runs/check_dataset")
    arguments = parse_with_settings(parser, "inputs")
    # What follows the splits and is none is the first of the settings.
    splits = list(takewhile(SPLITS.__contains__, arguments.split or ()))
    arguments.inputs = (arguments.split or [])[len(splits) :] + arguments.inputs
    if arguments.split and not splits:
        parser.error(f"--split takes some of {', '.join(SPLITS)}; got {arguments.split[0]}")
    if arguments.split and not arguments.cfg:
        parser.error("--split is for the lists of a config: give --cfg, or the lists themselves")
    if not arguments.cfg and not arguments.inputs:
        parser.error("give --cfg, or lists, folders or videos to check")
    for name, least in (("processes", 1), ("sheet", 0), ("seed", 0)):
        if getattr(arguments, name) < least:
            parser.error(f"--{name} must be at least {least}, got {getattr(arguments, name)}")
    if not arguments.timeout > 0:
        parser.error(f"--timeout must be above 0, got {arguments.timeout:g}")
    arguments.split = splits or SPLITS
    return arguments


def check(rows: Sequence[Row], cfg: CfgNode | None, arguments: argparse.Namespace) -> None:
    """Note in the rows what is wrong with their files, with themselves and with each other."""
    check_files(
        rows,
        processes=arguments.processes,
        timeout=arguments.timeout,
        thorough=arguments.thorough,
        follow=lambda outcomes, total: progress(outcomes, total=total, label="checking", unit="videos"),
    )
    check_spans(rows, build_time_sampler(cfg, training=False, num_clips=1) if cfg else None)
    digests = {}
    if arguments.duplicates:
        total = len({row.video.path for row in rows})
        digests = dict(progress(file_digests(rows), total=total, label="comparing", unit="videos"))
    check_repeats(rows, digests)


def make_sheet(rows: Sequence[Row], cfg: CfgNode | None, classes: Sequence[str], arguments: argparse.Namespace) -> bool:
    """Draw the contact sheet; return whether there was a video to draw."""
    chosen = pick_rows(rows, arguments.sheet, arguments.seed)
    if not chosen:
        return False
    read: Callable[[int], Strip | None] = partial(strip_of_file, rows=chosen)
    how = "first to last frame"
    if cfg is not None:
        mirror = mirrored_labels(classes)[0] if cfg.DATA.RANDOM_FLIP else None
        views = model_views(cfg, [row.video for row in chosen], mirror, arguments.seed)
        read = partial(strip_as_seen, rows=chosen, views=views)
        how = f"as the model sees them with {arguments.cfg}"
    outcomes = run_isolated(read, range(len(chosen)), processes=arguments.processes, timeout=arguments.timeout)
    strips = {o.number: o.answer for o in progress(outcomes, total=len(chosen), label="drawing", unit="videos")}
    shown = [
        (row, classes[strip.label] if classes else row.label, strip.picture)
        for row, strip in zip(chosen, (strips[index] for index in range(len(chosen))), strict=True)
        if strip is not None
    ]
    if shown:
        draw_sheet(shown, arguments.out / "contact_sheet.png", f"{len(shown)} of {len(rows)} videos, {how}")
    return bool(shown)


def write_reports(rows: Sequence[Row], summary: dict[str, Any], out: Path) -> None:
    table = [report_of(row) for row in rows]
    bad = [
        {"split": row.split, "path": os.path.abspath(row.video.path), "reason": said["problems"]}
        for row, said in zip(rows, table, strict=True)
        if row.is_bad
    ]
    write_csv(out / "report.csv", list(table[0]), [list(row.values()) for row in table])
    if bad:
        write_csv(out / "bad_videos.csv", ["split", "path", "reason"], [list(row.values()) for row in bad])
    else:
        (out / "bad_videos.csv").unlink(missing_ok=True)  # of an earlier check
    write_json(out / "report.json", {"summary": summary, "files": table})


def show(rows: Sequence[Row], summary: dict[str, Any]) -> None:
    def spread(values: Sequence[float], form: str = ".4g") -> str:
        return " / ".join(format(value, form) for value in values)

    table = [["split", "videos", "classes", "per class (min / median / max)", "bad"]]
    for split, counts in summary["splits"].items():
        classes = str(counts["classes"]) if any(row.label for row in rows if row.split == split) else "-"
        table.append([split or "-", str(counts["videos"]), classes, spread(counts["per_class"]), str(counts["bad"])])
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for first, *others in table:
        cells = [f"{cell:>{width}}" for cell, width in zip(others, widths[1:], strict=True)]
        print("  ".join([f"{printable(first):<{widths[0]}}", *cells]))
    for split, counts in summary["splits"].items():
        if counts["without_video"] and split != "train":  # a warning below says it of that one
            names = ", ".join(map(printable, counts["without_video"][:SHOWN])) + (
                ", ..." if len(counts["without_video"]) > SHOWN else ""
            )
            print(f"{split}: {len(counts['without_video'])} classes without a video ({names})")
    for warning in summary["class_warnings"]:
        print(f"warning: {warning}")
    print()
    print(f"files       {summary['files']}, {summary['bytes'] / 1e6:.1f} MB, {summary['hours']:.2f} h")
    print(f"codecs      {most_common(summary['codecs'])}")
    print(f"pixels      {most_common(summary['sizes'])}; short side {spread(summary['short_side'])}")
    print(f"frames/s    {most_common(summary['rates'])}; variable {summary['variable_rate']}")
    print(f"seconds     {spread(summary['duration'])} (min / median / max)")
    print(f"frames      {spread(summary['frames'])} (min / median / max)")
    print(
        f"rotated     {summary['rotated']}; mirrored {summary['mirrored']}; interlaced {summary['interlaced']}; "
        f"pixels not square {summary['not_square_pixels']}"
    )


def most_common(counts: dict[str, int], shown: int = 5) -> str:
    """Name the most frequent values with their counts, and how many others there are."""
    parts = [f"{name} ({count})" for name, count in list(counts.items())[:shown]]
    if len(counts) > shown:
        parts.append(f"{len(counts) - shown} more")
    return ", ".join(parts) or "-"


def show_problems(rows: Sequence[Row], summary: dict[str, Any]) -> None:
    for kind, numbers in summary["problems"].items():
        print(f"\n{kind}: {len(numbers)}{'' if KINDS[kind].bad else ' (can be used as they are)'}")
        print(f"  {KINDS[kind].advice}")
        for number in numbers[:SHOWN]:
            detail = next(problem.detail for problem in rows[number].all_problems if problem.kind == kind)
            print(f"    {printable(rows[number].video.path)}: {printable(detail)}")
        if len(numbers) > SHOWN:
            print(f"    and {len(numbers) - SHOWN} more in report.csv")


def main() -> int:
    arguments = parse_arguments()
    setup_logging()
    cfg: CfgNode | None = None
    classes: list[str] = []
    if arguments.cfg:
        cfg = load_config(arguments.cfg, arguments.inputs)
        classes = load_classes(cfg)
        lists = {
            split: joined(cfg.DATA.PATH_TO_DATA_DIR, cfg.DATA[f"{split.upper()}_LIST"]) for split in arguments.split
        }
        rows = rows_of_lists(lists, classes, cfg.DATA.PATH_PREFIX)
    else:
        rows = [row for path in arguments.inputs for row in rows_of_path(path)]
    check(rows, cfg, arguments)
    summary = summarize(rows, classes)
    summary["class_warnings"] = warnings_of_rows(rows, classes or classes_beside(arguments.inputs))
    write_reports(rows, summary, arguments.out)
    drawn = make_sheet(rows, cfg, classes, arguments)
    show(rows, summary)
    show_problems(rows, summary)
    bad = sum(counts["bad"] for counts in summary["splits"].values())
    written = ["report.csv", "report.json", *["bad_videos.csv"] * bool(bad), *["contact_sheet.png"] * drawn]
    print(f"\nwritten to {arguments.out}: {', '.join(written)}")
    if bad:
        skip = (arguments.out / "bad_videos.csv").resolve()
        print(f"{bad} bad; to leave those of the training list out: DATA.SKIP_LIST {skip}")
    logging.shutdown()
    # A row whose span lies outside of its file is lost, though the file is not bad.
    return 1 if bad or "span" in summary["problems"] else 0


if __name__ == "__main__":
    run_command(main)
