#!/usr/bin/env python3
"""From a video file to class probabilities with an exported model, without the package that trained it.

This file is copied next to every exported model. It needs numpy and PyAV (`pip install numpy av`), and what runs one of
the models (`RUNTIMES`); nothing else. `model.json` has every number and class name,
and the rules in words (`preprocessing.steps`). This is the same in code, written to be read and ported, not for speed:
it decodes each file twice, from its first packet on.

  python reference.py                    answer the test vectors and compare with their stored probabilities
  python reference.py a.mp4 b.webm       classify videos
  python reference.py a.mp4 --clips c.npy    also save the model's input, to compare a port step by step

Exit code 0: done; 1: a test vector differs by more than its tolerance; 2: invalid input.
Shape letters: V views (times x crops), T frames, H W pixels, K classes.
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import sys
import warnings
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache, partial
from itertools import count
from pathlib import Path
from typing import Any

import av
import av.filter
import numpy as np
from av.sidedata.sidedata import Type as SideData
from av.stream import Disposition
from av.video.reformatter import Interpolation

Run = Callable[[np.ndarray], np.ndarray]
"""uint8 clips (V, 3, T, size, size) -> probabilities (V, K), float32."""

RUNTIMES = {
    "model.onnx": "onnxruntime",
    "model.pt2": "torch",
    "model_aoti.pt2": "torch",
    "model_openvino.xml": "openvino",
    "model.tflite": "ai_edge_litert.interpreter",
    "model.pte": "executorch.runtime",
}
# tags that are not UTF-8 must not keep a file from being opened; PyAV before 19 needs this argument
ANY_TAGS: dict[str, Any] = {"metadata_errors": "replace"} if int(av.__version__.split(".")[0]) < 19 else {}
CLIPS_A_CALL = 8  # where the batch size is free
FIXED_POINT_BITS = 15  # the resize stores its weights in signed 16-bit integers


# Video file -> frames ---------------------------------------------------------------------------------------------


@contextmanager
def open_video(path: str) -> Iterator[tuple[Any, Any]]:
    """Open a file and yield (container, video stream); ValueError where it is not a video."""
    try:
        container = av.open(f"file:{path}", container_options={"protocol_whitelist": "file"}, **ANY_TAGS)
    except av.FFmpegError as error:
        raise ValueError(f"{path}: cannot be opened ({error.strerror})") from None
    with container:
        stream: Any = container.streams.best("video")
        if stream is None or stream.disposition & Disposition.attached_pic or stream.codec_context is None:
            raise ValueError(f"{path}: has no video stream that can be decoded")
        if container.format.name == "tty":  # FFmpeg renders any text file as video
            raise ValueError(f"{path}: is text, not a video")
        stream.thread_type = "NONE"  # with threads, the replacements of damaged frames vary
        stream.codec_context.thread_count = 1
        yield container, stream


def decoded(container: Any, stream: Any, warn: bool = False) -> Iterator[Any]:
    """Yield every frame that can be decoded, in the order shown; ``warn``: of damage."""
    packets = container.demux(stream)
    while True:
        packet: Any = None
        frames, is_damaged = [], False
        try:
            packet = next(packets, None)
        except (av.FFmpegError, IndexError):  # IndexError: PyAV, where damage adds a stream midway
            is_damaged = True
        try:
            if packet is None or packet.size:  # None and an empty packet flush the decoder
                frames = stream.decode(packet)
        except av.FFmpegError:
            is_damaged = True
        if warn and (is_damaged or any(frame.is_corrupt for frame in frames)):
            warnings.warn(f"{container.name}: is damaged; using the frames that can be decoded", stacklevel=2)
            warn = False
        yield from frames
        if packet is None:
            return


def longest_rise(stamps: Sequence[int | None]) -> list[int]:
    """Return the positions of the longest strictly ascending subsequence, which has no None."""
    tails: list[int] = []  # for each length, the lowest last stamp of a rise of that length
    lengths = []
    for stamp in stamps:
        length = -1
        if stamp is not None:
            length = bisect_left(tails, stamp)
            tails[length : length + 1] = [stamp]
        lengths.append(length)
    rise: list[int] = []
    for position in reversed(range(len(stamps))):
        due = len(tails) - 1 - len(rise)
        if lengths[position] == due >= 0 and (not rise or stamps[position] < stamps[rise[-1]]):  # type: ignore[operator]
            rise.append(position)
    return rise[::-1]


def timeline(path: str, rules: dict[str, Any]) -> tuple[list[int], np.ndarray, float]:
    """Return when the frames of a file are shown.

    Returns:
        positions of the frames with a time, in the order decoded; their times in seconds, float64 (N,), the first 0;
        the end of the last one.
    """
    with open_video(path) as (container, stream):
        stamps = [frame.pts for frame in decoded(container, stream, warn=True)]
        if not stamps:
            raise ValueError(f"{path}: no frame can be decoded")
        positions = longest_rise(stamps)
        rate = stream.average_rate or stream.guessed_rate
        if len(positions) > rules["ascending_share"] * len(stamps):
            ticks = np.array([stamps[position] for position in positions], dtype=np.int64)
            times = (ticks - ticks[0]) * float(stream.time_base)
        elif rate:
            positions = list(range(len(stamps)))
            times = np.arange(len(stamps)) / float(rate)
        else:
            raise ValueError(f"{path}: has neither usable time stamps nor a frame rate")
        count = len(times)
        duration = float(times[-1]) * count / (count - 1) if count > 1 else 1 / float(stream.average_rate or 1)
        end, stated = duration + float((stamps[0] or 0) * stream.time_base), (container.duration or 0) / 1e6
        if end < stated - max(1.0, 0.05 * stated):
            warnings.warn(f"{path}: its video ends at {end:.1f} of {stated:.1f} s; truncated?", stacklevel=2)
    return positions, times, duration


def filtered(frame: Any, *filters: tuple[str, str]) -> Any:
    """Return a frame after filters of libav, (name, arguments) each."""
    graph = av.filter.Graph()
    source = graph.add_buffer(
        width=frame.width, height=frame.height, format=frame.format.name, time_base=frame.time_base
    )
    graph.link_nodes(source, *(graph.add(*one) for one in filters), graph.add("buffersink")).configure()
    graph.push(frame)
    return graph.pull()


def entries(side_data: Any) -> Iterator[Any]:
    """Yield each entry of a frame's side data, by position: since PyAV 19 iteration names each type, and once only."""
    for position in count():
        try:
            yield side_data[position]
        except IndexError:
            return


