"""`tools/benchmark.py model`: LookupViT beside a dense ViT and what users would pick instead, in one process.

All contenders of a setting take turns, round after round, and each round begins with another one: what slows the
machine down for a while slows all of them. Weights are random. Reading order: contenders, measuring, what came out.
"""

import argparse
import ctypes
import gc
import runpy
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lookupvit_video.data.loader import keep_freed_memory
from lookupvit_video.distributed.parallel import autocast_dtype, checkpoint_activations, compile_blocks
from lookupvit_video.errors import UserError
from lookupvit_video.figures import new_figure, save_figure
from lookupvit_video.files import write_json
from lookupvit_video.log import setup_logging
from lookupvit_video.models.attention import KERNELS, set_kernel
from lookupvit_video.models.blocks import BlockOptions
from lookupvit_video.models.complexity import count_parameters, measured_macs
from lookupvit_video.models.lookupvit import LookupViT, grid_name
from lookupvit_video.models.tokenizer import Grid
from lookupvit_video.models.vit import ViT
from lookupvit_video.progress import progress
from lookupvit_video.registry import VIT_SIZES
from lookupvit_video.text import write_text
from lookupvit_video.training.utilisation import peak_flops

EXAMPLES = """examples:
  python tools/benchmark.py model --grids 2x7x7 4x7x7 8x7x7 --threads 1 2 --json model.json --markdown model.md
  python tools/benchmark.py model --only lookupvit vit --depth 2 --frames 8 --rounds 3
  python tools/benchmark.py model --frames 8 16 32 64 --grids 4x7x7 --plot scaling.png
  python tools/benchmark.py model --precision bfloat16 --compile --mode inference train --batch 1 8 32 --frames 16 32
"""
NUM_CLASSES, TUBELET, PEERS_PATCH = 400, (2, 16, 16), 16
DENSE = "dense ViT"  # what speed-ups are over; its attention is torch's SDPA
DENSE_BY_HEADS = "dense ViT, own attention"
FAMILIES = ("lookupvit", "vit", "videomae", "vivit", "mvit", "timm")
LEGEND = """
ms, clips/s: a clip, the median of the rounds (lowest to highest). GMACs: of one clip's forward pass, counted by running
it. TFLOP/s: two for each of them, a training step three times as many; weights computed again count nothing. Peak
memory holds the model itself and, in training, its gradients and AdamW's state. Speed-up: over the dense ViT, the
median over the rounds of the ratio. Conversion: speed-up over the ratio of GMACs; at 1 every saved operation is saved
time.
"""


# Contenders -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Setting:
    """What all contenders of a comparison share."""

    mode: str  # inference or train
    frames: int
    size: int
    batch: int
    threads: int

    def clips(self, device: torch.device, dtype: torch.dtype) -> Tensor:
        """Return normalised clips (B, C, T, H, W) of noise."""
        generator = torch.Generator().manual_seed(0)
        return torch.randn(self.batch, 3, self.frames, self.size, self.size, generator=generator).to(device, dtype)


@dataclass
class Contender:
    """A model and how to call it on a clip (B, C, T, H, W) for the logits (B, K) of each of its heads."""

    name: str
    model: nn.Module
    call: Callable[[nn.Module, Tensor], Sequence[Tensor]]
    grid: Grid | None = None
    macs: int = 0
    optimizer: torch.optim.Optimizer | None = None


