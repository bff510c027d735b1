#!/usr/bin/env python3
"""`lookupvit calibrate` as a script."""

from lookupvit_video.commands.calibrate import calibrate
from lookupvit_video.commands.run_command import run_command

if __name__ == "__main__":
    run_command(calibrate)
