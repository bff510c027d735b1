#!/usr/bin/env python3
"""`lookupvit timeline` as a script."""

from lookupvit_video.commands.explain import timeline
from lookupvit_video.commands.run_command import run_command

if __name__ == "__main__":
    run_command(timeline)
