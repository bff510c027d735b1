"""`lookupvit serve` under load: are its answers those of `predict`, and as many a second; does it hold its limits?

The server is a process of its own. `predict` reads and answers the same videos in this one, with as many workers and
as large batches, in turns with it.
"""

import asyncio
import contextlib
import os
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any, NamedTuple

from lookupvit_video.benchmarks.serving.requests import HALF, Ask, Reply, hostile, post, send_all, video
from lookupvit_video.errors import RunFailure
from lookupvit_video.inference.batch import read_videos
from lookupvit_video.inference.predictor import Predictor
from lookupvit_video.progress import progress

MEGABYTES, RECEIVE = 8, 3.0  # limits of the server that is measured
TOLERANCE = 1e-5  # of a probability: another batch may round it differently
_STARTS, _ENDS = 300.0, 60.0  # seconds for the server to start and to end
_CALM = 30.0  # seconds after which nothing may be in progress any more


class Server(NamedTuple):
    """A server at work."""

    process: subprocess.Popen[str]
    port: int
    temporary: Path
    """Its folder for temporary files."""

    def state(self) -> dict[str, int]:
        """Return what it and its workers hold (Linux); zeros elsewhere."""
        pids = [self.process.pid, *_descendants(self.process.pid)]
        return {
            "rss_mb": sum(_status(pid, "VmRSS") for pid in pids) >> 10,
            "handles": sum(_count(f"/proc/{pid}/fd") for pid in pids),
            "threads": sum(_count(f"/proc/{pid}/task") for pid in pids),
            "processes": len(pids),
            "files": sum(len(files) for _, _, files in os.walk(self.temporary)),
        }


@contextlib.contextmanager
def served(checkpoint: str, options: Mapping[str, object]) -> Iterator[Server]:
    """Run a server; after the block it is ended by SIGTERM.

    Raises:
        RunFailure: it does not start, or does not end with exit code 0.
    """
    with tempfile.TemporaryDirectory(prefix="lookupvit_load_") as temporary:
        words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
        serve = (sys.executable, "-m", "lookupvit_video", "serve")
        process = subprocess.Popen(  # noqa: S603 - this package
            [*serve, "--checkpoint", checkpoint, "--port", "0", *words], stdout=subprocess.PIPE, text=True,
            env={**os.environ, "TMPDIR": temporary},
        )  # fmt: skip
        watchdog = threading.Timer(_STARTS, process.kill)
        watchdog.start()
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            watchdog.cancel()
            if not line.startswith("serving at "):
                raise RunFailure(f"lookupvit serve did not start: exit code {process.wait(_ENDS)}")
            yield Server(process, int(line.split()[2].rpartition(":")[2]), Path(temporary))
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_ENDS)
            if process.returncode != 0:
                raise RunFailure(f"lookupvit serve did not end cleanly: exit code {process.returncode}")
        finally:
            watchdog.cancel()
            process.kill()
            process.wait()


def predicted(predictor: Predictor, paths: Sequence[str], workers: int, batch_size: int) -> dict[str, dict[str, Any]]:
    """Return the answer to each path as `lookupvit predict --json` writes it."""
    views = read_videos(paths, predictor.plan, workers)
    return {row["path"]: row for row in (one.as_dict() for one in predictor.answers(views, batch_size=batch_size))}


def differs(reply: Reply, expected: Mapping[str, Any]) -> str:
    """Return what a reply has other than `predict`'s answer; "": nothing."""
    found = reply.content
    if not isinstance(found, dict):
        return "no JSON"
    if "error" in expected or "error" in found:
        same = found.get("error") == expected.get("error")
        return "" if same else f"{found.get('error')!r} instead of {expected.get('error')!r}"
    for key in expected.keys() - {"path", "classes"}:
        if found.get(key) != _as_json(expected[key]):
            return f"{key}: {found.get(key)} instead of {expected[key]}"
    mine, theirs = found["classes"], expected["classes"]
    if mine.keys() != theirs.keys():
        return f"classes: {list(mine)} instead of {list(theirs)}"
    largest = max(abs(mine[name] - theirs[name]) for name in theirs)
    return "" if largest <= TOLERANCE else f"a probability differs by {largest:.2g}"


