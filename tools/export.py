#!/usr/bin/env python3
"""`lookupvit export` as a script."""

from lookupvit_video.commands.export import export
from lookupvit_video.commands.run_command import run_command

if __name__ == "__main__":
    run_command(export)
