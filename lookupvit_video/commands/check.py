"""`lookupvit check` and `lookupvit check-configs`: what can be checked before a training."""

import argparse
import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lookupvit_video.arguments import parse_with_settings
from lookupvit_video.commands import options
from lookupvit_video.files import model_file, write_json
from lookupvit_video.text import aligned_table, printable, write_csv

if TYPE_CHECKING:
    from lookupvit_video.distributed.world import World
    from lookupvit_video.preparation.check import ListedVideo

CHECK_EXAMPLES = """  lookupvit check --cfg demo_motion
  lookupvit check --cfg k400_lvit --split train --thorough DATA.PATH_TO_DATA_DIR /data/k400
  lookupvit check my_videos/ --duplicates --out runs/my_videos
  lookupvit check train.csv test.csv --copies
  lookupvit check my_videos/ --model runs/my_videos      # labels that are probably wrong

Writes into --out: report.csv and report.json (every file), report.html (each kind of problem, with pictures),
copies.csv (--copies: the pairs, for lookupvit prepare split --copies),
bad_videos.csv (files that cannot be used, if there are any; training skips them with DATA.SKIP_LIST), contact_sheet.png
(some clips as the model sees them, before erasing and mixup). Exit code 0: every file can be used, possibly with notes
("can be used as they are"); 1: some files, or spans that a list takes of them, cannot be used; 2: invalid input; 130:
interrupted.
"""
CONFIGS_EXAMPLES = """  lookupvit check-configs configs/*.yaml
  lookupvit check-configs k400_lvit ssv2_lvit
"""
SPLITS = ("train", "val", "test")
SHOWN = 3  # examples of each kind of problem


def parse_arguments() -> argparse.Namespace:
    """Parse the command line of `lookupvit check`."""
    parser = options.make_parser(
        "Open and decode every video of a data set; report what there is, the problems of each file, and the fix.",
        CHECK_EXAMPLES,
    )
    add = parser.add_argument
    add("inputs", nargs="*", metavar="PATH | KEY VALUE", help="lists, folders or videos; with --cfg: settings over it")
    options.add_cfg(parser, required=False)
    add("--split", nargs="+", choices=SPLITS, help="train, val, test: those lists of the config (default: all)")
    add("--thorough", action="store_true", help="decode all frames, not just the first, middle and last")
    add("--duplicates", action="store_true", help="find files of the same content, for example in train and test")
    add("--copies", action="store_true",
        help="find videos that are copies: re-encoded, rescaled, cut, mirrored, with bars, faster (decodes all frames)"
    )  # fmt: skip
    add("--model", type=model_file, metavar="CHECKPOINT",
        help="find labels that are probably wrong, and classes that look alike, by this model's features")  # fmt: skip
    options.add_device(parser)
    options.add_timeout(parser, 30.0, "seconds for one file")
    add("--processes", type=options.positive, default=os.cpu_count() or 1, metavar="N", help="default: one per core")
    add("--sheet", type=options.natural, default=24, metavar="N",
        help="videos on the contact sheet, and of each problem in report.html; 0: none (default: 24)")  # fmt: skip
    add("--seed", type=options.natural, default=0, metavar="N", help="chooses the videos on the sheet (default: 0)")
    options.add_out(parser, "runs/check_dataset")
    arguments = parse_with_settings(parser, "inputs")
    if arguments.split and not arguments.cfg:
        parser.error("--split is for the lists of a config: give --cfg, or the lists themselves")
    if not arguments.cfg and not arguments.inputs:
        parser.error("give --cfg, or lists, folders or videos to check")
    arguments.split = arguments.split or SPLITS
    return arguments


