#!/usr/bin/env python3
"""`lookupvit check` as a script."""

from lookupvit_video.commands.check import check
from lookupvit_video.commands.run_command import run_command

if __name__ == "__main__":
    run_command(check)
