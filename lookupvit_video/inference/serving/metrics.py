"""What the server counts, as Prometheus reads it."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_CLIPS = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """Counts of one server.

    Args:
        in_progress: gives the number of videos that are being received, read or answered.
    """

    def __init__(self, in_progress: Callable[[], float]):
        registry = self._registry = CollectorRegistry()
        ProcessCollector(registry=registry)  # memory, handles and processor time of the server's own process
        self.requests = Counter(
            "lookupvit_requests", "Requests by path and status", ["path", "status"], registry=registry
        )
        self.seconds = Histogram(
            "lookupvit_request_seconds", "From a request to the end of its response", ["path"], buckets=_SECONDS,
            registry=registry,
        )  # fmt: skip
        self.stages = Histogram(
            "lookupvit_stage_seconds", "Of a video: receive, read (decode), answer (wait for the model and run)",
            ["stage"], buckets=_SECONDS, registry=registry,
        )  # fmt: skip
        self.batches = Histogram(
            "lookupvit_batch_clips", "Clips of a pass of the model", buckets=_CLIPS, registry=registry
        )
        self.model_seconds = Counter("lookupvit_model_seconds", "Seconds that the model was busy", registry=registry)
        self.lost = Counter(
            "lookupvit_workers_lost", "Decoding processes that were replaced: crash, timeout; and memory, error",
            ["cause"], registry=registry,
        )  # fmt: skip
        Gauge(
            "lookupvit_videos_in_progress", "Videos being received, read or answered", registry=registry
        ).set_function(in_progress)

    def batch(self, clips: int, seconds: float) -> None:
        """Count a batch."""
        self.batches.observe(clips)
        self.model_seconds.inc(seconds)

    def text(self) -> bytes:
        """Return all counts in the text format."""
        return generate_latest(self._registry)
