"""Mutation testing: does the suite notice a fault of one line?

Makes a fixed, seeded list of small faults (a reversed comparison, a changed constant, a missing argument or call, a
condition that always holds, ...) in the modules that matter, puts each into a copy of the project, runs the tests of
its module there and counts the faults that make a test fail.

    python -m tests.mutants                               # the list that CONTRIBUTING.md quotes: make mutants
    python -m tests.mutants --module training/step --seed 7 --per-module 20
    python -m tests.mutants --module data/transforms --list

mutmut and cosmic-ray do not fit: mutmut runs its mutants inside one process and does not reach the code that tests run
in other processes (loader workers, torchrun, commands); cosmic-ray cannot choose the tests by module.
"""

import argparse
import ast
import concurrent.futures.thread
import contextlib
import os
import queue
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeVar

T = TypeVar("T")

ROOT = Path(__file__).parent.parent
PACKAGE = "lookupvit_video"

# The modules that matter, each with the tests that cover it besides tests/**/test_NAME.py; cheapest first. That
# one runs before them, or where the list has it.
MODULES: dict[str, tuple[str, ...]] = {
    "files": ("checkpoints/test_checkpoint.py",),
    "training/step": ("training/test_train.py", "distributed/test_parallel.py"),
    "checkpoints/checkpoint": ("training/test_resume.py",),
    "distributed/world": (
        "distributed/test_restart_safe_store.py",
        "distributed/test_parallel.py",
        "training/test_faults.py",
    ),
    "checkpoints/async_checkpoint": ("training/test_resume.py", "training/test_faults.py"),
    "distributed/parallel": ("distributed/test_parallel_alone.py", "distributed/test_parallel.py"),
    "training/optim": (),
    "training/losses": (),
    "training/ema": ("training/test_train.py", "training/test_resume.py"),
    "training/distill": (),
    "training/state": ("training/test_step.py", "training/test_resume.py"),
    "training/bad_videos": ("training/test_step.py",),
    "evaluation/metrics": ("evaluation/test_evaluate.py",),
    "evaluation/report": (),
    "evaluation/probes": (),
    "evaluation/evaluate": ("evaluation/test_run_test.py",),
    "evaluation/run_test": ("evaluation/test_probes.py",),
    "models/attention": ("models/test_models.py",),
    "models/blocks": ("models/test_models.py",),
    "models/lookupvit": (
        "models/test_budget.py",
        "models/test_models.py",
        "models/test_build.py",
        "models/test_blocks.py",
    ),
    "models/vit": ("models/test_token_reduction.py", "models/test_models.py", "models/test_build.py"),
    "models/tokenizer": ("models/test_models.py",),
    "models/adapters": (),
    "models/contract": ("models/test_contract.py", "training/test_optim.py"),
    "models/kernels/__init__": ("models/test_attention.py", "models/kernels/test_kernels.py"),
    "models/kernels/cpu": ("models/kernels/test_kernels.py",),
    "models/kernels/fused": ("models/kernels/test_kernels.py",),
    "models/pretrained/load": ("models/pretrained/test_parts.py", "models/pretrained/test_load.py"),
    "models/pretrained/names": ("models/pretrained/test_parts.py", "models/pretrained/test_load.py"),
    "models/pretrained/families": ("models/pretrained/test_parts.py", "models/pretrained/test_load.py"),
    "models/pretrained/places": ("models/pretrained/test_parts.py", "models/pretrained/test_load.py"),
    "models/pretrained/fitting": ("models/pretrained/test_parts.py", "models/pretrained/test_load.py"),
    "models/pretrained/files": ("models/pretrained/test_load.py", "test_remote.py"),
    "models/token_reduction": (),
    "models/build": ("models/test_models.py", "models/test_adapters.py", "models/test_complexity.py"),
    "models/complexity": (),
    "data/transforms": ("data/test_dataset.py",),
    "data/sampling": ("data/test_dataset.py",),
    "data/sample_order": ("data/test_loader.py",),
    "data/manifest": (),
    "own_videos/split": ("own_videos/test_choose.py",),
    "own_videos/rules": ("own_videos/test_choose.py",),
    "own_videos/find": ("own_videos/test_choose.py",),
    "data/dataset": ("data/test_loader.py",),
    "data/loader": (),
    "decoding/reader": ("decoding/test_backends.py",),
    "decoding/backends": (),
    "preparation/contact_sheet": ("commands/test_check.py",),
    "decoding/timeline": ("decoding/test_backends.py", "decoding/test_exactness.py"),
    "decoding/opening": ("decoding/test_pyav_reader.py", "decoding/test_backends.py", "decoding/test_encryption.py"),
    "decoding/pyav_reader": ("decoding/test_hevc_slices.py", "decoding/test_backends.py", "decoding/test_exactness.py"),
    "decoding/orientation": ("decoding/test_backends.py",),
    "inference/predictor": (),
    "inference/views": ("inference/test_predictor.py",),
    "inference/budget": ("commands/test_calibrate.py",),
    "inference/batch": ("commands/test_predict.py",),
    "inference/timeline": ("commands/test_timeline.py",),
    "inference/explain": (),
    "inference/export/export": ("commands/test_export.py",),
    "inference/draw": (),
    "inference/annotate": ("inference/test_draw.py",),
    "inference/hub": (),
}

