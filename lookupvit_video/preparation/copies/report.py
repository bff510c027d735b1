"""Rows of lists whose videos are copies of one another, above all in training and in a held-out split."""

import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from lookupvit_video.preparation.check import ListedVideo
from lookupvit_video.preparation.copies.fingerprint import Fingerprint, fingerprint
from lookupvit_video.preparation.copies.match import Match, find_copies
from lookupvit_video.preparation.inspect_file import Problem
from lookupvit_video.processes.pool import run_isolated

_FROZEN = 3e-6  # squared change of a frame: less than the noise of a camera that sees nothing move
Follow = Callable[[Iterable[Any], int], Iterable[Any]]


def check_copies(
    rows: Sequence[ListedVideo], digests: Mapping[str, str], *, processes: int, timeout: float, follow: Follow
) -> list[tuple[str, str]]:
    """Note rows whose video is a copy: of one in training where a row is held out; else of any other. Return all pairs.

    Files of the same content, which ``digests`` or the path tells, are noted by ``check_repeats``.

    Args:
        timeout: seconds for the fingerprint of one file.
        follow: given some outcomes as they come and their number, passes them through; a progress bar.
    """
    of_file = defaultdict(list)
    for row in rows:
        if row.file.frames and not row.is_bad:
            of_file[os.path.abspath(row.video.path)].append(row)
    paths = list(of_file)
    outcomes = run_isolated(fingerprint, paths, processes=processes, timeout=timeout)
    found = {paths[o.number]: o.answer for o in follow(outcomes, len(paths)) if o.answer is not None}
    found = {path: found[path] for path in paths if path in found}  # in the lists' order again
    for path, print_ in found.items():
        if frozen := frozen_part(print_):
            problem = Problem("frozen", f"the picture stands still from {frozen[0]:.1f} to {frozen[1]:.1f} s")
            for row in of_file[path]:
                row.problems.append(problem)
    training = {path: print_ for path, print_ in found.items() if any(r.split == "train" for r in of_file[path])}
    held_out = {path: print_ for path, print_ in found.items() if any(r.split != "train" for r in of_file[path])}
    asked, known = (held_out, training) if training and held_out else (found, found)
    same = {os.path.abspath(path): digest for path, digest in digests.items()}
    pairs = []
    for path, other, match in _pairs(asked, known, follow):
        pairs.append((path, other))
        if path not in same or same[path] != same.get(other):
            for row in of_file[path]:
                row.problems.append(Problem("copy", f"of {other} ({of_file[other][0].split}): {match}"))
    return pairs


def frozen_part(video: Fingerprint) -> tuple[float, float] | None:
    """Return the first and last second of the longest still picture; None: less than a second, or a quarter."""
    frames_TD = video.frames[0].astype(np.float32)
    moves = np.flatnonzero((np.diff(frames_TD, axis=0) ** 2).sum(1) > _FROZEN)
    borders = np.concatenate([[-1], moves, [len(frames_TD) - 1]])
    longest = int(np.diff(borders).argmax())
    first, last = int(borders[longest]) + 1, int(borders[longest + 1])
    if last - first < max(video.rate, 0.25 * len(frames_TD)):
        return None
    return first / video.rate, (last + 1) / video.rate


def _pairs(
    asked: Mapping[str, Fingerprint], known: Mapping[str, Fingerprint], follow: Follow
) -> Iterator[tuple[str, str, Match]]:
    """Yield each pair once."""
    seen = set()
    for matches in follow(find_copies(asked, known), len(asked)):
        for path, other, match in matches:
            if frozenset((path, other)) not in seen:
                seen.add(frozenset((path, other)))
                yield path, other, match
