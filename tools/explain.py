#!/usr/bin/env python3
"""`lookupvit explain` as a script."""

from lookupvit_video.commands.explain import explain
from lookupvit_video.commands.run_command import run_command

if __name__ == "__main__":
    run_command(explain)
