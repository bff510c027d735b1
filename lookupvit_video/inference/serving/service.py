"""From a received video to its answer: read by a worker process, answered by the model that all requests share."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from time import perf_counter
from typing import Any

from lookupvit_video.errors import UserError
from lookupvit_video.inference.budget import known_budget
from lookupvit_video.inference.page.upload import Limits, Upload, read_within_limits, worker_timeout
from lookupvit_video.inference.prediction import Prediction
from lookupvit_video.inference.predictor import Predictor
from lookupvit_video.inference.serving.addresses import AllowedHosts
from lookupvit_video.inference.serving.batching import Batcher, Wish
from lookupvit_video.inference.serving.inbox import Inbox
from lookupvit_video.inference.serving.metrics import Metrics
from lookupvit_video.inference.serving.refusal import Refusal
from lookupvit_video.inference.views import Failure, Plan, Views
from lookupvit_video.processes.pool import IsolatedPool, Outcome

logger = logging.getLogger(__name__)
IsGone = Callable[[], Awaitable[bool]]
INTERNAL_ERROR = "internal error; see the server log"


@dataclass(frozen=True)
class ServeOptions:
    """How the server answers, and its limits."""

    limits: Limits = field(default_factory=Limits)
    hosts: AllowedHosts = field(default_factory=AllowedHosts)
    queue: int = 64
    """Videos that may be in progress: being received, read or answered."""
    connections: int = 512
    receive: float = 30.0
    """Seconds to receive or fetch a video."""
    wait: float = 60.0
    """Seconds from then to its answer."""
    workers: int = 1
    """Processes that read videos."""
    topk: int = 5
    batch_size: int = 8
    linger: float = 0.02
    """Seconds to wait for a fuller batch while videos are being read."""
    answers: Mapping[str, Any] = field(default_factory=dict)
    """Further options of ``Predictor.answers``."""


class Service:
    """A model, its workers, and the videos in progress.

    Args:
        plan: how videos are read.

    Raises:
        UserError: an option does not fit the model.
    """

    def __init__(self, predictor: Predictor, plan: Plan, options: ServeOptions):
        plan = replace(plan, backend="pyav", index_cache="")  # nothing is opened or written but the upload
        self.predictor, self.options = predictor, options
        self.used = 0
        self._reading = 0
        self.metrics = Metrics(lambda: self.used)
        read = partial(read_within_limits, plan, options.limits)
        self._pool: IsolatedPool[str, Upload | Failure] = IsolatedPool(
            read, processes=options.workers, timeout=worker_timeout(plan)
        )
        ahead = 2 * options.workers  # so that the next video waits for a worker, not a worker for the event loop
        self._threads = ThreadPoolExecutor(ahead, thread_name_prefix="reading")
        self._free = asyncio.Semaphore(ahead)
        self._batcher = Batcher(
            predictor, options.answers, options.batch_size, self.metrics.batch, options.linger, lambda: self._reading
        )

    @property
    def is_alive(self) -> bool:
        """Whether videos are answered."""
        return self._batcher.is_alive

    def close(self, seconds: float = 5.0) -> None:
        """End threads and processes."""
        self._pool.close()
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._batcher.close(seconds)

    def wish(self, topk: int | None, grid: str | None) -> Wish:
        """Return what a client chooses, checked.

        Raises:
            Refusal: the model has no such budget.
        """
        chooses = {"reject", "coverage"} & {name for name, value in self.options.answers.items() if value is not None}
        try:
            budget = known_budget(self.predictor.costs, grid)
        except UserError as error:
            raise Refusal(400, str(error)) from None
        if grid is not None and chooses and self.predictor.budget_name(budget) not in self.predictor.calibration:
            raise Refusal(400, f"grid {grid}: not calibrated, which this server's {' and '.join(sorted(chooses))} need")
        return Wish(topk or self.options.topk, grid)

    @contextmanager
    def places(self, count: int = 1) -> Iterator[None]:
        """Take places in the queue for as long as the block is active.

        Raises:
            Refusal: there are not as many.
        """
        most = self.options.queue
        if count > most:
            raise Refusal(413, f"{count} videos at once; the limit here is {most} (--queue)", is_closing=True)
        if self.used + count > most:
            raise Refusal(503, f"busy: {self.used} of {most} videos are in progress; try again later", is_closing=True)
        self.used += count
        try:
            yield
        finally:
            self.used -= count

    async def answer(self, inbox: Inbox, name: str, wish: Wish, is_gone: IsGone) -> Prediction:
        """Return the answer to a received video, which is removed once it is read.

        Args:
            is_gone: whether nobody waits for it any more.

        Raises:
            Refusal: it cannot be read, or takes too long.
        """
        try:
            async with asyncio.timeout(self.options.wait):
                start = perf_counter()
                views = await self._read(inbox, name, is_gone)
                self.metrics.stages.labels("read").observe(perf_counter() - start)
                start = perf_counter()
                answer = await asyncio.wrap_future(self._batcher.submit(views, wish))
                self.metrics.stages.labels("answer").observe(perf_counter() - start)
        except TimeoutError:
            raise Refusal(504, f"was not answered within {self.options.wait:g} s; try again later", name) from None
        except UserError as error:  # of the checkpoint, such as weights that are not finite
            logger.error("%s: %s", name, error)
            raise Refusal(500, str(error), name) from None
        return answer

    async def _read(self, inbox: Inbox, name: str, is_gone: IsGone) -> Views:
        """Have a worker read a video; it is closed when the worker is done with it, even if nobody waits any more."""
        try:
            await self._free.acquire()
        except BaseException:
            inbox.close()
            raise
        if await is_gone():
            self._free.release()
            inbox.close()
            raise Refusal(499, "the client has left", name, is_closing=True)
        self._reading += 1
        reading = asyncio.get_running_loop().run_in_executor(self._threads, self._pool.run, inbox.path)

        def finish(_: object) -> None:
            self._reading -= 1
            self._free.release()
            inbox.close()

        reading.add_done_callback(finish)
        return self._views(await asyncio.shield(reading), name)

    def _views(self, outcome: Outcome[Upload | Failure], name: str) -> Views:
        if outcome.lost is not None:
            self.metrics.lost.labels(outcome.lost.cause).inc()
            if outcome.lost.cause == "error":  # a bug: the worker has printed its traceback
                raise Refusal(500, INTERNAL_ERROR, name)
            raise Refusal(422, outcome.lost.detail, name)
        found = outcome.answer
        if isinstance(found, Upload):
            return found.views._replace(name=name)
        raise Refusal(422, found.error if found is not None else "was not read", name)