def display_matrix(frame: Any) -> tuple[int, int, int, int] | None:
    """Return a frame's display matrix: (a, b, c, d) of ISO 14496-12, x 2^16; None where it has none."""
    try:
        side_data = frame.side_data
    except ValueError:  # PyAV, where a frame has side data of a kind unknown to it
        unknown = set(range(64)) - {kind.value for kind in SideData}
        side_data = filtered(frame, *(("sidedata", f"mode=delete:type={kind}") for kind in unknown)).side_data
    for data in entries(side_data):
        if data.type is SideData.DISPLAYMATRIX:  # the first of several is the container's
            a, b, _, c, d = np.frombuffer(bytes(data), dtype=np.int32)[:5].tolist()
            return a, b, c, d
    return None


def orientation(matrix: tuple[int, int, int, int]) -> tuple[bool, bool, bool]:
    """Return what makes a picture upright: whether to transpose it, and then to reverse its rows and its columns.

    The matrix shows a stored pixel (x, y) at (a x + c y, b x + d y). Other angles are rounded to right ones.
    """
    a, b, c, d = matrix
    along_x, along_y = math.hypot(a, b), math.hypot(c, d)
    transposed = abs(b) * along_y + abs(c) * along_x > abs(a) * along_y + abs(d) * along_x
    to_row, to_column = (b, c) if transposed else (d, a)
    if not to_row or not to_column:
        return False, False, False  # such a matrix shows nothing
    return transposed, to_row < 0, to_column < 0