# Faults that change nothing that anyone could see, with the reason; they are left out of the score.
EQUIVALENT: dict[tuple[str, str], str] = {
    (
        "checkpoints/checkpoint",
        'if not isinstance(content, dict) or content.get("format") != FORMAT or not KEYS <= content.keys(): -> '
        'if not isinstance(content, dict) or content.get("format") != FORMAT or not KEYS < content.keys():',
    ): "a file with the format has a key more than KEYS, the format itself",
    (
        "checkpoints/async_checkpoint",
        'self._thread = ThreadPoolExecutor(1, "checkpoint") -> self._thread = ThreadPoolExecutor(2, "checkpoint")',
    ): "a write waits for the one before, so that a second thread would have nothing to do",
    (
        "evaluation/report",
        "gain = 2 * precision * recall / np.maximum(precision + recall, 1e-12) -> "
        "gain = 3 * precision * recall / np.maximum(precision + recall, 1e-12)",
    ): "a factor before an argmax",
    (
        "evaluation/report",
        "gain = 2 * precision * recall / np.maximum(precision + recall, 1e-12) -> "
        "gain = 2 * precision * recall / np.maximum(precision + recall, 2e-12)",
    ): "a share of found videos is 0 or far larger",
    **{
        ("models/kernels/cpu", f"if q_BHMd.shape[2] < k_BHNd.shape[2]: -> if {condition}:"): "the faster one is scaled"
        for condition in ("q_BHMd.shape[2] <= k_BHNd.shape[2]", "True", "False")
    },
    **{
        ("models/kernels/cpu", f"logits = q_BHMd.shape[2] * k_BHNd.shape[2] -> logits = {product}"): (
            "from when on torch's SDPA is the slower one"
        )
        for product in (
            "q_BHMd.shape[2] * k_BHNd.shape[3]",
            "q_BHMd.shape[3] * k_BHNd.shape[2]",
            "q_BHMd.shape[2] / k_BHNd.shape[2]",
        )
    },
    (
        "models/kernels/cpu",
        "if q_BHMd.shape[2] < k_BHNd.shape[2]: -> if q_BHMd.shape[2] < k_BHNd.shape[3]:",
    ): "the faster one is scaled",
    (
        "models/kernels/cpu",
        "for m in range(0, q_BHMd.shape[2], step): -> for m in range(0, q_BHMd.shape[2]):",
    ): "rows are computed again and again, to the same values",
    (
        "models/kernels/fused",
        "if q_BHMd.is_cuda and q_BHMd.dtype in (torch.float16, torch.bfloat16): -> "
        "if q_BHMd.is_cuda and q_BHMd.dtype in (torch.float16, torch.float16):",
    ): "needs a GPU; the tests of kernels notice it there",
    (
        "models/kernels/fused",
        'elif q_BHMd.device.type == "cpu": -> elif True:',
    ): "needs a device that is neither CPU nor GPU",
    (
        "evaluation/evaluate",
        "CompressedGrid = Budget | tuple[int, ...] | None -> CompressedGrid = Budget | tuple | None",
    ): "only a type",
    (
        "models/tokenizer",
        "distance = (torch.arange(n_in, dtype=torch.float64) - centres[:, None]).abs() / width -> "
        "distance = (torch.arange(n_in) - centres[:, None]).abs() / width",
    ): "integers less float64 are float64",
    ("models/tokenizer", "Grid = tuple[int, int, int] -> Grid = tuple"): "only a type",
    ("models/pretrained/names", "State = dict[str, Tensor] -> State = dict"): "only a type",
    (
        "decoding/reader",
        "super().__init__(path, reason)  # both in args: it must survive pickling, on its way out of a loader worker "
        "-> pass  # both in args: it must survive pickling, on its way out of a loader worker",
    ): "BaseException.__new__ keeps the arguments too",
    (
        "preparation/contact_sheet",
        "train = build_train_loader(cfg, videos, mirror=mirror, total_steps=1) -> "
        "train = build_train_loader(cfg, videos, mirror=mirror, total_steps=2)",
    ): "only the loader's data set is taken",
}