def inspect(
    rows: "Sequence[ListedVideo]", spans: "Callable[[Sequence[ListedVideo]], None]", arguments: argparse.Namespace,
    world: "World",
) -> None:  # fmt: skip
    """Note in the rows the problems of their files, of the spans they take, and of rows that repeat one another."""
    from lookupvit_video.distributed.world import gather_objects, report_lost_processes
    from lookupvit_video.preparation.check import check_repeats, file_digests, inspect_files
    from lookupvit_video.progress import progress

    with report_lost_processes(world):
        inspect_files(
            rows,
            processes=arguments.processes,
            timeout=arguments.timeout,
            thorough=arguments.thorough,
            rank=world.rank,
            world_size=world.size,
            gather=lambda found: gather_objects(found, world),
            follow=lambda outcomes, total: progress(outcomes, total=total, label="checking", unit="videos"),
        )
    if not world.is_main:
        return
    spans(rows)
    digests = {}
    if arguments.duplicates:
        total = len({row.video.path for row in rows})
        digests = dict(progress(file_digests(rows), total=total, label="comparing", unit="videos"))
    check_repeats(rows, digests)
    if arguments.copies:
        from lookupvit_video.preparation.copies.report import check_copies

        follow = partial(progress, label="looking for copies", unit="videos")
        pairs = check_copies(
            rows, digests, processes=arguments.processes, timeout=10 * arguments.timeout,
            follow=lambda outcomes, total: follow(outcomes, total=total),
        )  # fmt: skip
        write_csv(arguments.out / "copies.csv", ["path", "copy_of"], pairs)


def make_sheet(
    chosen: "Sequence[ListedVideo]",
    views: dict[bool, Any],
    classes: Sequence[str],
    title: str,
    arguments: argparse.Namespace,
) -> bool:
    """Draw the contact sheet; return whether there was a video to draw.

    Args:
        views: see ``model_views``; empty: the first to the last frame of each file.
    """
    from lookupvit_video.preparation.contact_sheet import Strip, draw_contact_sheet, strip_as_seen, strip_of_file
    from lookupvit_video.processes.pool import run_isolated
    from lookupvit_video.progress import progress

    read: Callable[[int], Strip | None] = partial(strip_of_file, rows=chosen)
    if views:
        read = partial(strip_as_seen, rows=chosen, views=views)
    outcomes = run_isolated(read, range(len(chosen)), processes=arguments.processes, timeout=arguments.timeout)
    strips = {o.number: o.answer for o in progress(outcomes, total=len(chosen), label="drawing", unit="videos")}
    shown = [
        (row, classes[strip.label] if classes else row.label, strip.picture)
        for row, strip in zip(chosen, (strips[index] for index in range(len(chosen))), strict=True)
        if strip is not None
    ]
    if shown:
        draw_contact_sheet(shown, arguments.out / "contact_sheet.png", f"{len(shown)} of {title}")
    return bool(shown)


def write_reports(rows: "Sequence[ListedVideo]", summary: dict[str, Any], out: Path) -> None:
    """Write report.csv, report.json and, where there are bad videos, bad_videos.csv."""
    from lookupvit_video.preparation.check import table_row
    from lookupvit_video.remote import absolute

    table = [table_row(row) for row in rows]
    bad = [
        (row.split, absolute(row.video.path), report["problems"])
        for row, report in zip(rows, table, strict=True)
        if row.is_bad
    ]
    write_csv(out / "report.csv", list(table[0]), [list(row.values()) for row in table])
    if bad:
        write_csv(out / "bad_videos.csv", ["split", "path", "reason"], bad)
    else:
        (out / "bad_videos.csv").unlink(missing_ok=True)  # of an earlier check
    write_json(out / "report.json", {"summary": summary, "files": table})


def show(rows: "Sequence[ListedVideo]", summary: dict[str, Any]) -> None:
    """Print the counts of a data set."""

    def spread(values: Sequence[float]) -> str:
        return " / ".join(format(value, ".4g") for value in values)

    table = [["split", "videos", "classes", "per class (min / median / max)", "bad"]]
    for split, counts in summary["splits"].items():
        classes = str(counts["classes"]) if any(row.label for row in rows if row.split == split) else "-"
        table.append(
            [printable(split or "-"), str(counts["videos"]), classes, spread(counts["per_class"]), str(counts["bad"])]
        )
    print(aligned_table(table), end="")
    for split, counts in summary["splits"].items():
        if (missing := counts["without_video"]) and split != "train":  # a warning below names that one's
            names = ", ".join(map(printable, missing[:SHOWN])) + (", ..." if len(missing) > SHOWN else "")
            print(f"{split}: {len(missing)} classes without a video ({names})")
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


