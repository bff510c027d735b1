#!/usr/bin/env python3
"""`lookupvit app` as a script."""

from lookupvit_video.commands.app import app
from lookupvit_video.commands.run_command import run_command

if __name__ == "__main__":
    run_command(app)
