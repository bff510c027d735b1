#!/usr/bin/env python3
"""`lookupvit prepare ssv2` as a script."""

from lookupvit_video.commands.prepare import ssv2
from lookupvit_video.commands.run_command import run_command

if __name__ == "__main__":
    run_command(ssv2)