COMPARISONS = {
    ast.Lt: ("<", "<="), ast.LtE: ("<=", "<"), ast.Gt: (">", ">="), ast.GtE: (">=", ">"), ast.Eq: ("==", "!="),
    ast.NotEq: ("!=", "=="), ast.In: (" in ", " not in "), ast.NotIn: (" not in ", " in "),
    ast.Is: (" is ", " is not "), ast.IsNot: (" is not ", " is "),
}  # fmt: skip
ARITHMETIC = {
    ast.Add: ("+", "-"), ast.Sub: ("-", "+"), ast.Mult: ("*", "/"), ast.Div: ("/", "*"), ast.FloorDiv: ("//", "*"),
    ast.Mod: ("%", "//"),
}  # fmt: skip
NAMES = {
    "any": "all", "all": "any", "min": "max", "max": "min", "sorted": "list", "floor": "ceil", "ceil": "floor",
    "bfloat16": "float16", "minimum": "maximum", "maximum": "minimum", "argmax": "argmin", "sum": "mean",
}  # fmt: skip


# Keywords of speed, checks and texts, and of how a picture looks.
NO_FAULTS = {"non_blocking", "strict", "exist_ok", "encoding", "label", "unit"} | {
    "fontsize", "labelsize", "linewidth", "labelpad", "pad", "alpha", "frameon",
}  # fmt: skip


class Mutant(NamedTuple):
    """A fault: where it is, the line as it is and as it would be, and the file's new text."""

    module: str
    line: int
    before: str
    after: str
    text: str

    @property
    def key(self) -> tuple[str, str]:
        """What stays the same when lines move."""
        return self.module, f"{self.before} -> {self.after}"


class Edit(NamedTuple):
    """Bytes of a file and what replaces them."""

    start: int
    end: int
    new: str