def heads_of(output: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return output if isinstance(output, tuple) else (output,)


def our_arguments(setting: Setting, arguments: argparse.Namespace) -> dict[str, Any]:
    dim, depth, num_heads = VIT_SIZES[arguments.variant]
    return {
        "num_classes": NUM_CLASSES, "num_frames": setting.frames, "size": setting.size, "tubelet": TUBELET,
        "dim": arguments.dim or dim, "depth": arguments.depth or depth,
        "num_heads": arguments.dim // 64 if arguments.dim else num_heads,
    }  # fmt: skip


def lookupvits(setting: Setting, arguments: argparse.Namespace) -> Iterator[Contender]:
    """One model for each kernel and checkpointing; its grids share the weights, as in a multi-resolution model."""
    checkpointings = arguments.checkpointing if setting.mode == "train" else ["none"]
    for kernel, checkpointing in product(arguments.kernels, checkpointings):
        model = LookupViT(
            compressed_grid=arguments.grids[0],
            grids=arguments.grids[1:],
            inference_head=arguments.head,
            options=BlockOptions(reverse=arguments.reverse),
            **our_arguments(setting, arguments),
        )
        set_kernel(model, kernel)
        for block in model.blocks:
            checkpoint_activations(block, checkpointing)
        extra = [kernel] if len(arguments.kernels) > 1 else []
        extra += [] if checkpointing == "none" else [f"{checkpointing} recomputed"]
        for grid in arguments.grids:
            name = ", ".join([f"LookupViT {grid_name(grid)}", *extra])

            def call(model: nn.Module, clips: Tensor, grid: Grid = grid) -> tuple[Tensor, ...]:
                return heads_of(model(clips, grid=grid))

            yield Contender(name, model, call, grid)


def vit(setting: Setting, arguments: argparse.Namespace) -> Iterator[Contender]:
    """This project's dense ViT: with torch's SDPA and, where that is another thing, with this project's attention."""
    for name, kernel in ((DENSE, "fused"), (DENSE_BY_HEADS, "auto")):
        model = ViT(**our_arguments(setting, arguments))
        set_kernel(model, kernel)
        if kernel == "fused" or (torch.device(arguments.device).type == "cpu" and setting.mode == "inference"):
            yield Contender(name, model, lambda model, clips: heads_of(model(clips)))


def hugging_face(name: str, setting: Setting, arguments: argparse.Namespace) -> Iterator[Contender]:
    """VideoMAE's ViT or ViViT from transformers, with SDPA, their fastest attention for these shapes."""
    import transformers

    dim, depth, num_heads = (our_arguments(setting, arguments)[key] for key in ("dim", "depth", "num_heads"))
    shape = {
        "image_size": setting.size, "num_frames": setting.frames, "num_labels": NUM_CLASSES, "hidden_size": dim,
        "num_hidden_layers": depth, "num_attention_heads": num_heads, "intermediate_size": 4 * dim,
    }  # fmt: skip
    classes: dict[str, tuple[Any, Any, str]] = {
        "videomae": (transformers.VideoMAEForVideoClassification, transformers.VideoMAEConfig, "VideoMAE's ViT"),
        "vivit": (transformers.VivitForVideoClassification, transformers.VivitConfig, "ViViT"),
    }
    kind, config, title = classes[name]
    model = kind._from_config(config(**shape), attn_implementation="sdpa")
    yield Contender(f"{title} (Hugging Face)", model, lambda model, clips: (model(clips.transpose(1, 2)).logits,))


def mvit(setting: Setting, arguments: argparse.Namespace) -> Iterator[Contender]:
    """PyTorchVideo's MViT-B."""
    from lookupvit_video.models.pytorchvideo_models import MViT

    model = MViT(num_classes=NUM_CLASSES, num_frames=setting.frames, size=setting.size)
    yield Contender("MViT-B (PyTorchVideo)", model, lambda model, clips: heads_of(model(clips)))


def timm_vit(setting: Setting, arguments: argparse.Namespace) -> Iterator[Contender]:
    """timm's image ViT on every second frame (as many tokens as tubelets), logits averaged."""
    import timm

    dim, depth, num_heads = (our_arguments(setting, arguments)[key] for key in ("dim", "depth", "num_heads"))
    model = timm.models.VisionTransformer(
        img_size=setting.size, patch_size=PEERS_PATCH, num_classes=NUM_CLASSES, embed_dim=dim, depth=depth,
        num_heads=num_heads,
    )  # fmt: skip

    def call(model: nn.Module, clips: Tensor) -> tuple[Tensor]:
        frames = clips[:, :, ::2].transpose(1, 2)
        return (model(frames.flatten(0, 1)).unflatten(0, frames.shape[:2]).mean(1),)

    yield Contender("ViT on frames (timm)", model, call)


def contenders(setting: Setting, arguments: argparse.Namespace, device: torch.device) -> list[Contender]:
    """Return every contender that was asked for and can take the setting, counted and placed on the device."""
    makers: dict[str, Callable[..., Iterator[Contender]]] = {
        "lookupvit": lookupvits, "vit": vit, "mvit": mvit, "timm": timm_vit,
        **{name: lambda *others, name=name: hugging_face(name, *others) for name in ("videomae", "vivit")},
    }  # fmt: skip
    found: list[Contender] = []
    for family in arguments.only:
        try:
            found += makers[family](setting, arguments)
        except ImportError as error:
            print(f"left out: {family}: {error} (pip install -e .[test])", file=sys.stderr)
    for contender in found:
        meta = deepcopy(contender.model).to("meta")
        clip = torch.empty(1, 3, setting.frames, setting.size, setting.size, device="meta")
        contender.macs = measured_macs(_Called(meta, contender.call), clip)
    dtype = autocast_dtype(arguments.precision, device)
    for model in {id(contender.model): contender.model for contender in found}.values():
        model.to(device, dtype if setting.mode == "inference" else None).train(setting.mode == "train")
    return found


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """Return the longest row of modules of one class: a transformer's blocks, whatever its code calls them."""
    rows = [list(module) for module in model.modules() if isinstance(module, (nn.ModuleList, nn.Sequential))]
    return max((row for row in rows if len({type(module) for module in row}) == 1), key=len)


def compile_contenders(found: list[Contender], mode: str) -> None:
    """Compile every model: its blocks one by one, as training does ("blocks"), or all of it in a mode of torch's."""
    torch._dynamo.reset()  # sizes of an earlier setting would make those of this one free, and the code slower
    compiled: dict[int, nn.Module] = {}
    for contender in found:
        key = id(contender.model)
        if key not in compiled and mode == "blocks":
            compile_blocks(blocks_of(contender.model), dynamic=False)
            compiled[key] = contender.model
        elif key not in compiled:
            compiled[key] = torch.compile(contender.model, mode=mode, dynamic=False)  # type: ignore[assignment]
        contender.model = compiled[key]


class _Called(nn.Module):
    """A model with its way of being called, for the counter."""

    def __init__(self, model: nn.Module, call: Callable[[nn.Module, Tensor], Sequence[Tensor]]):
        super().__init__()
        self.model, self.call = model, call

    def forward(self, clips: Tensor) -> Sequence[Tensor]:
        return self.call(self.model, clips)


# Measuring --------------------------------------------------------------------------------------------------------


def work(contender: Contender, setting: Setting, device: torch.device, dtype: torch.dtype) -> Callable[[], None]:
    """Return what is measured: a forward pass, or a training step (forward, loss, backward, AdamW)."""
    model = contender.model
    if setting.mode == "inference":
        clips = setting.clips(device, dtype)

        def infer() -> None:
            with torch.inference_mode():
                contender.call(model, clips)

        return infer
    clips = setting.clips(device, torch.float32)
    labels = torch.arange(setting.batch, device=device) % NUM_CLASSES
    optimizer = contender.optimizer
    assert optimizer is not None

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        mixed: AbstractContextManager[Any] = nullcontext()
        if dtype != torch.float32:
            mixed = torch.autocast(device.type, dtype)
        with mixed:
            logits = contender.call(model, clips)
            loss = sum((F.cross_entropy(head.float(), labels) for head in logits), torch.zeros((), device=device))
        loss.backward()
        optimizer.step()

    return step


def seconds(run: Callable[[], None], times: int, device: torch.device) -> float:
    """Return the seconds of one of ``times`` runs in a row."""
    _wait(device)
    start = time.perf_counter()
    for _ in range(times):
        run()
    _wait(device)
    return (time.perf_counter() - start) / times


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def peak_bytes(run: Callable[[], None], device: torch.device) -> int | None:
    """Return the most memory that a run takes above what is there before; None where the system cannot tell."""
    gc.collect()
    if device.type == "cuda":
        _wait(device)
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        _wait(device)
        return torch.cuda.max_memory_allocated() - before
    if not Path("/proc/self/clear_refs").exists():
        return None
    ctypes.CDLL(None).malloc_trim(0)  # else memory that earlier runs freed would serve unseen
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again
    except OSError:
        return None
    before = _status_bytes("VmRSS")
    run()
    return max(0, _status_bytes("VmHWM") - before)


def _status_bytes(key: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(f"{key}:")).split()[1])