def show_problems(rows: "Sequence[ListedVideo]", summary: dict[str, Any]) -> None:
    """Print each kind of problem with its fix and some of its files."""
    from lookupvit_video.preparation.inspect_file import KINDS

    for kind, numbers in summary["problems"].items():
        print(f"\n{kind}: {len(numbers)}{'' if KINDS[kind].bad else ' (can be used as they are)'}")
        print(f"  {KINDS[kind].advice}")
        for number in numbers[:SHOWN]:
            detail = next(problem.detail for problem in rows[number].all_problems if problem.kind == kind)
            print(f"    {printable(rows[number].video.path)}: {printable(detail)}")
        if len(numbers) > SHOWN:
            print(f"    and {len(numbers) - SHOWN} more in report.csv")


def check() -> int:
    """Run `lookupvit check`."""
    arguments = parse_arguments()
    from lookupvit_video.commands.evaluation.doctor import Labels, look_at_labels, write_problem_page
    from lookupvit_video.config import load_config
    from lookupvit_video.data.manifest import load_classes
    from lookupvit_video.data.sampling import build_time_sampler
    from lookupvit_video.data.transforms import mirrored_labels
    from lookupvit_video.distributed.world import close_world, init_world
    from lookupvit_video.log import setup_logging
    from lookupvit_video.preparation.check import check_spans, rows_of_lists, rows_of_path, summarize
    from lookupvit_video.preparation.contact_sheet import model_views, pick_rows
    from lookupvit_video.preparation.coverage import classes_of_inputs, warnings_of_rows
    from lookupvit_video.remote import joined

    world = init_world()
    setup_logging(world.is_main)
    cfg = load_config(arguments.cfg, arguments.inputs) if arguments.cfg else None
    classes = load_classes(cfg) if cfg else []
    if cfg:
        folder = cfg.DATA.PATH_TO_DATA_DIR
        lists = {split: joined(folder, cfg.DATA[f"{split.upper()}_LIST"]) for split in arguments.split}
        rows = rows_of_lists(lists, classes, cfg.DATA.PATH_PREFIX)
    else:
        rows = [row for path in arguments.inputs for row in rows_of_path(path)]
    times = build_time_sampler(cfg, training=False, num_clips=1) if cfg else None
    inspect(rows, partial(check_spans, times=times), arguments, world)
    labels = look_at_labels(rows, arguments, world) if arguments.model else Labels()
    close_world()
    if not world.is_main:
        return 0
    summary = summarize(rows, classes)
    summary["class_warnings"] = warnings_of_rows(rows, classes or classes_of_inputs(arguments.inputs))
    write_reports(rows, summary, arguments.out)
    write_problem_page(rows, summary, labels, arguments)
    chosen = pick_rows(rows, arguments.sheet, arguments.seed)
    views, how = {}, "first to last frame"
    if cfg and chosen:
        mirror = mirrored_labels(classes)[0] if cfg.DATA.RANDOM_FLIP else None
        views = model_views(cfg, [row.video for row in chosen], mirror, arguments.seed)
        how = f"as the model sees them with {arguments.cfg}"
    drawn = bool(chosen) and make_sheet(chosen, views, classes, f"{len(rows)} videos, {how}", arguments)
    show(rows, summary)
    show_problems(rows, summary)
    bad = sum(counts["bad"] for counts in summary["splits"].values())
    written = [
        "report.csv",
        "report.json",
        "report.html",
        *["bad_videos.csv"] * bool(bad),
        *["contact_sheet.png"] * drawn,
    ]
    print(f"\nwritten to {arguments.out}: {', '.join(written)}")
    if bad:
        skip = (arguments.out / "bad_videos.csv").resolve()
        print(f"{bad} bad; to train without those of the training list: DATA.SKIP_LIST {skip}")
    # A row whose span lies outside of its file is lost, though the file is not bad.
    return 1 if bad or "span" in summary["problems"] else 0


def check_configs() -> int:
    """Run `lookupvit check-configs`."""
    parser = options.make_parser("Load each config strictly and build its model, without data.", CONFIGS_EXAMPLES)
    parser.add_argument("configs", nargs="+", metavar="CONFIG", help="a YAML file, or the name of a shipped config")
    paths = parser.parse_args().configs
    import torch

    from lookupvit_video.config import load_config
    from lookupvit_video.models.build import build_model
    from lookupvit_video.models.complexity import count_parameters

    for path in paths:
        cfg = load_config(path)
        with torch.device("meta"):  # shapes only: no memory is taken
            model = build_model(cfg)
        print(f"{path}: {cfg.MODEL.ARCH}, {count_parameters(model) / 1e6:.1f} M parameters")
    return 0