def edits_of(text: str) -> list[Edit]:
    """Every fault that can be put into a module's source."""
    starts = [0]
    for line in text.encode().splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    source = text.encode()

    def span(node: ast.AST) -> tuple[int, int]:
        return starts[node.lineno - 1] + node.col_offset, starts[node.end_lineno - 1] + node.end_col_offset  # type: ignore

    def between(left: ast.AST, right: ast.AST, old: str, new: str) -> Iterator[Edit]:
        """An operator lies somewhere between its operands, perhaps beside brackets and line breaks."""
        first, last = span(left)[1], span(right)[0]
        at = source[first:last].decode().find(old)
        if at >= 0:
            yield Edit(first + at, first + at + len(old), new)

    def visit(node: ast.AST) -> Iterator[Edit]:
        start, end = span(node) if hasattr(node, "lineno") else (0, 0)
        match node:
            case ast.Compare(left=left, ops=[op], comparators=[right]) if type(op) in COMPARISONS:
                yield from between(left, right, *COMPARISONS[type(op)])
            case ast.BinOp(left=left, op=op, right=right) if type(op) in ARITHMETIC:
                yield from between(left, right, *ARITHMETIC[type(op)])
            case ast.BoolOp(op=op, values=[left, right, *_]):
                yield from between(left, right, *((" and ", " or ") if isinstance(op, ast.And) else (" or ", " and ")))
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                yield Edit(start, span(operand)[0], "")
            case ast.UnaryOp(op=ast.USub(), operand=ast.Name() | ast.Call() | ast.Attribute()):
                yield Edit(start, start + 1, "")
            case ast.Constant(value=bool(value)):
                yield Edit(start, end, str(not value))
            case ast.Constant(value=int(value)):
                yield Edit(start, end, str(value + 1))
            case ast.Constant(value=float(value)):
                yield Edit(start, end, repr(value * 2 if value else 1.0))
            case ast.If(test=test) | ast.IfExp(test=test) | ast.While(test=test):
                yield Edit(*span(test), "True" if not isinstance(node, ast.While) else "False")
                yield Edit(*span(test), "False")
            case ast.Expr(value=ast.Call()):
                yield Edit(start, end, "pass")
            case ast.AugAssign(target=target, value=value):
                yield Edit(span(target)[1], span(value)[0], " = ")
            case ast.Subscript(value=value, ctx=ast.Load()):
                yield Edit(span(value)[1], end, "")
            case ast.Call(func=func, args=args, keywords=keywords):
                name = func.id if isinstance(func, ast.Name) else func.attr if isinstance(func, ast.Attribute) else ""
                if name in NAMES:
                    yield Edit(span(func)[1] - len(name), span(func)[1], NAMES[name])
                parts = [*args, *keywords]
                if len(parts) > 1 and getattr(parts[-1], "arg", None) not in NO_FAULTS:
                    yield Edit(span(parts[-2])[1], span(parts[-1])[1], "")
            case ast.Attribute(attr=attr) if attr in NAMES and attr.endswith("float16"):
                yield Edit(end - len(attr), end, NAMES[attr])

    return [edit for node in _code(ast.parse(text)) for edit in visit(node)]


def _code(node: ast.AST) -> Iterator[ast.AST]:
    """The nodes that do something: no annotations, imports, messages of errors and logs, class attributes' texts."""
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns", "decorator_list", "bases"):
            continue
        for child in value if isinstance(value, list) else [value]:
            if not isinstance(child, ast.AST) or isinstance(
                child, ast.Import | ast.ImportFrom | ast.Raise | ast.Assert
            ):
                continue
            if isinstance(child, ast.JoinedStr) or _is_message(child) or _is_type_alias(child):
                continue
            if isinstance(child, ast.keyword) and child.arg in NO_FAULTS:
                continue
            yield child
            yield from _code(child)


def _is_type_alias(node: ast.AST) -> bool:
    """Whether a node is a line such as ``Grid = tuple[int, ...]``, by the name's capital."""
    if not isinstance(node, ast.Assign) or not isinstance(node.targets[0], ast.Name):
        return False
    name = node.targets[0].id.lstrip("_")
    return name[:1].isupper() and not name.isupper()


def _is_message(node: ast.AST) -> bool:
    call = node.value if isinstance(node, ast.Expr) else node
    if isinstance(call, ast.Constant) and isinstance(call.value, str):
        return True
    return isinstance(call, ast.Call) and ast.unparse(call.func).startswith(("logger.", "warnings.", "print"))


