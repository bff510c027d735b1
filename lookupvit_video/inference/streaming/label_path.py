"""The likeliest labels of windows that arrive one by one: Viterbi's algorithm, which also says what is settled.

Shape letters: W windows, K classes.
"""

import numpy as np

_LONGEST = 64  # windows that may stay open: then the likeliest path is settled up to its middle


class LabelPath:
    """Finds the labels that maximize the sum of scores minus a cost for every change.

    A change leaves out the windows that lie across it: the last one before it is given with each window. All windows
    at once, or one by one with ``settled`` in between, give the same labels.

    Args:
        change_cost: of each change of label.
        longest: windows that may stay open.
    """

    def __init__(self, change_cost: float, longest: int = _LONGEST):
        self._cost, self._longest = change_cost, longest
        self._first = 0  # the window that the lists below begin with
        self._done = -1  # the last window that was settled; it is then the first one of the lists
        self._scores: list[np.ndarray] = []
        self._best: list[np.ndarray] = []  # (K,): of the best path that ends in each label
        self._from: list[np.ndarray] = []  # (K,): the label before a change; -1: the path stays
        self._before: list[int] = []

    def add(self, scores_K: np.ndarray, before: int) -> None:
        """Add a window.

        Args:
            before: number of the last window before a change of label there, from 0; -1: none.
        """
        best_K, from_K = scores_K.copy(), np.full(len(scores_K), -1, dtype=np.int32)
        if self._best:
            best_K += self._best[-1]
            if before >= self._first:
                last_K = self._best[before - self._first]
                leader = int(last_K.argmax())
                changed_K = scores_K + last_K[leader] - self._cost
                changes_K = changed_K > best_K
                from_K[changes_K] = leader
                best_K[changes_K] = changed_K[changes_K]
        self._scores.append(scores_K)
        self._best.append(best_K)
        self._from.append(from_K)
        self._before.append(before)

    def finish(self) -> list[int]:
        """Return the labels of the windows that were not settled yet, -1 for those that the best path leaves out."""
        if not self._best:
            return []
        last = self._first + len(self._best) - 1
        return self._labels(last, int(self._best[-1].argmax()))

    def settled(self) -> list[int]:
        """Return the labels of further windows that no later window can change, see ``finish``."""
        node = self._common()
        if node is None:
            if len(self._best) <= self._longest:
                return []
            return self._settle_half()
        labels = self._labels(*node)
        self._forget_before(*node)
        return labels

    def _labels(self, last: int, label: int) -> list[int]:
        """Return the labels from the first open window up to a window with a label."""
        found = np.full(last - self._done, -1)
        row = last
        while row > self._done:
            found[row - self._done - 1] = label
            row, label = self._previous(row, label)
        labels: list[int] = found.tolist()
        return labels

    def _previous(self, row: int, label: int) -> tuple[int, int]:
        leader = int(self._from[row - self._first][label])
        return (row - 1, label) if leader < 0 else (self._before[row - self._first], leader)

    def _common(self) -> tuple[int, int] | None:
        """Return the last window and label that every path goes through that may still become the best one."""
        count = len(self._best)
        alive_WK = np.zeros((count, len(self._best[-1]) if count else 0), dtype=bool)
        alive_WK[-1:] = True
        for row in range(max(self._before[-1] - self._first, 0) if count else 0, count):
            alive_WK[row, int(self._best[row].argmax())] = True  # a later change may start there
        lowest = count
        for row in range(count - 1, self._done - self._first, -1):
            alive_K, from_K = alive_WK[row], self._from[row]
            if lowest >= row and alive_K.sum() == 1 and row < count - 1:
                return row + self._first, int(alive_K.argmax())
            if row:
                alive_WK[row - 1] |= alive_K & (from_K < 0)
            if (changed_K := alive_K & (from_K >= 0)).any():
                target = self._before[row] - self._first
                alive_WK[target, from_K[changed_K][0]] = True
                lowest = min(lowest, target)
        return None

    def _forget_before(self, row: int, label: int) -> None:
        """Drop what lies before a settled window, and count scores from it on."""
        keep = row - self._first
        for rows in (self._scores, self._best, self._from):
            del rows[:keep]
        del self._before[:keep]
        base = self._best[0][label]
        for best_K in self._best:
            best_K -= base
        self._first = self._done = row

    def _settle_half(self) -> list[int]:
        """Settle the best path up to its middle, and drop all paths that do not go through there."""
        row, label = self._first + len(self._best) - 1, int(self._best[-1].argmax())
        while row > self._first + len(self._best) // 2:
            row, label = self._previous(row, label)
        labels = self._labels(row, label)
        self._forget_before(row, label)
        again = list(zip(self._scores[1:], self._before[1:], strict=True))
        for rows in (self._scores, self._best, self._from):
            del rows[1:]
        del self._before[1:]
        only_K = np.full_like(self._best[0], -np.inf)
        only_K[label] = 0
        self._best[0] = only_K
        for scores_K, before in again:
            self.add(scores_K, before)
        return labels
