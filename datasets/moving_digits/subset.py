#!/usr/bin/env python3
"""`lookupvit prepare subset` as a script."""

from lookupvit_video.commands.prepare import subset
from lookupvit_video.commands.run_command import run_command

if __name__ == "__main__":
    run_command(subset)
