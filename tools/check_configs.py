#!/usr/bin/env python3
"""Load each config strictly and build its model, without data."""

from lookupvit_video.commands.run_command import run_command  # first: Ctrl-C in a later import gives one line

# isort: split
import argparse

import torch

from lookupvit_video.config import load_config
from lookupvit_video.models.build import build_model
from lookupvit_video.models.complexity import count_parameters

EXAMPLE = "example: python tools/check_configs.py configs/*.yaml"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, epilog=EXAMPLE)
    parser.add_argument("configs", nargs="+", metavar="FILE")
    for path in parser.parse_args().configs:
        cfg = load_config(path)
        with torch.device("meta"):  # shapes only: no memory is taken
            model = build_model(cfg)
        print(f"{path}: {cfg.MODEL.ARCH}, {count_parameters(model) / 1e6:.1f} M parameters")
    return 0


if __name__ == "__main__":
    run_command(main)
