"""`lookupvit benchmark`, of parts and of complete processes, and `lookupvit flops`: what things cost."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lookupvit_video.arguments import parse_with_settings
from lookupvit_video.commands import options
from lookupvit_video.commands.run_command import command_line
from lookupvit_video.errors import UserError
from lookupvit_video.files import write_json
from lookupvit_video.registry import MODELS, VIT_SIZES, models_with
from lookupvit_video.text import parse_grid, write_text

if TYPE_CHECKING:
    import torch

FLOPS_EXAMPLES = """  lookupvit flops --cfg k400_lvit
  lookupvit flops --cfg k400_lvit --sweep --json sweep.json DATA.NUM_FRAMES 32
  lookupvit flops --cfg k400_lvit --grids 2x7x7 4x7x7 8x7x7 MODEL.INFERENCE_HEAD compressed

Papers call billions of MACs GFLOPs. Attention is counted, norms and activations are not.
"""
LOADER_EXAMPLES = """  lookupvit benchmark loader --json loader.json
  lookupvit benchmark loader --only webm --rounds 3
  lookupvit benchmark loader --cfg k400_lvit --clips-per-second 600 DATA.PATH_TO_DATA_DIR /data/k400

Without --cfg, on videos that are made for it: clips/s of one core with every backend and with other pipelines, and the
time of each stage. With --cfg, on your training videos: the time of each stage, and how many workers training needs.
"""
MODEL_EXAMPLES = """  lookupvit benchmark model --grids 2x7x7 4x7x7 8x7x7 --threads 1 2 --json a.json --markdown a.md
  lookupvit benchmark model --only lookupvit vit --depth 2 --frames 8 --rounds 3
  lookupvit benchmark model --frames 8 16 32 64 --grids 4x7x7 --plot scaling.png
  lookupvit benchmark model --only lookupvit masked --mode train --grids 2x7x7 --threads 1
  lookupvit benchmark model --precision bfloat16 --compile --mode inference train --batch 1 8 32 --frames 16 32
"""
BUDGETS_EXAMPLES = """  lookupvit benchmark budgets --checkpoint runs/one/model.pt --batch 1 8 --threads 1
  lookupvit benchmark budgets --checkpoint runs/one runs/vit runs/fixed --batch 8 --plot budgets.png
  lookupvit benchmark budgets --cfg k400_lvit --frames 16 32 --budgets 4x7x7 4x7x7,b8 4x7x7,k1-0.5 2x7x7,b4,k1-0.5

All budgets take turns. --plot needs the accuracies of tests: test_results.json next to each checkpoint; the first
checkpoint's budgets are drawn as a cloud with its frontier, the others for comparison.
"""
BLOCK_EXAMPLES = """  lookupvit benchmark block --tokens 1568 --compressed 196
  lookupvit benchmark block --tokens 3136 --compressed 98 --threads 2 --rounds 9
  lookupvit benchmark block --batch 32 --precision bfloat16 --device cuda
  lookupvit benchmark block --kept --precision bfloat16
