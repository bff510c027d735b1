#!/usr/bin/env python3
"""Put LoRA's updates into the weights beneath: the same answers from the plain model, at the plain model's cost."""

from lookupvit_video.commands.run_command import run_command  # first: Ctrl-C in a later import gives one line

# isort: split
import argparse
from pathlib import Path

from lookupvit_video.checkpoints.checkpoint import load_checkpoint, load_weights, save_checkpoint
from lookupvit_video.errors import UserError
from lookupvit_video.models.adapters import merge_lora
from lookupvit_video.models.build import build_model

EXAMPLE = """example:
  python tools/merge_lora.py runs/mine/model.pt --out runs/mine/merged.pt

The new file serves for prediction, for tests and as MODEL.INIT_FROM; training goes on from the old one.
"""


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", type=Path, metavar="FILE", help="model.pt of a run with MODEL.ADAPTER lora")
    parser.add_argument("--out", required=True, type=Path, metavar="FILE", help="the merged checkpoint")
    return parser.parse_args()


def main() -> int:
    arguments = parse_arguments()
    checkpoint = load_checkpoint(arguments.checkpoint)
    cfg = checkpoint.config.clone()
    if cfg.MODEL.ADAPTER != "lora":
        raise UserError(f"{checkpoint.path}: MODEL.ADAPTER is {cfg.MODEL.ADAPTER}; only lora can be merged")
    model = build_model(cfg)
    load_weights(model, checkpoint)
    cfg.defrost()
    cfg.MODEL.ADAPTER, cfg.MODEL.TRAIN_NORMS = "none", False
    cfg.freeze()
    save_checkpoint(
        arguments.out,
        cfg=cfg,
        classes=checkpoint.classes,
        model=merge_lora(model),
        step=checkpoint.step,
        best_top1=checkpoint.best_top1,
    )
    print(f"wrote {arguments.out}")
    return 0


if __name__ == "__main__":
    run_command(main)