def upright(picture: np.ndarray, turn: tuple[bool, bool, bool]) -> np.ndarray:
    """Turn and mirror pixels (H, W, 3)."""
    transposed, rows_reversed, columns_reversed = turn
    if transposed:
        picture = picture.transpose(1, 0, 2)
    return picture[:: -1 if rows_reversed else 1, :: -1 if columns_reversed else 1]


def shown_size(frame: Any, stream: Any, rules: dict[str, Any]) -> tuple[int, int]:
    """Return width and height of a stored picture with square pixels."""
    ratio = float(stream.sample_aspect_ratio or 1)
    widest = rules["pixel_aspect_limit"]
    if not 1 / widest <= ratio <= widest or abs(ratio - 1) <= rules["pixel_aspect_tolerance"]:
        ratio = 1.0
    return max(1, round(frame.width * ratio)), frame.height


def frames_at(path: str, positions: Sequence[int], rules: dict[str, Any]) -> Iterator[tuple[int, np.ndarray]]:
    """Yield (position, RGB pixels (H, W, 3) uint8, upright, square) of the frames at some positions, ascending."""
    wanted, turn = set(positions), (False, False, False)
    with open_video(path) as (container, stream):
        for position, frame in enumerate(decoded(container, stream)):
            matrix = display_matrix(frame)
            if matrix is not None or frame.key_frame:  # else as the frame before
                turn = orientation(matrix or (1, 0, 0, 1))
            if position == 0:  # a stream may change its size midway, a clip does not
                size, transposed = shown_size(frame, stream, rules), turn[0]
            if position in wanted:
                width, height = size if turn[0] == transposed else size[::-1]
                if frame.interlaced_frame:  # else each field's colors are scaled separately
                    frame = filtered(frame, ("setfield", "prog"))
                picture = frame.reformat(
                    width=width, height=height, format="rgb24", interpolation=Interpolation.BICUBIC, threads=1
                )
                yield position, upright(picture.to_ndarray(), turn)
                wanted.remove(position)
            if not wanted:
                return
    raise ValueError(f"{path}: decodes differently the second time; is it being written?")


# Times and pixels of the clips ------------------------------------------------------------------------------------


