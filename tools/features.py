#!/usr/bin/env python3
"""`lookupvit features` as a script."""

from lookupvit_video.commands.inference.features import features
from lookupvit_video.commands.run_command import run_command

if __name__ == "__main__":
    run_command(features)
