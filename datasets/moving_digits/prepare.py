#!/usr/bin/env python3
"""`lookupvit prepare moving-digits` as a script."""

from lookupvit_video.commands.prepare import moving_digits
from lookupvit_video.commands.run_command import run_command

if __name__ == "__main__":
    run_command(moving_digits)
