"""`lookupvit benchmark streaming`: what a decision costs with a state, and with a window of frames."""

from typing import Any

from lookupvit_video.arguments import parse_with_settings
from lookupvit_video.commands import options
from lookupvit_video.commands.run_command import command_line
from lookupvit_video.files import write_json

EXAMPLES = """  lookupvit benchmark streaming
  lookupvit benchmark streaming --cfg small_order --grid 4x4x4
  lookupvit benchmark streaming --frames 32 --grid 4x7x7 --rounds 15 MODEL.VARIANT S

Without --cfg: LookupViT-B at 224 pixels. On the CPU, in float32, on one thread, with random weights.
"""


def streaming() -> int:
    """Run `lookupvit benchmark streaming`."""
    parser = options.make_parser(
        "Measure a decision of a streaming LookupViT (MODEL.STREAMING) and of the same model on windows.", EXAMPLES
    )
    options.add_cfg(parser, required=False)
    add = parser.add_argument
    add("--frames", type=options.positive, default=16, metavar="T", help="of a window (default: 16)")
    add("--grid", default="2x7x7", metavar="TxHxW", help="compressed tokens of a window (default: 2x7x7)")
    add("--rounds", type=options.positive, default=9, metavar="N", help="medians are over N rounds (default: 9)")
    options.add_json(parser)
    options.add_settings(parser)
    arguments = parse_with_settings(parser)
    import torch

    from lookupvit_video.benchmarks.machine import describe_machine, show_versions
    from lookupvit_video.benchmarks.streaming import both_configs, measure, table_of
    from lookupvit_video.text import parse_grid

    torch.set_num_threads(1)
    configs = both_configs(arguments.cfg, arguments.overrides, arguments.frames, parse_grid(arguments.grid))
    machine = describe_machine()
    facts: dict[str, Any] = {"command": command_line(), **machine, **measure(*configs, arguments.rounds)}
    print(f"{machine['processor']}, one thread, float32; {show_versions(machine)}")
    print(table_of(facts), end="")
    if arguments.json:
        write_json(arguments.json, facts)
    return 0