"""
MADE = ("gop12", "gop250", "webm", "tiny")
FAMILIES = ("lookupvit", "masked", "vit", "videomae", "vivit", "mvit", "timm")


def benchmark() -> int:
    """Run `lookupvit benchmark`."""
    return options.run_one_of(
        {
            "loader": options.Command("benchmark", "loader", "video files to normalized clips"),
            "model": options.Command("benchmark", "model", "LookupViT and other models: time, memory"),
            "budgets": options.Command(
                "benchmark", "budgets", "every budget of a checkpoint or config: time over operations"
            ),
            "block": options.Command("benchmark", "block", "roofline account of one block"),
            "lists": options.Command("benchmarking.data", "lists", "a list of many videos: CPU time, memory"),
            "shards": options.Command("benchmarking.data", "shards", "single files and tar shards, on disk and HTTP"),
            "end-to-end": options.Command("benchmarking.end_to_end", "end_to_end", "video files to answers"),
            "serve": options.Command("benchmarking.serving", "serve", "the server under load, next to predict"),
            "streaming": options.Command("benchmarking.streaming", "streaming", "a decision with a state or a window"),
            "compare": options.Command("benchmarking.end_to_end", "compare", "two results of end-to-end"),
        },
        "Measure how fast the parts of this project are, and alternatives to them.",
        "  lookupvit benchmark model --only lookupvit vit\n",
    )


def _device(name: str) -> "torch.device":
    """Return the device; "auto" is a GPU where there is one."""
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if torch.device(name).type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"--device {name}: torch finds no GPU on this machine")
    return torch.device(name)


def flops() -> int:
    """Run `lookupvit flops`."""
    parser = options.make_parser(
        "Count what the model of a config costs: multiply-accumulates (MACs) of one view, by part, and parameters.",
        FLOPS_EXAMPLES,
    )
    options.add_cfg(parser)
    parser.add_argument("--sweep", action="store_true", help="one row for each budget: several compressed grids, "
                        "each with the config's exits and shares of the lookup tokens")  # fmt: skip
    parser.add_argument("--grids", nargs="+", default=[], metavar="TxHxW", help="sweep these grids (as TEST.GRIDS)")
    parser.add_argument("--no-measure", action="store_true", help="closed form only")
    options.add_json(parser)
    options.add_settings(parser)
    arguments = parse_with_settings(parser)
    settings = arguments.overrides
    from lookupvit_video.benchmarks.cost import describe, show, usual_grids
    from lookupvit_video.config import load_config, token_grid
    from lookupvit_video.models.build import model_spec

    cfg = load_config(arguments.cfg, settings)
    sweep = arguments.sweep or bool(arguments.grids)
    if sweep:
        if not MODELS[cfg.MODEL.ARCH].compressed_grids:
            archs = " or ".join(models_with("compressed_grids"))
            raise UserError(f"--sweep is for MODEL.ARCH {archs}; {cfg.MODEL.ARCH} has no compressed tokens")
        grids = list(map(parse_grid, arguments.grids))
        lookup = token_grid(cfg.MODEL, cfg.DATA)
        grids = grids or [*model_spec(cfg).grids, *usual_grids(lookup, cfg.MODEL.ENCODER == "joint")]
        cfg = load_config(arguments.cfg, [*settings, "TEST.GRIDS", str([list(grid) for grid in grids])])
    facts = {"config": arguments.cfg, **describe(cfg, not arguments.no_measure, sweep)}
    show(facts)
    if arguments.json:
        write_json(arguments.json, facts)
    return 0


def loader() -> int:
    """Run `lookupvit benchmark loader`."""
    parser = options.make_parser("Measure video files to normalized clips.", LOADER_EXAMPLES)
    add, positive = parser.add_argument, options.positive
    options.add_cfg(parser, required=False)
    add("--clips-per-second", nargs="+", type=float, default=[100, 300, 1000], metavar="N",
        help="with --cfg: report how many workers N clips/s need")  # fmt: skip
    add("--videos", type=positive, metavar="N",
        help="number of videos (default: 100 of the config's, 4 of each made kind)")  # fmt: skip
    add("--only", nargs="+", choices=MADE, default=MADE[:3], help="kinds of made videos (default: the first three)")
    add("--rounds", type=positive, default=7, metavar="N", help="medians are over N rounds (default: 7)")
    add("--clips", type=positive, default=12, metavar="N", help="clips a round, in every pipeline (default: 12)")
    add("--cache", type=Path, default=Path("runs/benchmark"), metavar="DIR", help="folder of made videos")
    options.add_json(parser)
    options.add_settings(parser)
    arguments = parse_with_settings(parser)
    if arguments.overrides and not arguments.cfg:
        parser.error(f"settings ({arguments.overrides[0]} ...) are for a config; name it with --cfg")
    import torch

    from lookupvit_video.benchmarks.loader import benchmark_made_videos, benchmark_own_videos
    from lookupvit_video.benchmarks.machine import describe_machine, show_versions
    from lookupvit_video.config import load_config
    from lookupvit_video.log import setup_logging

    setup_logging()
    torch.set_num_threads(1)  # as in a worker
    facts: dict[str, Any] = {"command": command_line(), **describe_machine()}
    if arguments.cfg:
        cfg = load_config(arguments.cfg, arguments.overrides)
        facts |= benchmark_own_videos(cfg, arguments.videos or 100, arguments.clips_per_second)
    else:
        facts |= benchmark_made_videos(
            arguments.cache, arguments.only, arguments.videos or 4, arguments.rounds, arguments.clips
        )
    print(f"\n{facts['processor']}, {facts['cores']} cores, {show_versions(facts)}")
    if arguments.json:
        write_json(arguments.json, facts)
    return 0


def _add_measuring(parser: argparse.ArgumentParser, rounds: int, seconds: float) -> None:
    add = parser.add_argument
    options.add_device(parser)
    add("--rounds", type=options.positive, default=rounds, metavar="N",
        help=f"medians are over N rounds (default: {rounds})")  # fmt: skip
    add("--seconds", type=float, default=seconds, metavar="S",
        help=f"a turn repeats until it takes S seconds (default: {seconds:g})")  # fmt: skip
    options.add_json(parser)
    add("--markdown", type=Path, metavar="FILE", help="write the tables to a file too")


def _add_model_options(parser: argparse.ArgumentParser) -> None:
    add, positive = parser.add_argument, options.positive
    several: dict[str, Any] = {"nargs": "+", "type": positive, "metavar": "N"}
    add("--only", nargs="+", choices=FAMILIES, default=list(FAMILIES), help="models to measure")
    add("--mode", nargs="+", choices=("inference", "train"), default=["inference"], help="one or both")
    add("--frames", default=[16], help="of a clip", **several)
    add("--size", default=[224], help="height and width in pixels", **several)
    add("--batch", default=[1], help="clips at a time; of several, each model's best", **several)
    add("--grids", nargs="+", type=options.grid, default=[(4, 7, 7)], metavar="TxHxW", help="compressed tokens")
    add("--variant", choices=VIT_SIZES, default="B", help="size of LookupViT and dense ViT")
    add("--dim", type=positive, help="another width than the variant's, a multiple of 64")
    add("--depth", type=positive, help="fewer blocks than the variant has, for a quick run")
    add(
        "--reverse",
        choices=("softmax", "scaled", "transpose"),
        default="softmax",
        help="weights of LookupViT's write-back",
    )
    add("--head", choices=("average", "compressed", "lookup"), default="average", help="of LookupViT in inference")
    add("--kernels", nargs="+", choices=options.KERNELS, default=["auto"], help="LookupViT's attention kernels")
    add("--checkpointing", nargs="+", choices=("none", "write_back", "selective", "full"), default=["none"],
        help="LookupViT's TRAIN.ACTIVATION_CHECKPOINTING in training")  # fmt: skip
    add("--precision", choices=options.PRECISIONS, default="float32",
        help="inference: of weights and clip; training: autocast")  # fmt: skip
    add("--compile", nargs="?", const="blocks", metavar="MODE",
        help="torch.compile, all models: block by block, or the complete model in one of its modes")  # fmt: skip
    add("--threads", help="processor threads (default: torch's)", **several)
    _add_measuring(parser, rounds=5, seconds=1.0)
    add("--plot", type=Path, metavar="FILE", help="draw time and memory over N, as PNG")


def model() -> int:
    """Run `lookupvit benchmark model`."""
    parser = options.make_parser(
        "Measure LookupViT, a dense ViT and other models: time, memory, and how much of the saved operations is saved "
        "time.", MODEL_EXAMPLES,
    )  # fmt: skip
    _add_model_options(parser)
    arguments = parser.parse_args()
    import torch

    from lookupvit_video.benchmarks.machine import describe_machine
    from lookupvit_video.benchmarks.model import benchmark, check, plot_scaling, report
    from lookupvit_video.log import setup_logging

    arguments.device = _device(arguments.device)
    arguments.threads = arguments.threads or [torch.get_num_threads()]
    check(arguments)
    setup_logging()
    torch.manual_seed(0)
    machine = describe_machine(arguments.device)
    facts = benchmark(arguments)
    text = f"{report(facts, machine, arguments)}\n    {command_line()}\n"
    print(text, end="")
    if arguments.markdown:
        write_text(arguments.markdown, text)
    if arguments.json:
        write_json(arguments.json, {"command": command_line(), **machine, **facts})
    if arguments.plot:
        plot_scaling([row for row in facts["best"] if row["mode"] == arguments.mode[0]], arguments.plot)
    return 0


def budgets() -> int:
    """Run `lookupvit benchmark budgets`."""
    parser = options.make_parser(
        "Measure every budget (grid, blocks, lookup tokens) of one model: time against operations, and accuracy.",
        BUDGETS_EXAMPLES,
    )
    add, several = parser.add_argument, {"nargs": "+", "type": options.positive, "metavar": "N"}
    options.add_cfg(parser, required=False)
    add("--checkpoint", nargs="+", default=[], metavar="FILE", help="trained models instead of a config")
    add("--budgets", nargs="+", default=[], metavar="BUDGET",
        help="of the first, such as 4x7x7,b8,k1-0.5 (default: all)")  # fmt: skip
    add("--frames", default=[None], help="of a clip, with --cfg (default: the config's)", **several)  # type: ignore[arg-type]
    add("--batch", default=[1], help="clips at a time", **several)  # type: ignore[arg-type]
    add("--threads", help="processor threads (default: torch's)", **several)  # type: ignore[arg-type]
    add("--precision", choices=options.PRECISIONS, default="float32", help="of weights and clip (default: float32)")
    add("--process-time", action="store_true", help="CPU time of all threads instead of the clock's: for a machine "
        "that others use as well")  # fmt: skip
    add("--int8", action="store_true", help="the first model with 8-bit layers as well, on a CPU in float32")
    _add_measuring(parser, rounds=5, seconds=0.5)
    add("--plot", type=Path, metavar="FILE", help="draw accuracy over MACs and over time, as PNG")
    options.add_settings(parser)
    arguments = parse_with_settings(parser)
    if bool(arguments.cfg) == bool(arguments.checkpoint):
        parser.error("give --cfg, or --checkpoint with one or more")
    if arguments.process_time and arguments.device not in ("auto", "cpu"):
        parser.error("--process-time is for a CPU")
    if arguments.int8 and (arguments.precision != "float32" or arguments.device not in ("auto", "cpu")):
        parser.error("--int8 is measured on a CPU, against float32")
    if arguments.checkpoint and (arguments.overrides or arguments.frames != [None]):
        parser.error("settings and --frames are for --cfg; a checkpoint has its own")
    import torch

    from lookupvit_video.benchmarks.budgets import budget_report
    from lookupvit_video.benchmarks.machine import describe_machine
    from lookupvit_video.log import setup_logging

    arguments.device = _device(arguments.device)
    arguments.threads = arguments.threads or [torch.get_num_threads()]
    setup_logging()
    torch.manual_seed(0)
    machine = describe_machine(arguments.device)
    rows, text = budget_report(arguments, machine)
    text = f"{text}\n    {command_line()}\n"
    print(text, end="")
    if arguments.markdown:
        write_text(arguments.markdown, text)
    if arguments.json:
        write_json(arguments.json, {"command": command_line(), **machine, "rows": rows})
    return 0


def block() -> int:
    """Run `lookupvit benchmark block`."""
    parser = options.make_parser("Give a roofline account of one LookupViT block and one dense block.", BLOCK_EXAMPLES)
    for name, default, what in (
        ("--tokens", 1568, "lookup tokens N"), ("--compressed", 196, "compressed tokens M"), ("--batch", 1, "clips"),
        ("--rounds", 7, "medians are over N rounds"),
    ):  # fmt: skip
        parser.add_argument(
            name, type=options.positive, default=default, metavar="N", help=f"{what} (default: {default})"
        )
    parser.add_argument("--threads", type=options.positive, metavar="N", help="processor threads (default: torch's)")
    parser.add_argument("--kept", action="store_true", help="memory that training keeps for backward, instead of time")
    parser.add_argument("--variant", choices=VIT_SIZES, default="B", help="width and heads (default: B)")
    options.add_device(parser)
    parser.add_argument("--precision", choices=options.PRECISIONS, default="float32", help="default: float32")
    arguments = parser.parse_args()
    import torch

    from lookupvit_video.benchmarks.block import kept_table, time_blocks
    from lookupvit_video.benchmarks.machine import describe_machine

    device, dtype = _device(arguments.device), getattr(torch, arguments.precision)
    torch.manual_seed(0)
    torch.set_num_threads(arguments.threads or torch.get_num_threads())
    dim, _, num_heads = VIT_SIZES[arguments.variant]
    n, m, batch = arguments.tokens, arguments.compressed, arguments.batch
    if arguments.kept:
        print(f"{arguments.precision}, D = {dim}, N = {n}, M = {m}\n")
        print(kept_table(batch, n, m, dim, num_heads, dtype, device), end="")
    else:
        print(
            f"{describe_machine(device)['processor']}, {torch.get_num_threads()} threads, {arguments.precision}, ",
            end="",
        )
        print(time_blocks(batch, n, m, dim, num_heads, dtype, device, arguments.rounds), end="")
    return 0
