#!/usr/bin/env python3
"""`lookupvit check-configs` as a script."""

from lookupvit_video.commands.check import check_configs
from lookupvit_video.commands.run_command import run_command

if __name__ == "__main__":
    run_command(check_configs)
