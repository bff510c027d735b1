#!/usr/bin/env python3
"""`lookupvit robustness` as a script."""

from lookupvit_video.commands.evaluation.robustness import robustness
from lookupvit_video.commands.run_command import run_command

if __name__ == "__main__":
    run_command(robustness)