def standing_bytes(contender: Contender) -> int:
    """Return what the model holds between two runs: weights and, in training, gradients' and AdamW's sums."""
    tensors = [*contender.model.parameters(), *contender.model.buffers()]
    if contender.optimizer is not None:
        states = contender.optimizer.state.values()
        tensors += [value for state in states for value in state.values() if isinstance(value, Tensor)]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def compare(
    found: list[Contender], setting: Setting, arguments: argparse.Namespace, tick: Callable[[], None]
) -> list[dict[str, Any]]:
    """Return one row for each contender; seconds are lists over the rounds."""
    device = torch.device(arguments.device)
    dtype = autocast_dtype(arguments.precision, device)
    torch.set_num_threads(setting.threads)
    if setting.mode == "train":
        made: dict[int, torch.optim.Optimizer] = {}  # contenders that share a model share its optimiser
        for contender in found:
            key = id(contender.model)
            made[key] = made.get(key) or torch.optim.AdamW(contender.model.parameters(), 1e-5, fused=True)
            contender.optimizer = made[key]
    runs = [work(contender, setting, device, dtype) for contender in found]
    times, rows = [], []
    for contender, run in zip(found, runs, strict=True):
        run()  # compiles, allocates, makes AdamW's state
        once = seconds(run, 1, device)
        times.append(max(1, round(arguments.seconds / once)))
        peak = peak_bytes(run, device)
        tick()
        rows.append({
            "model": contender.name, "grid": contender.grid, **vars(setting), "macs": contender.macs,
            "parameters": count_parameters(contender.model), "seconds": [],
            "peak_bytes": None if peak is None else peak + standing_bytes(contender),
        })  # fmt: skip
    order = list(range(len(found)))
    for _ in range(arguments.rounds):
        for i in order:
            rows[i]["seconds"].append(seconds(runs[i], times[i], device))
            tick()
        order = order[1:] + order[:1]
    for contender in found:
        contender.optimizer = None
        contender.model.zero_grad(set_to_none=True)
    return rows


