#!/usr/bin/env python3
"""`lookupvit study` as a script."""

from lookupvit_video.commands.run_command import run_command
from lookupvit_video.commands.study import study

if __name__ == "__main__":
    run_command(study)