def _as_json(value: Any) -> Any:
    return [_as_json(one) for one in value] if isinstance(value, (list, tuple)) else value


def problems(asks: Sequence[Ask], replies: Sequence[Reply], expected: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return a line for each reply that is not as it should be.

    Args:
        expected: answers of `predict` by the name of the video.
    """
    found = []
    for ask, reply in zip(asks, replies, strict=True):
        if reply.status not in ask.statuses:
            found.append(f"{ask.kind} {ask.name}: status {reply.status}, {reply.content}")
        elif ask.name in expected and (why := differs(reply, expected[ask.name])):
            found.append(f"{ask.kind} {ask.name}: {why}")
        elif ask.kind != "video" and reply.status and reply.status != 200 and not _is_one_line(reply):
            found.append(f"{ask.kind}: not one line: {reply.content}")
    return found


def _is_one_line(reply: Reply) -> bool:
    line = reply.content.get("error") if isinstance(reply.content, dict) else None
    return isinstance(line, str) and bool(line) and "\n" not in line


class Load:
    """Videos to ask for, and what `predict` answers.

    Args:
        count: requests at once.
        share: of them that are hostile, in mixed rounds.
    """

    def __init__(
        self, predictor: Predictor, paths: Sequence[str], count: int, share: float, workers: int, batch_size: int
    ):
        self._predictor, self._workers, self._batch_size = predictor, workers, batch_size
        self._paths = {Path(path).name: path for path in paths}
        self._bodies = {name: Path(path).read_bytes() for name, path in self._paths.items()}
        names = list(self._paths)
        self._names = [names[number % len(names)] for number in range(count)]
        bad = hostile(self._bodies, round(share * count), MEGABYTES << 20, RECEIVE)
        every = max(1, count // max(1, len(bad)))
        self.mixed = [video(name, self._bodies[name]) for name in self._names]
        for number, ask in enumerate(bad):
            self.mixed[number * every] = ask
        self.clean = [video(name, self._bodies[name]) for name in self._names]
        self.expected = self._expect(bad)

    def _expect(self, bad: Sequence[Ask]) -> dict[str, dict[str, Any]]:
        """Return what `predict` answers to each video, and to those that are truncated."""
        found = predicted(self._predictor, list(self._paths.values()), self._workers, self._batch_size)
        expected = {name: found[path] for name, path in self._paths.items()}
        with tempfile.TemporaryDirectory() as folder:
            halves: dict[str, str] = {}
            for ask in bad:
                if ask.kind == "truncated":
                    body = self._bodies[ask.name.removeprefix(HALF)]
                    halves[ask.name] = str(Path(folder, f"{len(halves)}.mp4"))
                    Path(halves[ask.name]).write_bytes(body[: len(body) // 2])
            found = predicted(self._predictor, list(halves.values()), self._workers, self._batch_size)
            return expected | {name: found[path] for name, path in halves.items()}

    def predict(self) -> float:
        """Return the seconds that `predict` takes for as many videos as there are requests."""
        start = perf_counter()
        predicted(self._predictor, [self._paths[name] for name in self._names], self._workers, self._batch_size)
        return perf_counter() - start

    def ask(self, port: int, asks: Sequence[Ask]) -> tuple[float, list[Reply]]:
        """Send requests at once; return the seconds until the last video is answered, and the replies."""
        start = perf_counter()
        replies = asyncio.run(send_all(port, asks))
        late = max(reply.at for reply in replies)
        good = max((reply.at for ask, reply in zip(asks, replies, strict=True) if ask.kind == "video"), default=late)
        return perf_counter() - start - (late - good), replies


def measure(load: Load, server: Server, rounds: int, mixed_rounds: int) -> dict[str, Any]:
    """Return figures of some rounds in turns with `predict`, and of others with hostile requests among them."""
    found: list[str] = []
    times: dict[str, list[float]] = {"predict": [], "serve": []}
    for number in progress(range(rounds + 1), total=rounds + 1, label="serve and predict", unit="rounds"):
        seconds, replies = load.ask(server.port, load.clean)
        found += problems(load.clean, replies, load.expected)
        if number:  # the first only warms up
            times["serve"].append(seconds)
            times["predict"].append(load.predict())
            latencies = sorted(reply.seconds for reply in replies)
    states, statuses = [], Counter[str]()
    for _ in progress(range(mixed_rounds), total=mixed_rounds, label="with hostile ones", unit="rounds"):
        _, replies = load.ask(server.port, load.mixed)
        found += problems(load.mixed, replies, load.expected)
        statuses += Counter(f"{ask.kind}: {reply.status}" for ask, reply in zip(load.mixed, replies, strict=True))
        found += _calm(server)
        states.append(server.state())
    ratios = [one / other for one, other in zip(times["predict"], times["serve"], strict=True)]
    count = len(load.clean)
    return {
        "requests": count, "seconds": times, "ratio": median(ratios), "ratios": ratios,
        "videos_per_second": {name: count / median(values) for name, values in times.items()},
        "latency_p50": latencies[count // 2], "latency_p99": latencies[int(0.99 * (count - 1))],
        "statuses": dict(sorted(statuses.items())), "states": states, "problems": found + growth(states),
    }  # fmt: skip


def _calm(server: Server) -> list[str]:
    """Wait until nothing is in progress; return why it is not."""
    deadline = perf_counter() + _CALM
    while perf_counter() < deadline:
        health = asyncio.run(_health(server.port))
        if isinstance(health.content, dict) and health.content.get("in_progress") == 0:
            return []
    return [f"not calm after {_CALM:g} s: {health.status} {health.content}"]


async def _health(port: int) -> Reply:
    await asyncio.sleep(0.2)
    return await post(port, "/health", b"", method="GET")


def growth(states: Sequence[Mapping[str, int]], memory: float = 0.05) -> list[str]:
    """Return what a server holds more of after the last round than after the second one.

    Args:
        memory: the share by which memory may grow: allocators keep pieces.
    """
    if len(states) < 3:
        return []
    before, after = states[1], states[-1]
    found = [f"{key}: {before[key]} grew to {after[key]}" for key in ("handles", "processes", "threads", "files")
             if after[key] > before[key]]  # fmt: skip
    if after["rss_mb"] > (1 + memory) * before["rss_mb"]:
        found.append(f"memory: {before['rss_mb']} MB grew to {after['rss_mb']} MB")
    return found


def report(facts: Mapping[str, Any]) -> str:
    """Return the figures as text."""
    lines = [
        f"{facts['requests']} requests at once: {facts['videos_per_second']['serve']:.1f} videos/s, "
        f"predict {facts['videos_per_second']['predict']:.1f}; ratio {facts['ratio']:.2f} "
        f"({', '.join(f'{ratio:.2f}' for ratio in facts['ratios'])})",
        f"latency with all of them at once: p50 {facts['latency_p50']:.2f} s, p99 {facts['latency_p99']:.2f} s",
        *(f"  {count:5}  {status}" for status, count in facts["statuses"].items()),
        *(f"after round {number}: {state}" for number, state in enumerate(facts["states"], start=1)),
        *(f"PROBLEM {line}" for line in facts["problems"][:20]),
        f"{len(facts['problems'])} problems",
    ]
    return "\n".join(lines) + "\n"


def _descendants(pid: int) -> list[int]:
    found = []
    for task in _names(f"/proc/{pid}/task"):
        with contextlib.suppress(OSError):
            for child in Path(f"/proc/{pid}/task/{task}/children").read_text(encoding="ascii").split():
                found += [int(child), *_descendants(int(child))]
    return found


def _names(folder: str) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []


def _count(folder: str) -> int:
    return len(_names(folder))


def _status(pid: int, key: str) -> int:
    """Return a size in KB from a process's status; 0: it has none."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines():
            if line.startswith(f"{key}:"):
                return int(line.split()[1])
    return 0