def mutants_of(module: str, rng: random.Random | None = None) -> Iterator[Mutant]:
    """The faults of a module that leave it valid Python, in the order of the lines or shuffled."""
    text = (ROOT / PACKAGE / f"{module}.py").read_text(encoding="utf-8")
    source, lines, edits = text.encode(), text.splitlines(), edits_of(text)
    if rng:
        rng.shuffle(edits)
    for edit in edits:
        changed = (source[: edit.start] + edit.new.encode() + source[edit.end :]).decode()
        line = source[: edit.start].count(b"\n")
        cut = " ..." if source[edit.start : edit.end].count(b"\n") else ""
        if changed != text and _is_valid(changed):
            yield Mutant(module, line + 1, lines[line].strip(), changed.splitlines()[line].strip() + cut, changed)


def _is_valid(text: str) -> bool:
    try:
        ast.parse(text)
    except SyntaxError:
        return False
    return True


def sample(modules: Sequence[str], seed: int, per_module: int) -> list[Mutant]:
    """Draw the same faults at every call; at most one a line, so that they are spread."""
    chosen: list[Mutant] = []
    for module in modules:
        drawn: dict[int, Mutant] = {}
        for mutant in mutants_of(module, random.Random(f"{seed} {module}")):
            if len(drawn) == per_module:
                break
            if mutant.key not in EQUIVALENT:
                drawn.setdefault(mutant.line, mutant)
        chosen += [drawn[line] for line in sorted(drawn)]
    return chosen


def covering_files(module: str) -> list[str]:
    """The test files of a module, relative to the project."""
    folder, _, name = module.rpartition("/")
    own = Path(folder, f"test_{name}.py").as_posix()
    listed = MODULES.get(module, ())
    files = dict.fromkeys(f"tests/{file}" for file in (listed if own in listed else (own, *listed)))
    return [file for file in files if (ROOT / file).is_file()]


# Running --------------------------------------------------------------------------------------------------------------