def judge_rows(rows: list[dict[str, Any]], peak: float | None) -> None:
    """Add to the rows of one setting what follows from their figures and from the dense ViT's."""
    dense = next((row for row in rows if row["model"] == DENSE), None)
    for row in rows:
        batch, passes = row["batch"], 3 if row["mode"] == "train" else 1
        row["clips_per_second"] = batch / median(row["seconds"])
        row["flops_per_second"] = 2 * row["macs"] * passes * row["clips_per_second"]
        row["mfu"] = row["flops_per_second"] / peak if peak else None
        if dense is not None:
            row["speed_up"] = median(a / b for a, b in zip(dense["seconds"], row["seconds"], strict=True))
            row["mac_ratio"] = dense["macs"] / row["macs"]
            row["conversion"] = row["speed_up"] / row["mac_ratio"]


# What came out ----------------------------------------------------------------------------------------------------


def table(rows: list[dict[str, Any]]) -> str:
    """Return rows as a Markdown table."""
    titles = ("mode", "frames", "pixels", "batch", "threads", "model", "M params", "GMACs", "ms", "clips/s", "TFLOP/s",
              "MFU, %", "peak MiB", "speed-up", "MAC ratio", "conversion")  # fmt: skip
    lines = [f"| {' | '.join(titles)} |", "|" + "---|" * len(titles)]
    for row in rows:
        ms = [1000 * second / row["batch"] for second in row["seconds"]]
        mfu, peak = row["mfu"], row["peak_bytes"]
        cells = [
            row["mode"], row["frames"], row["size"], row["batch"], row["threads"], row["model"],
            f"{row['parameters'] / 1e6:.1f}", f"{row['macs'] / 1e9:.2f}",
            f"{median(ms):.1f} ({min(ms):.1f} to {max(ms):.1f})", f"{row['clips_per_second']:.3g}",
            f"{row['flops_per_second'] / 1e12:.3g}", "-" if mfu is None else f"{100 * mfu:.0f}",
            "-" if peak is None else f"{peak / 2**20:.0f}",
        ]  # fmt: skip
        cells += [f"{row[key]:.2f}" if key in row else "-" for key in ("speed_up", "mac_ratio", "conversion")]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines) + "\n"


