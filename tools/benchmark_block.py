#!/usr/bin/env python3
"""`lookupvit benchmark block` as a script."""

from lookupvit_video.commands.benchmark import block
from lookupvit_video.commands.run_command import run_command

if __name__ == "__main__":
    run_command(block)
