#!/usr/bin/env python3
"""`lookupvit probe` as a script."""

from lookupvit_video.commands.evaluation.probe import probe
from lookupvit_video.commands.run_command import run_command

if __name__ == "__main__":
    run_command(probe)
