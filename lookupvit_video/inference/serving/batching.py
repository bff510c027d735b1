"""One model for all requests: what waits is answered together, in one thread."""

import logging
import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from time import perf_counter
from typing import Any, NamedTuple

from lookupvit_video.errors import UserError
from lookupvit_video.inference.prediction import Prediction
from lookupvit_video.inference.predictor import Predictor
from lookupvit_video.inference.views import Views

logger = logging.getLogger(__name__)
Observe = Callable[[int, float], object]
"""Takes the clips of a batch and the seconds that the model took."""


class Wish(NamedTuple):
    """What a client may choose."""

    topk: int
    grid: str | None
    """See ``Predictor.answers``; None: the server's choice."""


class _Job(NamedTuple):
    views: Views
    wish: Wish
    answer: Future[Prediction]


class Batcher:
    """Answers videos in the order they come, as many at a time as wait and fit into a batch.

    Args:
        options: of ``Predictor.answers``, for all requests.
        batch_size: clips in one pass of the model.
        linger: seconds to wait for more, while ``expected`` says that more are coming.
        expected: how many videos are being read.
    """

    def __init__(
        self,
        predictor: Predictor,
        options: Mapping[str, Any],
        batch_size: int,
        observe: Observe,
        linger: float = 0.0,
        expected: Callable[[], int] = lambda: 0,
    ):
        self._predictor, self._options, self._size = predictor, dict(options), batch_size
        self._observe, self._linger, self._expected = observe, linger, expected
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="model", daemon=True)
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """Whether videos are answered."""
        return self._thread.is_alive()

    def submit(self, views: Views, wish: Wish) -> Future[Prediction]:
        """Return the answer to come; a cancelled one costs the model nothing."""
        job = _Job(views, wish, Future())
        self._jobs.put(job)
        return job.answer

    def close(self, seconds: float) -> None:
        """End the thread after its batch, or leave it behind after some seconds."""
        self._jobs.put(None)
        self._thread.join(seconds)

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            jobs = self._waiting(job)
            groups: dict[Wish, list[_Job]] = {}
            for one in jobs:
                if one.answer.set_running_or_notify_cancel():
                    groups.setdefault(one.wish, []).append(one)
            for wish, group in groups.items():
                self._answer(wish, group)
            del job, jobs, groups  # while nothing comes, no pixels are kept

    def _waiting(self, job: _Job) -> list[_Job]:
        """Return a job and those that wait behind it, as many as fill a batch."""
        jobs, clips, deadline = [job], len(job.views.clips), perf_counter() + self._linger
        while clips < self._size:
            left = deadline - perf_counter() if self._expected() else 0.0
            try:
                other = self._jobs.get(timeout=left) if left > 0 else self._jobs.get_nowait()
            except queue.Empty:
                break
            if other is None:
                self._jobs.put(None)  # the end, once these are answered
                break
            jobs.append(other)
            clips += len(other.views.clips)
        return jobs

    def _answer(self, wish: Wish, jobs: Sequence[_Job]) -> None:
        start = perf_counter()
        try:
            # a client's grid replaces the server's budget
            options = self._options if wish.grid is None else self._options | {"adaptive": None, "grid": wish.grid}
            views = [job.views for job in jobs]
            answers = list(self._predictor.answers(views, wish.topk, batch_size=self._size, **options))
            self._observe(sum(len(one.clips) for one in views), perf_counter() - start)
        except Exception as error:
            if not isinstance(error, UserError):
                logger.exception("no answer to %d videos", len(jobs))
            for job in jobs:
                job.answer.set_exception(error)
            return
        for job, answer in zip(jobs, answers, strict=True):
            assert isinstance(answer, Prediction)
            job.answer.set_result(answer)