def best_batches(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return each model at the batch where it is fastest, compared with the dense ViT at the dense ViT's best."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["mode"], row["frames"], row["size"], row["threads"], row["model"]), []).append(row)
    best = {key: max(group, key=lambda row: row["clips_per_second"]) for key, group in groups.items()}
    found = []
    for key, row in best.items():
        dense = best.get((*key[:-1], DENSE))
        again = dict(row)
        if dense is not None:
            again["speed_up"] = row["clips_per_second"] / dense["clips_per_second"]
            again["conversion"] = again["speed_up"] / again["mac_ratio"]
        found.append(again)
    return found


def goals(best: list[dict[str, Any]], device: torch.device) -> list[dict[str, Any]]:
    """Hold every figure that the project set itself a goal for against it; rows at their best batch."""
    found: list[dict[str, Any]] = []

    def add(row: dict[str, Any], what: str, value: float, bound: float, at_most: bool = False) -> None:
        place = {key: row[key] for key in ("mode", "frames", "size", "threads", "model")}
        met = value <= bound if at_most else value >= bound
        sign = "at most" if at_most else "at least"
        found.append({**place, "what": what, "value": value, "goal": f"{sign} {bound:g}", "met": met})

    for row in best:
        if row["grid"] is None:
            continue
        same = {other["model"]: other for other in best if all(
            other[key] == row[key] for key in ("mode", "frames", "size", "threads"))}  # fmt: skip
        on_gpu, trains = device.type == "cuda", row["mode"] == "train"
        if "conversion" in row and (on_gpu or not trains):
            bound = 0.8 if trains else 0.85 if on_gpu and row["frames"] < 32 else 0.95
            add(row, "conversion", row["conversion"], bound)
            if DENSE_BY_HEADS in same:
                ratio = row["clips_per_second"] / same[DENSE_BY_HEADS]["clips_per_second"]
                add(row, f"conversion over the {DENSE_BY_HEADS}", ratio / row["mac_ratio"], bound)
        for name, frames, bound in (("VideoMAE's ViT (Hugging Face)", 16, 2.0), ("ViViT (Hugging Face)", 32, 3.0)):
            if name in same and not trains and (row["frames"], row["grid"]) == (frames, (4, 7, 7)):
                ratio = row["clips_per_second"] / same[name]["clips_per_second"]
                add(row, f"times {name}", ratio, bound)
        if on_gpu and trains and DENSE in same and row["batch"] == same[DENSE]["batch"]:
            add(row, "peak memory of the dense ViT", row["peak_bytes"] / same[DENSE]["peak_bytes"], 0.6, True)
    return found


def goal_table(found: list[dict[str, Any]]) -> str:
    """Return goals as a Markdown table."""
    lines = ["| mode | frames | pixels | threads | model | what | reached | goal | met |", "|" + "---|" * 9]
    for goal in found:
        cells = [goal[key] for key in ("mode", "frames", "size", "threads", "model", "what")]
        cells += [f"{goal['value']:.2f}", goal["goal"], "yes" if goal["met"] else "no"]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines) + "\n"


def lookup_tokens(row: dict[str, Any]) -> int:
    """N: tubelets of a clip."""
    return row["frames"] // TUBELET[0] * (row["size"] // TUBELET[1]) * (row["size"] // TUBELET[2])


