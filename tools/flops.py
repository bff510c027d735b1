#!/usr/bin/env python3
"""`lookupvit flops` as a script."""

from lookupvit_video.commands.benchmark import flops
from lookupvit_video.commands.run_command import run_command

if __name__ == "__main__":
    run_command(flops)