def clip_times(duration: float, rules: dict[str, Any]) -> np.ndarray:
    """Return the seconds of the frames of each clip in time (clips, T); they may lie past the end."""
    times: np.ndarray
    clips, frames = rules["views_in_time"], rules["num_frames"]
    centers = (np.arange(clips)[:, None] + 0.5) / clips
    if rules["sampling"] == "segments":
        times = (np.arange(frames) + centers) * (duration / frames)
    else:
        length = rules["step_seconds"] * frames
        times = centers * max(duration - length, 0.0) + np.arange(frames) * rules["step_seconds"]
    if rules["single_frame"]:
        times = np.repeat(times[:, frames // 2 : frames // 2 + 1], frames, axis=1)
    return times


def shown_at(times: np.ndarray, seconds: np.ndarray, rules: dict[str, Any]) -> np.ndarray:
    """Return the indices of the frames shown at some seconds; past the end the last one."""
    begun = np.searchsorted(times, seconds + rules["time_tolerance_seconds"], side="right")
    indices: np.ndarray = np.maximum(begun - 1, 0)
    return indices


def crops(picture: np.ndarray, rules: dict[str, Any]) -> list[np.ndarray]:
    """Return the squares of a picture (H, W, 3) for the model: the center, or three along the longer side."""
    height, width = picture.shape[:2]
    side = max(1, round(min(height, width) * rules["size"] / rules["short_side"]))
    low, left = height - side, width - side
    tops, lefts = [low // 2], [left // 2]
    if rules["views_in_space"] == 3 and height > width:
        tops = [0, low // 2, low]
    elif rules["views_in_space"] == 3:
        lefts = [0, left // 2, left]
    return [picture[y : y + side, x : x + side] for y in tops for x in lefts]


@lru_cache(maxsize=64)
def resize_weights(old: int, new: int) -> tuple[np.ndarray, int]:
    """Return fixed-point weights (new, old) of an antialiased bilinear resize, and their fractional bits."""
    scale = old / new
    support = max(scale, 1.0)
    weights = np.zeros((new, old))
    for row in range(new):
        center = scale * (row + 0.5)
        first, last = max(int(center - support + 0.5), 0), min(int(center + support + 0.5), old)
        triangle = np.maximum(1 - np.abs((np.arange(first, last) - center + 0.5) / support), 0)
        weights[row, first:last] = triangle / triangle.sum()
    bits = 0
    while bits < 22 and int(0.5 + weights.max() * 2 ** (bits + 1)) < 2**FIXED_POINT_BITS:
        bits += 1
    return np.floor(weights * 2**bits + 0.5), bits


def resized_along(picture: np.ndarray, axis: int, new: int) -> np.ndarray:
    """Resize a uint8 array along one axis, rounded to uint8."""
    if picture.shape[axis] == new:
        return picture
    weights, bits = resize_weights(picture.shape[axis], new)
    # Integers in float64 are exact and fast in numpy.
    sums = np.moveaxis(np.tensordot(weights, picture.astype(np.float64), (1, axis)), 0, axis)
    found: np.ndarray = np.clip(np.floor((sums + 2 ** (bits - 1)) / 2**bits), 0, 255).astype(np.uint8)
    return found


def resized(picture: np.ndarray, size: int) -> np.ndarray:
    """Resize pixels (H, W, 3) to (size, size, 3): columns first, then rows, uint8 in between."""
    return resized_along(resized_along(picture, 1, size), 0, size)


def read_clips(path: str, rules: dict[str, Any]) -> np.ndarray:
    """Return the model's input for a video file: uint8 (V, 3, T, size, size), the crops of one time next to each other.

    Args:
        rules: `preprocessing` of model.json.

    Raises:
        ValueError: the file cannot be read.
    """
    positions, times, duration = timeline(path, rules)
    shown = np.array(positions)[shown_at(times, clip_times(duration, rules), rules)]  # (clips, T)
    small = {
        position: np.stack([resized(crop, rules["size"]) for crop in crops(picture, rules)])
        for position, picture in frames_at(path, sorted(set(shown.ravel().tolist())), rules)
    }
    clips = np.stack([np.stack([small[position] for position in row], axis=1) for row in shown.tolist()])
    # (clips, crops, T, H, W, 3) -> (V, 3, T, H, W)
    return np.ascontiguousarray(clips.reshape(-1, *clips.shape[2:]).transpose(0, 4, 1, 2, 3))


# Clips -> probabilities -------------------------------------------------------------------------------------------


def load_run(folder: Path, facts: dict[str, Any], name: str | None = None) -> Run:
    """Load an exported model of a folder, by default the first of `RUNTIMES` that exists and can run."""
    there = [name] if name else [file for file in RUNTIMES if (folder / file).exists()]
    missing = ""
    for file in there:
        if file not in RUNTIMES:
            raise ValueError(f"{file}: must be one of {', '.join(RUNTIMES)}")
        try:
            runtime: Any = importlib.import_module(RUNTIMES[file])
        except ImportError:
            package = RUNTIMES[file].split(".")[0].replace("_", "-")
            missing = missing or f"{file} needs {package}: pip install {package}"
            continue
        return partial(_in_calls, _loader(runtime, folder / file, facts), facts["input"]["shape"][0])
    raise ValueError(missing or f"{folder}: has none of {', '.join(RUNTIMES)}")


def _loader(runtime: Any, path: Path, facts: dict[str, Any]) -> Run:
    if path.name == "model.onnx":
        runtime.disable_telemetry_events()  # its wheels may report usage data
        session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        return lambda clips: session.run(None, {facts["input"]["name"]: clips})[0]
    if path.name == "model_openvino.xml":
        model = runtime.Core().compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        return lambda clips: model(clips)[0]
    if path.name == "model.tflite":
        return _litert(runtime.Interpreter(model_path=str(path)))
    if path.name == "model.pte":
        return _executorch(runtime.Runtime.get().load_program(str(path)).load_method("forward"))
    return _torch(runtime, path, facts["device"])


def _litert(interpreter: Any) -> Run:
    interpreter.allocate_tensors()
    (given,), (answer,) = interpreter.get_input_details(), interpreter.get_output_details()

    def run(clips: np.ndarray) -> np.ndarray:
        interpreter.set_tensor(given["index"], clips)
        interpreter.invoke()
        found: np.ndarray = interpreter.get_tensor(answer["index"])
        return found

    return run


def _executorch(method: Any) -> Run:
    torch: Any = importlib.import_module("torch")  # whose tensors its Python runtime takes
    return lambda clips: method.execute([torch.from_numpy(clips)])[0].numpy().copy()


def _torch(torch: Any, path: Path, device: str) -> Run:
    if path.name == "model_aoti.pt2":
        module = importlib.import_module("torch._inductor").aoti_load_package(str(path))
    else:
        module = torch.export.load(str(path)).module()

    def run(clips: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            answer: np.ndarray = module(torch.from_numpy(clips).to(device)).cpu().numpy()
        return answer

    return run


def _in_calls(run: Run, batch: int | str, clips: np.ndarray) -> np.ndarray:
    """Run a model on batches of its size; the last batch is padded where the size is fixed."""
    step = batch if isinstance(batch, int) else CLIPS_A_CALL
    answers = []
    for start in range(0, len(clips), step):
        part = clips[start : start + step]
        fill = step - len(part) if isinstance(batch, int) else 0
        answers.append(run(np.concatenate([part, np.repeat(part[-1:], fill, axis=0)]))[: len(part)])
    return np.concatenate(answers)


def predict(path: str, rules: dict[str, Any], run: Run) -> np.ndarray:
    """Return the probability of each class (K,): the mean over the views of a video file."""
    mean: np.ndarray = run(read_clips(path, rules)).astype(np.float64).mean(0)
    return mean


def check_vectors(folder: Path, facts: dict[str, Any], run: Run) -> list[tuple[str, float, float]]:
    """Answer the test vectors of a folder: (file, largest difference of a probability, tolerance) of each."""
    found = []
    for vector in facts["test_vectors"]:
        rules = {**facts["preprocessing"], **vector["views"]}
        answer = predict(str(folder / vector["file"]), rules, run)
        difference = float(np.abs(answer - np.array(vector["probabilities"])).max())
        found.append((vector["file"], difference, vector["tolerance"]))
    return found


def main() -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("videos", nargs="*", metavar="VIDEO", help="none: check the test vectors")
    parser.add_argument("--folder", type=Path, default=Path(__file__).parent, help="of the exported model")
    parser.add_argument("--model", choices=tuple(RUNTIMES), help="file to run (default: the first that can)")
    parser.add_argument("--topk", type=int, default=5, help="classes to print (default 5)")
    parser.add_argument("--clips", metavar="FILE", help="save the clips of a video as .npy")
    arguments = parser.parse_args()
    if arguments.clips and len(arguments.videos) != 1:
        parser.error("--clips takes one video")
    facts = json.loads((arguments.folder / "model.json").read_text(encoding="utf-8"))
    run = load_run(arguments.folder, facts, arguments.model)
    warnings.formatwarning = lambda message, *_: f"warning: {message}\n"
    if not arguments.videos:
        found = check_vectors(arguments.folder, facts, run)
        for file, difference, tolerance in found:
            verdict = "same" if difference <= tolerance else "DIFFERENT"
            print(f"{file}: {verdict}, a probability differs by {difference:.1e} at most (tolerance {tolerance:g})")
        return 0 if all(difference <= tolerance for _, difference, tolerance in found) else 1
    for path in arguments.videos:
        if arguments.clips:
            np.save(arguments.clips, read_clips(path, facts["preprocessing"]))
        answer = predict(path, facts["preprocessing"], run)
        best = np.argsort(-answer, kind="stable")[: arguments.topk]
        print(f"{path}: " + ", ".join(f"{facts['classes'][label]} {answer[label]:.4f}" for label in best))
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
