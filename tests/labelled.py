"""Videos of every kind of clock with random labels, and how many boundaries a labelling tool's file moves.

python -m tests.labelled --files 200
"""

import argparse
import tempfile
from collections import Counter
from fractions import Fraction
from pathlib import Path

import numpy as np

from lookupvit_video.errors import UserError
from lookupvit_video.preparation.labelling.clock import Clock, Span
from lookupvit_video.preparation.labelling.convert import TOOLS, Choices, export_labels, import_labels, read_spans
from lookupvit_video.text import write_csv, write_text
from tests.videos import write_video

KINDS = {
    "variable rate": {},
    "23.976": {"fps": Fraction(24000, 1001)},
    "29.97": {"fps": Fraction(30000, 1001)},
    "start offset": {"start": 7, "with_audio": True},
    "rotation": {"rotation": 90, "fps": 25},
    "B-frames": {"b_frames": 3, "fps": 30},
    "mkv": {"fps": Fraction(24000, 1001), "b_frames": 2, "start": 5},
}
CLASSES = ("run", "jump & fall", 'say "hi"')


def make_videos(folder: Path, count: int) -> dict[str, str]:
    """Write some videos; path -> kind."""
    kinds = {}
    for number in range(count):
        draw, kind = np.random.default_rng(number), list(KINDS)[number % len(KINDS)]
        frames = int(draw.integers(16, 40))
        settings = dict(KINDS[kind])
        if kind == "variable rate":
            settings["times"] = (np.cumsum(draw.choice([0.011, 0.02, 0.0333, 0.0417, 0.25], frames)) - 0.011).tolist()
        suffix = "mkv" if kind == "mkv" else "mp4"
        kinds[write_video(folder / f"v {number:03d}.{suffix}", frames=frames, size=(32, 16), **settings)] = kind
    return kinds


def random_spans(path: str, seed: int) -> list[Span]:
    """Some spans from one frame's time stamp to another's, in one case up to the end."""
    clock, draw = Clock(path), np.random.default_rng([seed, 5])
    borders, spans = clock.borders, set()
    for _ in range(4):
        first, after = sorted(draw.choice(len(borders), 2, replace=False).tolist())
        spans.add(Span(path, str(draw.choice(CLASSES)), float(borders[first]), float(borders[after])))
    return sorted(spans)


def boundaries(spans: list[Span]) -> Counter:
    """Frame numbers of the boundaries of spans, by the file's own time stamps, from the seconds exactly."""
    clocks = {path: Clock(path) for path in {span.path for span in spans}}

    def at(span: Span, second: float) -> int:
        return int(np.flatnonzero(clocks[span.path].borders == second)[0])  # exactly the time stamp

    return Counter((span.path, span.label, at(span, span.start), at(span, span.end)) for span in spans)


def round_trip(tool: str, spans: list[Span], videos: Path, out: Path, choices: Choices) -> list[Span]:
    """Spans -> list -> the tool's file -> list -> spans."""
    write_text(out / "classes.txt", "".join(f"{name}\n" for name in sorted(CLASSES)))
    rows = [[span.path, span.label, repr(span.start), repr(span.end)] for span in spans]
    write_csv(out / "list.csv", ["path", "label", "start", "end"], rows)
    file = out / ("eaf" if tool == "elan" else "labels.xml" if tool == "cvat" else "labels.json")
    export_labels(tool, out / "list.csv", file, choices, list)
    import_labels(tool, [file], videos, out / "again", choices, list)
    return read_spans(out / "again" / "all.csv")


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description="Round trips through the files of labelling tools.")
    parser.add_argument("--files", type=int, default=200)
    count = parser.parse_args().files
    with tempfile.TemporaryDirectory() as folder:
        videos = Path(folder, "videos")
        videos.mkdir()
        paths = make_videos(videos, count)
        spans = {path: random_spans(path, number) for number, path in enumerate(paths)}
        print("| tool | files | boundaries | off by a frame or more | files refused |\n|---|---|---|---|---|")
        for tool in TOOLS:
            choices = Choices(rate=1000.0 if tool == "label-studio" else None,
                              origin="" if tool in ("cvat", "fiftyone") else "file")  # fmt: skip
            total = off = refused = 0
            for number, its in enumerate(spans.values()):
                try:
                    again = round_trip(tool, its, videos, Path(folder, tool, str(number)), choices)
                except UserError as error:
                    refused += 1
                    print(error)
                    continue
                total += 2 * len(its)
                off += 2 * sum((boundaries(its) - boundaries(again)).values())
            print(f"| {tool} | {count - refused} | {total} | {off} | {refused} |")


if __name__ == "__main__":
    main()
