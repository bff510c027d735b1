"""A small data set of real mp4 files and the settings of a small model, for the tests of whole runs."""

import contextlib
import io
import os
import runpy
import subprocess
import sys
from pathlib import Path

from tests.videos import write_video

ROOT = Path(__file__).parent.parent
SMALL = {
    "DATA.NUM_FRAMES": 4, "DATA.SAMPLING_RATE": 2, "DATA.TRAIN_CROP_SIZE": 32, "DATA.TEST_CROP_SIZE": 32,
    "MODEL.NUM_CLASSES": 3, "MODEL.DIM": 24, "MODEL.DEPTH": 2, "MODEL.NUM_HEADS": 3, "MODEL.TUBELET": "[2,8,8]",
    "MODEL.COMPRESSED_GRID": "[1,2,2]", "DATA_LOADER.NUM_WORKERS": 0, "SOLVER.MAX_EPOCH": 2, "SOLVER.WARMUP_EPOCHS": 1,
    "SOLVER.BASE_LR": "1e-3", "TRAIN.BATCH_SIZE": 4, "LOG_PERIOD": 1,
}  # fmt: skip


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


def run_tool(*arguments: object, processes: int = 1) -> subprocess.CompletedProcess[str]:
    """Run a command of tools/ as a user does, with torchrun where there is more than one process."""
    command = [sys.executable]
    if processes > 1:
        command += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*command, *map(str, arguments)], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )


def call_tool(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run a command of tools/ in this process: the same file from its first line, without waiting for the imports."""
    stdout, stderr = io.StringIO(), io.StringIO()
    before, folder = sys.argv, Path.cwd()
    sys.argv = [str(argument) for argument in arguments]
    os.chdir(ROOT)
    try:
        with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
            runpy.run_path(str(arguments[0]), run_name="__main__")
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    finally:
        sys.argv = before
        os.chdir(folder)
    return subprocess.CompletedProcess(list(arguments), code, stdout.getvalue(), stderr.getvalue())


def run_net(overrides: list[str], cfg: str = "tests/small.yaml", processes: int = 1):
    """Run tools/run_net.py over a config: in this process, or in several with torchrun."""
    arguments = ("tools/run_net.py", "--cfg", cfg, *overrides)
    return call_tool(*arguments) if processes == 1 else run_tool(*arguments, processes=processes)
