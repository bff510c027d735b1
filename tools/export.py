#!/usr/bin/env python3
"""Write a checkpoint as torch.export program, ONNX model or compiled AOTInductor package, with its preprocessing."""

from lookupvit_video.commands.run_command import run_command  # first: Ctrl-C in a later import gives one line

# isort: split
import argparse
from pathlib import Path

import torch

from lookupvit_video.data.manifest import read_manifest
from lookupvit_video.errors import UserError
from lookupvit_video.inference.export.description import description, write_description
from lookupvit_video.inference.export.export import (
    FILES,
    accuracy,
    check_format,
    deployed_model,
    example_clips,
    export_model,
)
from lookupvit_video.inference.export.vectors import Comparison, add_reference, add_test_vectors, compare
from lookupvit_video.inference.predictor import load_model
from lookupvit_video.log import setup_logging
from lookupvit_video.models.lookupvit import LookupViT

EXAMPLE = """example:
  python tools/export.py --checkpoint runs/demo_motion/model.pt --out exported --format pt2 onnx aoti
  python tools/export.py --checkpoint runs/demo_motion/model.pt --out exported_int8 --format pt2 --int8 \\
      --list datasets/moving_digits/data/motion/test.csv

  python tools/export.py --checkpoint runs/demo_motion/model.pt --out exported --compare my_videos/*.mp4

Writes model.pt2 (torch.export), model.onnx, model_aoti.pt2 (AOTInductor, compiled for this machine's device),
model.json (preprocessing, classes), reference.py (from a video to probabilities without this package) and two test
videos. Every model is loaded again and must answer what the checkpoint answers, to 1e-4; reference.py to 1e-3.
Exit code 0: done; 1: runtime failure; 2: invalid input, or what a format needs is missing.
"""


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", required=True, metavar="FILE", help="a .pt file of tools/run_net.py")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="where to write")
    parser.add_argument("--format", nargs="+", choices=tuple(FILES), default=["pt2"], help="one or more (default: pt2)")
    parser.add_argument("--batch", type=int, metavar="N", help="clips per call (default: any number)")
    parser.add_argument("--grid", metavar="TxHxW", help="compressed grid, for a model made with several")
    parser.add_argument("--int8", action="store_true", help="8-bit weights (torchao); formats pt2 and aoti")
    parser.add_argument("--list", metavar="FILE", help="labelled videos (path,label): measure the accuracy, one view")
    parser.add_argument("--compare", nargs="+", metavar="FILE", help="videos to answer with reference.py as well")
    parser.add_argument("--device", default="cpu", help="what aoti is compiled for: cpu, cuda (default: cpu)")
    arguments = parser.parse_args()
    if arguments.batch is not None and arguments.batch < 1:
        parser.error(f"--batch must be at least 1, got {arguments.batch}")
    if arguments.int8 and "onnx" in arguments.format:
        parser.error("--int8: torchao's weights are exported as pt2 or aoti; onnxruntime has a quantiser of its own")
    return arguments


def parse_grid(text: str | None, model: torch.nn.Module) -> tuple[int, ...] | None:
    """Return the compressed grid that was asked for, or raise ValueError where the model was not made with it."""
    if text is None:
        return None
    if not isinstance(model, LookupViT):
        raise UserError(f"--grid {text}: only a LookupViT has a compressed grid")
    if text not in model.compress:
        raise UserError(f"--grid {text}: this model was made with {', '.join(model.compress)}")
    return tuple(int(part) for part in text.split("x"))


def print_comparison(found: list[Comparison]) -> None:
    """Print the difference of each video, the largest last, and what one side or both refused."""
    answered = sorted((one for one in found if one.difference == one.difference), key=lambda one: one.difference)
    for one in answered:
        print(f"{one.difference:.1e}  {one.path}")
    for one in found:
        if one.refused_here and one.refused_there:
            print(f"refused by both: {one.path} ({one.refused_here})")
        elif one.refused_here:
            print(f"refused by the package, answered by reference.py: {one.path} ({one.refused_here})")
        elif one.refused_there:
            print(f"refused by reference.py only: {one.refused_there}")
    if answered:
        largest = answered[-1].difference
        print(f"{len(answered)} of {len(found)} videos answered by both: probabilities equal to {largest:.1g}")


def main() -> int:
    arguments = parse_arguments()
    setup_logging()
    for kind in arguments.format:
        check_format(kind)
    predictor = load_model(arguments.checkpoint, arguments.device)
    grid = parse_grid(arguments.grid, predictor.model)
    videos = read_manifest(arguments.list, predictor.classes) if arguments.list else []
    plain = deployed_model(predictor, grid)
    deployed = deployed_model(predictor, grid, int8=True) if arguments.int8 else plain
    facts = description(predictor, batch=arguments.batch, grid=grid, int8=arguments.int8, device=predictor.device)
    facts["files"] = {}
    example = example_clips(predictor, arguments.batch) if arguments.batch else example_clips(predictor)
    for kind in arguments.format:
        path = arguments.out / FILES[kind]
        found = export_model(deployed, example, path, kind, any_batch=arguments.batch is None)
        facts["files"][path.name] = found
        print(f"{path}: {found['bytes'] / 1e6:.1f} MB, probabilities equal to {found['max_difference']:.1g}")
    if videos:
        facts["accuracy"] = {"list": arguments.list, "videos": len(videos), "views": "1x1"}
        facts["accuracy"]["float32"] = accuracy(plain, predictor, videos, "float32")
        print(f"float32: {facts['accuracy']['float32']:.2f} % top-1 on {len(videos)} videos, one view")
        if arguments.int8:
            facts["accuracy"]["int8"] = accuracy(deployed, predictor, videos, "int8")
            change = facts["accuracy"]["int8"] - facts["accuracy"]["float32"]
            print(f"int8:    {facts['accuracy']['int8']:.2f} %, a change of {change:+.2f} points")
    add_test_vectors(predictor, deployed, arguments.out, facts)
    write_description(facts, arguments.out / "model.json")
    difference = add_reference(arguments.out, facts)
    print(f"{arguments.out / 'reference.py'}: answers the test videos, probabilities equal to {difference:.1g}")
    if arguments.compare:
        print_comparison(compare(predictor, grid, arguments.out, facts, arguments.compare))
    return 0


if __name__ == "__main__":
    run_command(main)
