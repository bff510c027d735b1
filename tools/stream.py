#!/usr/bin/env python3
"""`lookupvit stream` as a script."""

from lookupvit_video.commands.inference.stream import stream
from lookupvit_video.commands.run_command import run_command

if __name__ == "__main__":
    run_command(stream)
