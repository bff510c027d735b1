#!/usr/bin/env python3
"""`lookupvit merge-lora` as a script."""

from lookupvit_video.commands.export import merge_lora
from lookupvit_video.commands.run_command import run_command

if __name__ == "__main__":
    run_command(merge_lora)