def copy_project(folder: Path) -> None:
    """Copy what git tracks, and what is new; no compiled files, which could hide a fault."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    for name in listed.splitlines():
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)


_forking = threading.Lock()


def run_tests(folder: Path, files: list[str], limit: float) -> tuple[bool, str]:
    """Run test files in a project's copy until one fails: whether all passed, and what pytest printed.

    The process is forked from this one, which has imported torch already.
    """
    output = folder / ".mutants.txt"
    with _forking:
        child = os.fork()
    if not child:
        _run_pytest(folder, files, output)
    end, status = time.monotonic() + limit, None
    while status is None and time.monotonic() < end:
        done, code = os.waitpid(child, os.WNOHANG)
        status = code if done else None
        time.sleep(0.05)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)  # what hangs, and what a failed test left running
    if status is None:
        os.waitpid(child, 0)
    return status == 0, output.read_text(errors="replace") if output.exists() else ""


def _run_pytest(folder: Path, files: list[str], output: Path) -> None:
    os.setsid()
    # Only a main thread hears of the death of a loader's worker, and torch knows one by its class.
    threading.current_thread().__class__ = threading._MainThread  # type: ignore[attr-defined]
    # Else every process that this one starts would wait for the pool's threads at its end, of which it is one itself.
    concurrent.futures.thread._threads_queues.clear()  # type: ignore[attr-defined]
    os.chdir(folder)
    sys.path.insert(0, str(folder))
    os.environ.update(PYTHONPATH=str(folder), PYTHONDONTWRITEBYTECODE="1")
    sys.dont_write_bytecode = True
    for name in [name for name in sys.modules if name.split(".")[0] in ("tests", PACKAGE)]:
        del sys.modules[name]
    out = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(out, stream)
    code = 3
    try:
        import pytest

        code = int(pytest.main(["-x", "-q", "--no-header", "-p", "no:randomly", "-p", "no:cacheprovider", *files]))
    finally:
        sys.stdout.flush()
        os._exit(code)


def is_noticed(mutant: Mutant, limit: float, folder: Path) -> bool:
    """Put a fault into a copy of the project: whether a test fails."""
    file = folder / PACKAGE / f"{mutant.module}.py"
    sound = file.read_text(encoding="utf-8")
    file.write_text(mutant.text, encoding="utf-8")
    passed, _ = run_tests(folder, covering_files(mutant.module), limit)
    file.write_text(sound, encoding="utf-8")
    word = "SURVIVED" if passed else "noticed "
    print(f"{word} {mutant.module}.py:{mutant.line}: {mutant.before} -> {mutant.after}", flush=True)
    return not passed


def seconds_without_fault(file: str, folder: Path) -> float:
    """Return how long a test file takes without a fault; it must pass, at the latest on the second run."""
    for _ in range(2):
        start = time.monotonic()
        passed, printed = run_tests(folder, [file], 3600)
        if passed:
            break
    else:
        raise RuntimeError(f"{file}: fails without any fault:\n{printed[-3000:]}")
    print(f"{file}: {time.monotonic() - start:.0f} s without a fault", flush=True)
    return time.monotonic() - start


def run(mutants: list[Mutant], jobs: int) -> list[tuple[Mutant, bool]]:
    """Try all faults, ``jobs`` at a time, each in one of as many copies of the project; prints a line for each."""
    files = {module: covering_files(module) for module in dict.fromkeys(mutant.module for mutant in mutants)}
    unique = list(dict.fromkeys(file for listed in files.values() for file in listed))
    copies: queue.SimpleQueue[Path] = queue.SimpleQueue()

    def in_a_copy(task: Callable[[Path], T]) -> T:
        folder = copies.get()
        try:
            return task(folder)
        finally:
            copies.put(folder)

    with tempfile.TemporaryDirectory(prefix="mutants") as parent, ThreadPoolExecutor(jobs) as pool:
        for job in range(jobs):
            copy_project(Path(parent, str(job)))
            copies.put(Path(parent, str(job)))
        sound = [partial(seconds_without_fault, file) for file in unique]
        seconds = dict(zip(unique, pool.map(in_a_copy, sound), strict=True))
        limits = {module: 60 + 4 * sum(map(seconds.__getitem__, listed)) for module, listed in files.items()}
        tasks = [partial(is_noticed, mutant, limits[mutant.module]) for mutant in mutants]
        return list(zip(mutants, pool.map(in_a_copy, tasks), strict=True))


def main() -> None:
    """Parse the command line, try the faults, print the score."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--module", nargs="+", default=list(MODULES), metavar="NAME", help="e.g. training/step")
    parser.add_argument("--seed", type=int, default=0, help="which faults are drawn (default 0)")
    parser.add_argument("--per-module", type=int, default=3, help="faults a module (default 3)")
    parser.add_argument("--jobs", type=int, default=2, help="processes side by side (default 2)")
    parser.add_argument("--list", action="store_true", help="print the faults, run nothing")
    args = parser.parse_args()
    mutants = sample(args.module, args.seed, args.per_module)
    if args.list:
        for mutant in mutants:
            print(f"{mutant.module}.py:{mutant.line}: {mutant.before} -> {mutant.after}")
        return
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    import torch  # noqa: F401  (once, for all the processes forked from this one)
    import torchvision.transforms.v2  # noqa: F401

    outcomes = run(mutants, min(args.jobs, len(args.module)))
    noticed = sum(found for _, found in outcomes)
    print(f"\n{noticed} of {len(outcomes)} faults noticed: {100 * noticed / len(outcomes):.1f} %")
    for mutant, found in outcomes:
        if not found:
            print(f"  survived: {mutant.module}.py:{mutant.line}: {mutant.before} -> {mutant.after}")


if __name__ == "__main__":
    main()
