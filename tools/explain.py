#!/usr/bin/env python3
"""Show where a LookupViT looks in a video, and what a model would lose without the order of the frames."""

from lookupvit_video.commands.run_command import run_command  # first: Ctrl-C in a later import gives one line

# isort: split
import argparse
import sys
from pathlib import Path
from typing import Any

from lookupvit_video.data.manifest import read_manifest
from lookupvit_video.decoding.backends import DecodeError
from lookupvit_video.files import write_json
from lookupvit_video.inference.annotate import write_overlay
from lookupvit_video.inference.draw import draw_prediction
from lookupvit_video.inference.explain import (
    ORDERS,
    accuracy_without_time,
    explain_attention,
    heat_maps,
    without_time,
)
from lookupvit_video.inference.predictor import Predictor, load_model
from lookupvit_video.log import setup_logging
from lookupvit_video.models.lookupvit import LookupViT
from lookupvit_video.text import one_line

EXAMPLE = """examples:
  python tools/explain.py --checkpoint runs/demo_motion/model.pt video.mp4 --out explained --token 0,1,1
  python tools/explain.py --checkpoint runs/demo_motion/model.pt --list my_data/test.csv --out explained

Writes for each video a PNG sheet and an mp4 (frames, and the same with heat maps), and explained/explained.json.
Exit code 0: all done; 1: some videos could not be read (named on stderr); 2: nothing could be done.
"""


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("videos", nargs="*", metavar="VIDEO", help="video files to look into")
    parser.add_argument("--checkpoint", required=True, metavar="FILE", help="a .pt file of tools/run_net.py")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="where to write")
    parser.add_argument(
        "--list", metavar="FILE", help="labelled videos (path,label) or class folders: accuracy without time"
    )
    parser.add_argument(
        "--token", action="append", type=token, default=[], metavar="T,H,W",
        help="a compressed token to follow, by its place on the compressed grid, from 0; may be given again",
    )  # fmt: skip
    parser.add_argument(
        "--lookup", action="append", type=token, default=[], metavar="T,H,W",
        help="a lookup token to follow, by its place on the grid of tubelets; may be given again",
    )  # fmt: skip
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 (default: auto)")
    arguments = parser.parse_args()
    if not arguments.videos and not arguments.list:
        parser.error("give videos, or --list")
    return arguments


def token(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: write it as 0,1,1") from None


def explain_video(predictor: Predictor, video: str, stem: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Write sheet and mp4 of one video (a LookupViT only), print and return what it would lose without time."""
    prediction = predictor.predict(video, num_crops=1)
    frames = prediction.clip.permute(1, 2, 3, 0).numpy()
    answers = without_time(predictor, prediction.clip)
    best = {order: int(shares.argmax()) for order, shares in answers.items()}
    print(one_line(video))
    for order, shares in answers.items():
        kept = float(shares[best["real"]])
        print(
            f"  {order:9} {100 * float(shares.max()):5.1f} %  {one_line(predictor.classes[best[order]]):30} "
            f"{100 * kept:5.1f} % left of {predictor.classes[best['real']]!r}"
        )
    if isinstance(predictor.model, LookupViT):
        attention = explain_attention(predictor, prediction.clip)
        rows = heat_maps(attention, arguments.token, arguments.lookup)
        draw_prediction(prediction, rows, arguments.out / f"{stem}.png")
        write_overlay(frames, attention.answer_map(), arguments.out / f"{stem}.mp4")
        print(one_line(f"  drawn: {arguments.out / stem}.png, .mp4"))
    shown = {
        order: {"label": predictor.classes[best[order]], "probability": round(float(shares.max()), 4)}
        | {"of the real answer": round(float(shares[best["real"]]), 4)}
        for order, shares in answers.items()
    }
    return {"path": video, **shown}


def explain_list(predictor: Predictor, path: str) -> dict[str, Any]:
    """Print and return the accuracy over a list of videos with the frames in, out of and without order."""
    videos = read_manifest(path, predictor.classes)
    results = accuracy_without_time(predictor, videos)
    real = results["real"].top(1)
    print(f"{path}: {len(videos)} videos, one centre clip each")
    print(f"  {'frames':9} {'top-1':>8} {'lost':>7}")
    for order in ORDERS:
        print(f"  {order:9} {results[order].top(1):6.2f} % {real - results[order].top(1):7.2f}")
    bad = [{"path": videos[row].path, "reason": reason} for row, reason in results["real"].bad]
    for video in bad:
        print(one_line(f"explain.py: error: {video['reason']}"), file=sys.stderr)
    top1 = {order: round(results[order].top(1), 2) for order in ORDERS}
    return {"list": path, "videos": len(videos), "top1": top1, "bad_videos": bad}


def main() -> int:
    arguments = parse_arguments()
    setup_logging()
    predictor = load_model(arguments.checkpoint, arguments.device)
    report: dict[str, Any] = {"checkpoint": arguments.checkpoint, "videos": []}
    failures = 0
    for number, video in enumerate(arguments.videos):
        stem = Path(video).stem if len(arguments.videos) == 1 else f"{number:03d}_{Path(video).stem}"
        try:
            report["videos"].append(explain_video(predictor, video, stem, arguments))
        except DecodeError as error:
            print(one_line(f"explain.py: error: {error}"), file=sys.stderr)
            report["videos"].append({"path": video, "error": str(error)})
            failures += 1
    if arguments.list:
        report["without_time"] = explain_list(predictor, arguments.list)
    write_json(arguments.out / "explained.json", report)
    bad = bool(arguments.list and report["without_time"]["bad_videos"])
    if failures and failures == len(arguments.videos) and not arguments.list:
        return 2
    return 1 if failures or bad else 0


if __name__ == "__main__":
    run_command(main)
