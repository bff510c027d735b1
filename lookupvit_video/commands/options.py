"""The options that commands share: one name, one check and one help text each."""

import argparse
import math
import os
import re
import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from lookupvit_video.commands.run_command import program
from lookupvit_video.errors import UserError
from lookupvit_video.files import model_file
from lookupvit_video.text import parse_grid

BACKENDS = ("pyav", "decord", "torchcodec")
KERNELS = ("auto", "eager", "fused", "flex")
PRECISIONS = ("float32", "bfloat16")
GRID = re.compile(r"\d+(x\d+){1,2}")


class Command(NamedTuple):
    """A subcommand: its function in a module of this folder, and what it does."""

    module: str
    function: str
    title: str


def make_parser(description: str, examples: str) -> argparse.ArgumentParser:
    """Return a parser whose help ends with examples, and with what else there is to know below them."""
    return argparse.ArgumentParser(
        prog=program(), description=description, epilog=f"examples:\n{examples}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip


def run_one_of(commands: Mapping[str, Command], description: str, examples: str, version: bool = False) -> int:
    """Run the command that the first argument names with the other arguments; return its exit code."""
    table = "\n".join(f"  {name:14} {command.title}" for name, command in commands.items())
    parser = make_parser(f"{description}\n\ncommands:\n{table}", examples)
    if version:
        parser.add_argument("--version", nargs=0, action=_Version, help="print the version")
    parser.add_argument("command", choices=commands, metavar="COMMAND", help="one of the above")
    name = parser.parse_args(sys.argv[1:2]).command
    sys.argv = [f"{program()} {name}", *sys.argv[2:]]
    module = import_module(f"lookupvit_video.commands.{commands[name].module}")
    code: int = getattr(module, commands[name].function)()
    return code


class _Version(argparse.Action):
    """Looks up the version only when it is needed: the import takes longer than all others of a command's help."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> NoReturn:
        from lookupvit_video import __version__

        print(f"lookupvit {__version__}")
        parser.exit()


def number(kind: type[int] | type[float], low: float, high: float = math.inf) -> Callable[[str], Any]:
    """Return a check of an option's number, for ``type=``."""
    limits = f"at least {low:g}" if high == math.inf else f"{low:g} to {high:g}"

    def parse(text: str) -> int | float:
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not (low <= value <= high and math.isfinite(value)):
            raise argparse.ArgumentTypeError(f"must be {limits}, got {text}")
        return value

    return parse


positive = number(int, 1)
natural = number(int, 0)


def seconds(text: str) -> float:
    """Check a time limit, for ``type=``."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"must be a number of seconds above 0, got {text}")
    return value


def grid(text: str) -> tuple[int, ...]:
    """Read "4x7x7", for ``type=``."""
    try:
        sides = parse_grid(text)
    except UserError:
        sides = ()
    if len(sides) != 3 or not all(sides):
        raise argparse.ArgumentTypeError(f"{text!r} is not a grid such as 4x7x7")
    return sides


def add_checkpoint(parser: argparse.ArgumentParser, device: str = "auto") -> None:
    """Add --checkpoint and --device, of a command that loads a model."""
    parser.add_argument(
        "--checkpoint", required=True, type=model_file, metavar="PATH",
        help="a run's folder (its model.pt), a .pt file of training, a save_pretrained folder, a Hub id",
    )  # fmt: skip
    add_device(parser, device)


def add_device(parser: argparse.ArgumentParser, default: str = "auto") -> None:
    """Add --device."""
    parser.add_argument("--device", default=default, help=f"auto, cpu, cuda, cuda:1 (default: {default})")


def add_views(parser: argparse.ArgumentParser) -> None:
    """Add --views and --crops: how a video is looked at."""
    parser.add_argument("--views", type=positive, metavar="N", help="clips in time (default: as the checkpoint's test)")
    parser.add_argument("--crops", type=int, choices=(1, 3), help="crops in space (default: as the checkpoint's test)")


def add_batch_size(parser: argparse.ArgumentParser) -> None:
    """Add --batch-size."""
    check = number(int, 1, 2**16)
    parser.add_argument(
        "--batch-size", type=check, default=8, metavar="N", help="clips in one forward pass (default: 8)"
    )


def default_workers() -> int:
    """Return how many processes read videos where nobody says."""
    return min(os.cpu_count() or 1, 8)


def add_workers(parser: argparse.ArgumentParser) -> None:
    """Add --workers."""
    parser.add_argument(
        "--workers", type=number(int, 0, 256), default=default_workers(), metavar="N",
        help="processes that read videos; 0: read in this process (default: one per core, at most 8)",
    )  # fmt: skip


def add_timeout(parser: argparse.ArgumentParser, default: float, what: str) -> None:
    """Add --timeout."""
    parser.add_argument("--timeout", type=seconds, default=default, metavar="S", help=f"{what} (default: {default:g})")


def add_out(parser: argparse.ArgumentParser, default: str | None = None, metavar: str = "FOLDER") -> None:
    """Add --out; without a default it is required."""
    parser.add_argument(
        "--out", type=Path, required=default is None, default=default and Path(default), metavar=metavar,
        help=f"where to write{f' (default: {default})' if default else ''}",
    )  # fmt: skip


def add_json(parser: argparse.ArgumentParser) -> None:
    """Add --json, of a command that prints figures."""
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the same as JSON")


def add_cfg(parser: argparse.ArgumentParser, required: bool = True) -> None:
    """Add --cfg."""
    parser.add_argument(
        "--cfg", required=required, metavar="CONFIG", help="a YAML file, or the name of a shipped config: k400_lvit"
    )


def add_settings(parser: argparse.ArgumentParser) -> None:
    """Add the settings that follow --cfg; parse with ``parse_with_settings``."""
    parser.add_argument("overrides", nargs="*", default=[], metavar="KEY VALUE", help="settings over the config's")
