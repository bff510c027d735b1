"""`lookupvit export` and `lookupvit merge-lora`: other forms of a checkpoint."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lookupvit_video.commands import options
from lookupvit_video.errors import UserError
from lookupvit_video.files import write_json

if TYPE_CHECKING:
    import torch

    from lookupvit_video.inference.export.export import DeployedModel
    from lookupvit_video.inference.export.vectors import Comparison
    from lookupvit_video.inference.predictor import Predictor
    from lookupvit_video.models.budget import Budget

EXPORT_EXAMPLES = """  lookupvit export --checkpoint runs/demo_motion/model.pt --out exported --format pt2 onnx aoti
  lookupvit export --checkpoint runs/demo_motion/model.pt --out exported_int8 --format pt2 onnx --int8 --list test.csv
  lookupvit export --checkpoint runs/demo_motion/model.pt --out exported --compare my_videos/*.mp4
  lookupvit export --checkpoint runs/demo_motion/model.pt --out exported --format openvino litert --batch 1
  lookupvit export --checkpoint runs/demo_motion/model.pt --out exported --format web --list val.csv

Writes model.pt2 (torch.export), model.onnx, model_aoti.pt2 (AOTInductor, compiled for this machine's device),
model_openvino.xml and .bin, model.tflite (LiteRT), model.pte (ExecuTorch), model.mlpackage.zip (Core ML), model.json
(preprocessing, classes), reference.py (from a video to probabilities without this package) and two test videos; web
writes web/ as well, a page that runs the model in a browser, in floats and in 8 bits. Every model is loaded again and
must give the checkpoint's probabilities to 1e-4; reference.py to 1e-3; both to 1e-2 with --int8.
Exit code 0: done; 1: runtime failure; 2: invalid input, or a package that a format needs is missing.
"""
MERGE_EXAMPLES = """  lookupvit merge-lora runs/mine/model.pt --out runs/mine/merged.pt

The new file serves for prediction, for tests and as MODEL.INIT_FROM; training resumes from the old one.
"""
CHOICES = ("pt2", "onnx", "aoti", "openvino", "litert", "executorch", "coreml", "web")


def parse_arguments() -> argparse.Namespace:
    """Parse the command line of `lookupvit export`."""
    parser = options.make_parser(
        "Write a checkpoint for another runtime, with its preprocessing.", EXPORT_EXAMPLES,
    )  # fmt: skip
    options.add_checkpoint(parser, device="cpu")
    options.add_out(parser)
    add = parser.add_argument
    add("--format", nargs="+", choices=CHOICES, default=["pt2"], help="one or more (default: pt2)")
    add("--batch", type=options.positive, metavar="N", help="clips per call (default: any number)")
    add("--grid", metavar="TxHxW", help="compressed grid, for a model made with several")
    add("--int8", action="store_true", help="8-bit weights and activations, but for layers where they cost accuracy")
    add("--list", metavar="FILE", help="labelled videos (path,label): measure the accuracy, one view; on the first of "
        "them the layers of --int8 are chosen")  # fmt: skip
    add("--compare", nargs="+", metavar="FILE", help="videos to answer with reference.py as well")
    add("--runtime", type=Path, metavar="PATH", help="for web: the npm package of onnxruntime-web (.tgz), or a folder "
        "with its files (default: downloaded once)")  # fmt: skip
    arguments = parser.parse_args()
    if arguments.runtime and "web" not in arguments.format:
        parser.error("--runtime is for --format web")
    return arguments


def grid_of(text: str | None, predictor: "Predictor") -> "Budget | tuple[int, ...] | None":
    """Return the compressed grid to export.

    Raises:
        UserError: the model was not made with it.
    """
    from lookupvit_video.models.budget import parse_budget

    if text is None:
        return None
    if not predictor.grids:
        raise UserError(f"--grid {text}: this model has no compressed grid")
    if text not in predictor.grids:
        raise UserError(f"--grid {text}: this model was made with {', '.join(predictor.grids)}")
    return parse_budget(text).bare


def print_comparison(found: "Sequence[Comparison]") -> None:
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


def write_model(
    arguments: argparse.Namespace, predictor: "Predictor", deployed: "DeployedModel", example: "torch.Tensor", kind: str
) -> dict[str, Any]:
    """Write a model in one format; print and return its size and how fast it is."""
    from lookupvit_video.inference.export.export import (
        FASTER,
        INT8_TOLERANCE,
        TOLERANCE,
        export_model,
        gain_over,
    )
    from lookupvit_video.inference.export.formats import FORMATS

    path, any_batch = arguments.out / FORMATS[kind].file, arguments.batch is None
    tolerance = INT8_TOLERANCE if arguments.int8 else TOLERANCE
    found = export_model(deployed, example, path, kind, any_batch=any_batch, tolerance=tolerance)
    print(f"{path}: {found['bytes'] / 1e6:.1f} MB, probabilities equal to {found['max_difference']:.1g}")
    if not found["is_run"]:
        print(f"{path}: nothing on this machine runs it; compared was the program that {kind}'s converter was given")
        return found
    grid = grid_of(arguments.grid, predictor)
    found["size_ratio"], found["speed_up"] = gain_over(predictor, grid, path, kind, example)
    label = ": size only" if arguments.int8 and found["speed_up"] < FASTER else ""
    print(f"{path}: {found['size_ratio']:.2f} of the float weights' size, {found['speed_up']:.2f} times as fast as "
          f"predict in this process{label}")  # fmt: skip
    return found


def write_steps(predictor: "Predictor", plain: "DeployedModel", out: Path, kinds: Sequence[str]) -> dict[str, Any]:
    """Write the step of a streaming model, in float, in some formats; print their sizes, return what they take."""
    from lookupvit_video.inference.export.step import FILES, INPUTS, OUTPUTS, export_step

    plan, files = predictor.window_plan, {}
    for kind in kinds:
        if kind not in FILES:
            print(f"{kind}: the model of a clip only; a step is written as {', '.join(FILES)}")
            continue
        found = files[FILES[kind]] = export_step(predictor, plain, out / FILES[kind], kind)
        print(f"{out / FILES[kind]}: {found['bytes'] / 1e6:.1f} MB, a step; equal to {found['max_difference']:.1g}")
    return {"files": files, "inputs": INPUTS, "outputs": OUTPUTS, "frames": plan.times.num_frames,
            "seconds": plan.clip_seconds, "state": list(predictor.start_state().shape[1:])}  # fmt: skip


def write_page(
    arguments: argparse.Namespace, predictor: "Predictor", plain: "DeployedModel", facts: dict[str, Any], runtime: Path
) -> None:
    """Write the folder of a page with the model in floats and in 8 bits, and print what is in it."""
    from lookupvit_video.inference.export.export import INT8_TOLERANCE, example_clips
    from lookupvit_video.inference.export.web import write_models, write_web

    folder = arguments.out / "web"
    models = write_models(folder, plain, example_clips(predictor))
    for name, one in models.items():
        difference = max(one["max_difference"], one["difference_to_floats"])
        much = "" if difference <= INT8_TOLERANCE else f", more than {INT8_TOLERANCE:g}: prefer the floats"
        print(f"{folder / name}: {one['bytes'] / 1e6:.1f} MB, probabilities equal to {difference:.1g}{much}")
    write_web(folder, models, facts, predictor.plan, runtime)
    print(f"{folder / 'index.html'}: serve this folder, for example with python -m http.server --directory {folder}")


def export() -> int:
    """Run `lookupvit export`."""
    arguments = parse_arguments()
    from lookupvit_video.data.manifest import read_manifest
    from lookupvit_video.inference.export.description import description
    from lookupvit_video.inference.export.export import accuracy, clips_of, deployed_model, example_clips
    from lookupvit_video.inference.export.formats import FORMATS, check_format
    from lookupvit_video.inference.export.vectors import add_reference, add_test_vectors, compare
    from lookupvit_video.inference.export.web import find_runtime
    from lookupvit_video.inference.predictor import load_model
    from lookupvit_video.log import setup_logging
    from lookupvit_video.models.kernels.int8 import linear_layers

    setup_logging()
    has_page = "web" in arguments.format
    kinds = [kind for kind in arguments.format if kind != "web"] or ["onnx"]
    for kind in kinds:
        check_format(kind, batch=arguments.batch, int8=arguments.int8)
    if not any(FORMATS[kind].load for kind in kinds):
        raise UserError("--format: nothing on this machine runs these; add pt2, for reference.py to be checked with")
    if has_page:
        check_format("onnx")  # of the page's models
    runtime = find_runtime(arguments.runtime) if has_page else None
    predictor = load_model(arguments.checkpoint, arguments.device)
    grid = grid_of(arguments.grid, predictor)
    several = predictor.multi_label
    videos = read_manifest(arguments.list, predictor.classes, multi_label=several) if arguments.list else []
    plain = deployed_model(predictor, grid)
    deployed = deployed_model(predictor, grid, clips_of(predictor, videos)) if arguments.int8 else plain
    facts = description(predictor, batch=arguments.batch, grid=grid, int8=arguments.int8, device=predictor.device)
    if arguments.int8:
        facts["float_layers"] = [name.removeprefix("model.") for name in linear_layers(deployed)]
        print(f"int8: linear layers in float: {', '.join(facts['float_layers']) or 'none'}, and the classifiers")
    facts["files"] = {}
    example = example_clips(predictor, arguments.batch) if arguments.batch else example_clips(predictor)
    for kind in kinds:
        facts["files"][FORMATS[kind].file] = write_model(arguments, predictor, deployed, example, kind)
    if predictor.is_streaming:
        facts["step"] = write_steps(predictor, plain, arguments.out, kinds)
    if videos:
        measured: dict[str, Any] = {"list": arguments.list, "videos": len(videos), "views": "1x1"}
        measured["float32"] = accuracy(plain, predictor, videos, "float32")
        print(f"float32: {measured['float32']:.2f} % top-1 on {len(videos)} videos, one view")
        if arguments.int8:
            measured["int8"] = accuracy(deployed, predictor, videos, "int8")
            print(
                f"int8:    {measured['int8']:.2f} %, a change of {measured['int8'] - measured['float32']:+.2f} points"
            )
        facts["accuracy"] = measured
    add_test_vectors(predictor, deployed, arguments.out, facts)
    write_json(arguments.out / "model.json", facts)
    difference = add_reference(arguments.out, facts)
    print(f"{arguments.out / 'reference.py'}: answers the test videos, probabilities equal to {difference:.1g}")
    if runtime:
        write_page(arguments, predictor, plain, facts, runtime)
    if arguments.compare:
        print_comparison(compare(predictor, grid, arguments.out, facts, arguments.compare))
    return 0


def merge_lora() -> int:
    """Run `lookupvit merge-lora`."""
    parser = options.make_parser(
        "Put LoRA's updates into the weights: the same answers from the plain model, at the plain model's cost.",
        MERGE_EXAMPLES,
    )
    parser.add_argument("checkpoint", type=Path, metavar="FILE", help="model.pt of a run with MODEL.ADAPTER lora")
    options.add_out(parser, metavar="FILE")
    arguments = parser.parse_args()
    from lookupvit_video.checkpoints.checkpoint import load_checkpoint, load_weights, save_checkpoint
    from lookupvit_video.models import adapters
    from lookupvit_video.models.build import build_model

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
        model=adapters.merge_lora(model),
        step=checkpoint.step,
        best_top1=checkpoint.best_top1,
    )
    print(f"wrote {arguments.out}")
    return 0
