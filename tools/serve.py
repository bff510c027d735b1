#!/usr/bin/env python3
"""`lookupvit serve` as a script."""

from lookupvit_video.commands.inference.serve import serve
from lookupvit_video.commands.run_command import run_command

if __name__ == "__main__":
    run_command(serve)