def plot_scaling(rows: list[dict[str, Any]], path: Path) -> None:
    """Draw time and peak memory of a clip over the number of lookup tokens N, a line for each model."""
    figure = new_figure(10, 4)
    axes = figure.subplots(1, 2)
    for name in dict.fromkeys(row["model"] for row in rows):
        own = sorted((row for row in rows if row["model"] == name), key=lookup_tokens)
        tokens = [lookup_tokens(row) for row in own]
        style = {"marker": "o", "label": name, "linestyle": "-" if own[0]["grid"] else "--"}
        axes[0].plot(tokens, [1000 / row["clips_per_second"] for row in own], **style)
        if all(row["peak_bytes"] for row in own):
            axes[1].plot(tokens, [row["peak_bytes"] / 2**20 for row in own], **style)
    axes[0].set(title="time", xlabel="lookup tokens N", ylabel="ms a clip", ylim=(0, None))
    axes[1].set(title="peak memory", xlabel="lookup tokens N", ylabel="MiB", ylim=(0, None))
    for axis in axes:
        axis.grid(alpha=0.3)
        axis.set_xlim(left=0)
    axes[0].legend(fontsize=8)
    save_figure(figure, path)


def growth(rows: list[dict[str, Any]]) -> str:
    """Return how time grows from the shortest to the longest clip, against the growth of N; "" for one length."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["mode"], row["size"], row["threads"], row["model"]), []).append(row)
    titles = ("mode", "pixels", "threads", "model", "N", "time grows", "over N", "over GMACs")
    lines = [f"| {' | '.join(titles)} |", "|" + "---|" * len(titles)]
    for key, group in groups.items():
        first, last = (pick(group, key=lookup_tokens) for pick in (min, max))
        n, more = lookup_tokens(first), lookup_tokens(last)
        if n != more:
            times = first["clips_per_second"] / last["clips_per_second"]
            against = f"{times * n / more:.2f} | {times * first['macs'] / last['macs']:.2f}"
            lines.append(f"| {' | '.join(map(str, key))} | {n} to {more} | {times:.2f} | {against} |")
    return "\n".join(lines) + "\n" if len(lines) > 2 else ""


# Command line -----------------------------------------------------------------------------------------------------


def add_arguments(parser: argparse.ArgumentParser, at_least_one: Callable[[str], int]) -> None:
    """Add the options of `tools/benchmark.py model`."""

    def grid(text: str) -> Grid:
        sides = text.split("x")
        if len(sides) != 3 or not all(side.isdecimal() and int(side) for side in sides):
            raise argparse.ArgumentTypeError(f"{text!r} is not a grid such as 4x7x7")
        return (int(sides[0]), int(sides[1]), int(sides[2]))

    several: dict[str, Any] = {"nargs": "+", "type": at_least_one, "metavar": "N"}
    parser.add_argument("--only", nargs="+", choices=FAMILIES, default=list(FAMILIES), help="who takes part")
    parser.add_argument("--mode", nargs="+", choices=("inference", "train"), default=["inference"])
    parser.add_argument("--frames", default=[16], help="of a clip", **several)
    parser.add_argument("--size", default=[224], help="height and width in pixels", **several)
    parser.add_argument("--batch", default=[1], help="clips at a time; of several, each model's best", **several)
    parser.add_argument("--grids", nargs="+", type=grid, default=[(4, 7, 7)], metavar="TxHxW", help="compressed tokens")
    parser.add_argument("--variant", choices=list(VIT_SIZES), default="B", help="size of LookupViT and dense ViT")
    parser.add_argument("--dim", type=at_least_one, help="another width than the variant's, a multiple of 64")
    parser.add_argument("--depth", type=at_least_one, help="fewer blocks than the variant has, for a quick run")
    parser.add_argument("--reverse", choices=("softmax", "scaled", "transpose"), default="softmax",
                        help="weights of LookupViT's way back")  # fmt: skip
    parser.add_argument("--head", choices=("average", "compressed", "lookup"), default="average",
                        help="what LookupViT answers with in inference")  # fmt: skip
    parser.add_argument("--kernels", nargs="+", choices=KERNELS, default=["auto"], help="LookupViT's attention kernels")
    parser.add_argument("--checkpointing", nargs="+", choices=("none", "write_back", "selective", "full"),
                        default=["none"], help="LookupViT's TRAIN.ACTIVATION_CHECKPOINTING in training")  # fmt: skip
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32",
                        help="inference: of weights and clip; training: autocast")  # fmt: skip
    parser.add_argument("--compile", nargs="?", const="blocks", metavar="MODE",
                        help="torch.compile, all contenders: block by block, or whole in one of its modes")  # fmt: skip
    parser.add_argument("--threads", default=[torch.get_num_threads()], help="processor threads", **several)
    parser.add_argument("--rounds", type=at_least_one, default=5, metavar="N", help="medians are over so many rounds")
    parser.add_argument("--seconds", type=float, default=1.0, metavar="S", help="a turn repeats until it takes so long")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the same as JSON")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the tables to a file too")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw time and memory over N, as PNG")


def check(arguments: argparse.Namespace) -> None:
    """Refuse what cannot run, before anything runs."""
    if arguments.dim and arguments.dim % 64:
        raise UserError(f"--dim {arguments.dim}: take a multiple of 64, the width of a head")
    if torch.device(arguments.device).type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"--device {arguments.device}: this machine shows no GPU to torch")
    for frames, size in product(arguments.frames, arguments.size):
        t, h, w = (whole // part for whole, part in zip((frames, size, size), TUBELET, strict=True))
        if frames % TUBELET[0] or size % TUBELET[1]:
            raise UserError(f"{frames} frames of {size} pixels cannot be cut into tubelets of {TUBELET}")
        for grid in arguments.grids:
            if any(out > whole for out, whole in zip(grid, (t, h, w), strict=True)):
                raise UserError(
                    f"--grids {grid_name(grid)} is larger than the {t}x{h}x{w} tubelets of {frames} frames of {size} "
                    "pixels"
                )


def benchmark(arguments: argparse.Namespace, machine: dict[str, Any]) -> int:
    """Run `tools/benchmark.py model`."""
    check(arguments)
    setup_logging()
    keep_freed_memory()  # as in a worker; it helps all contenders alike
    torch.manual_seed(0)
    device = torch.device(arguments.device)
    settings = [Setting(*values) for values in product(
        arguments.mode, arguments.frames, arguments.size, arguments.batch, arguments.threads)]  # fmt: skip
    peak = peak_flops(device, autocast_dtype(arguments.precision, device))
    rows: list[dict[str, Any]] = []
    for number, setting in enumerate(settings, start=1):
        found = contenders(setting, arguments, device)
        if arguments.compile:
            compile_contenders(found, arguments.compile)
        turns = len(found) * (arguments.rounds + 1)
        done = progress(range(turns), total=turns, label=f"setting {number} of {len(settings)}", unit="turns")
        some = compare(found, setting, arguments, lambda done=done: next(done, None))  # type: ignore[misc]
        judge_rows(some, peak)
        rows += some
    best = best_batches(rows)
    where = f"{machine['processor']}, {machine['cores']} cores"
    if device.type == "cuda":
        where = torch.cuda.get_device_name(device)
    how = f"torch.compile ({arguments.compile})" if arguments.compile else "not compiled"
    text = f"{where}, {arguments.precision}, {how}\n\n{table(rows)}{LEGEND}"
    if len(arguments.batch) > 1:
        text += f"\nEach at its best batch:\n\n{table(best)}"
    for part in (growth(best), goal_table(goals(best, device)) if goals(best, device) else ""):
        text += f"\n{part}" if part else ""
    versions = ", ".join(f"{name} {number}" for name, number in machine["packages"].items() if number)
    text += f"\n{versions}\n\n    tools/benchmark.py {' '.join(sys.argv[1:])}\n"
    print(text, end="")
    if arguments.markdown:
        write_text(arguments.markdown, text)
    if arguments.json:
        facts = {"command": " ".join(sys.argv[1:]), **machine, "rows": rows, "best": best, "goals": goals(best, device)}
        write_json(arguments.json, facts)
    if arguments.plot:
        plot_scaling([row for row in best if row["mode"] == arguments.mode[0]], arguments.plot)
    return 0


if __name__ == "__main__":  # the same as tools/benchmark.py model
    sys.argv[0:1] = [str(Path(__file__).with_name("benchmark.py")), "model"]
    runpy.run_path(sys.argv[0], run_name="__main__")
