#!/usr/bin/env python3
"""`lookupvit predict` as a script."""

from lookupvit_video.commands.predict import predict
from lookupvit_video.commands.run_command import run_command

if __name__ == "__main__":
    run_command(predict)
