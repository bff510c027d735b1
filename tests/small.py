"""A small data set of real mp4 files and the settings of a small model, for the tests of whole runs."""

import contextlib
import io
import itertools
import logging
import os
import runpy
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lookupvit_video.data.transforms import BatchAugment
from tests.videos import write_video

ROOT = Path(__file__).parent.parent
MARK = "LOOKUPVIT_TEST_PROCESS"  # in the environment of what a test starts, and so of all that this starts in turn
_numbers = itertools.count()
SMALL = {
    "DATA.NUM_FRAMES": 4, "DATA.SAMPLING_RATE": 2, "DATA.TRAIN_CROP_SIZE": 32, "DATA.TEST_CROP_SIZE": 32,
    "MODEL.NUM_CLASSES": 3, "MODEL.DIM": 24, "MODEL.DEPTH": 2, "MODEL.NUM_HEADS": 3, "MODEL.TUBELET": "[2,8,8]",
    "MODEL.COMPRESSED_GRID": "[1,2,2]", "DATA_LOADER.NUM_WORKERS": 0, "SOLVER.MAX_EPOCH": 2, "SOLVER.WARMUP_EPOCHS": 1,
    "SOLVER.BASE_LR": "1e-3", "TRAIN.BATCH_SIZE": 4, "LOG_PERIOD": 1,
    "DATA_LOADER.TIMEOUT": 60, "DIST_TIMEOUT": 100,  # what hangs in a test is to say so
}  # fmt: skip


def batch_augment(cfg: Any) -> BatchAugment:
    """What a run makes of its config."""
    mix = cfg.MIXUP.PROB if cfg.MIXUP.ENABLE else None
    return BatchAugment(cfg.AUG.RE_PROB, mix, (cfg.MIXUP.ALPHA, cfg.MIXUP.CUTMIX_ALPHA), cfg.MIXUP.SWITCH_PROB)


def make_videos(
    folder: Path, count: int = 9, num_classes: int = 3, suffix: str = ".mp4", codec: str = "libx264"
) -> None:
    """Write videos and train.csv, val.csv, test.csv (the same rows in each), classes.txt."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = ["path,label"]
    for index in range(count):
        write_video(folder / f"{index}{suffix}", frames=12, size=(64, 48), first_number=100 * index, codec=codec)
        rows.append(f"{index}{suffix},{index % num_classes}")
    for split in ("train", "val", "test"):
        (folder / f"{split}.csv").write_text("\n".join(rows) + "\n")
    (folder / "classes.txt").write_text("".join(f"class {label}\n" for label in range(num_classes)))


def settings(data: Path, output: Path, **changes: object) -> list[str]:
    """Return the overrides of a small run; a double underscore in a name of ``changes`` stands for the dot."""
    values = {
        **SMALL, "DATA.PATH_TO_DATA_DIR": data, "OUTPUT_DIR": output,
        **{key.replace("__", "."): value for key, value in changes.items()},
    }  # fmt: skip
    return [str(part) for pair in values.items() for part in pair]


@contextlib.contextmanager
def started(
    command: Sequence[object], limit: float = 300, variables: dict[str, str] | None = None, **options: Any
) -> Iterator[subprocess.Popen]:
    """Start a process; at the end of the block, and after ``limit`` seconds, it dies with all that it started.

    So nothing waits without end: when it dies its pipes are closed, and who reads from them or waits for it goes on.
    Killing the process alone, or its group, would not do: torchrun starts its processes in sessions of their own, they
    outlive it, hold its pipes and wait for one another.
    """
    mark = f"{os.getpid()}.{next(_numbers)}"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **(variables or {}), MARK: mark}
    defaults = {"cwd": ROOT, "text": True, "start_new_session": True}
    process = subprocess.Popen(list(map(str, command)), env=environment, **defaults | options)
    timer = threading.Timer(limit, _kill_all, [process, mark])
    timer.start()
    try:
        yield process
    finally:
        timer.cancel()
        _kill_all(process, mark)
        process.wait(60)
        for pipe in filter(None, (process.stdin, process.stdout, process.stderr)):
            pipe.close()


def _kill_all(process: subprocess.Popen, mark: str) -> None:
    """Kill a process, its group, and (on Linux, which tells) whatever has its mark in the environment."""
    with contextlib.suppress(OSError):
        os.killpg(process.pid, signal.SIGKILL)
    for _ in range(100):  # until no more come: one of them may have been starting another
        found = False
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if f"{MARK}={mark}\0".encode() in (entry / "environ").read_bytes():  # empty for those that are dead
                    os.kill(int(entry.name), signal.SIGKILL)
                    found = True
        if not found:
            return
        time.sleep(0.01)


def run_command(
    command: Sequence[object], limit: float = 300, variables: dict[str, str] | None = None, **options: Any
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, or until ``limit`` seconds are over, which gives the return code -9."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with started(command, limit, variables, **pipes, **options) as process:
        stdout, stderr = process.communicate(timeout=limit + 60)
    return subprocess.CompletedProcess(list(command), process.returncode, stdout, stderr)


def run_tool(*arguments: object, processes: int = 1) -> subprocess.CompletedProcess[str]:
    """Run a command of tools/ as a user does, with torchrun where there is more than one process."""
    command = [sys.executable]
    if processes > 1:
        command += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    return run_command([*command, *arguments])


def call_tool(*arguments: object, folder: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Run a command of tools/ in this process: the same file from its first line, without waiting for the imports.

    Args:
        folder: where it runs.
    """
    stdout, stderr = io.StringIO(), io.StringIO()
    before, previous, root = sys.argv, Path.cwd(), logging.getLogger()
    logs = root.handlers, root.level
    sys.argv = [str(argument) for argument in arguments]
    os.chdir(folder)
    root.handlers, root.level = [], logging.WARNING  # as in a new process, whatever another test has left
    try:
        with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
            runpy.run_path(str(arguments[0]), run_name="__main__")
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    finally:
        sys.argv = before
        os.chdir(previous)
        root.handlers, root.level = logs
    return subprocess.CompletedProcess(list(arguments), code, stdout.getvalue(), stderr.getvalue())


def run_net(overrides: list[str], cfg: str = "tests/small.yaml", processes: int = 1):
    """Run tools/run_net.py over a config: in this process, or in several with torchrun."""
    arguments = ("tools/run_net.py", "--cfg", cfg, *overrides)
    return call_tool(*arguments) if processes == 1 else run_tool(*arguments, processes=processes)
