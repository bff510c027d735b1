#!/usr/bin/env python3
"""`lookupvit train` as a script."""

from lookupvit_video.commands.run_command import run_command
from lookupvit_video.commands.train import train

if __name__ == "__main__":
    run_command(train)
