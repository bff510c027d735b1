#!/usr/bin/env python3
"""`lookupvit prepare kinetics` as a script."""

from lookupvit_video.commands.prepare import kinetics
from lookupvit_video.commands.run_command import run_command

if __name__ == "__main__":
    run_command(kinetics)
