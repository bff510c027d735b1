"""Change the flags of PyAV's frames by libav's filters, since PyAV itself cannot."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from av.filter import Graph


class FrameFilter:
    """A chain of libav's filters, (name, arguments) each; one a stream, since it is built for a kind of frame."""

    def __init__(self, filters: Sequence[tuple[str, str]]) -> None:
        self._filters = filters
        self._kind: Any = None
        self._graph: Any = None

    def apply(self, frame: Any) -> Any:
        """The frame that the filters make of one."""
        kind = frame.width, frame.height, frame.format.name, frame.time_base
        if kind != self._kind:
            self._kind, self._graph = kind, self._build(*kind)
        self._graph.push(frame)
        return self._graph.pull()

    def _build(self, width: int, height: int, pixel_format: Any, time_base: Any) -> Graph:
        graph = Graph()
        last: Any = graph.add_buffer(width=width, height=height, format=pixel_format, time_base=time_base)
        for name, arguments in [*self._filters, ("buffersink", "")]:
            following = graph.add(name, arguments) if arguments else graph.add(name)
            last.link_to(following)
            last = following
        graph.configure()
        return graph


def field_joiner() -> FrameFilter:
    """A filter for interlaced frames: flagged as progressive, with both fields in one frame, as stored.

    libswscale brings the colors of a frame flagged as interlaced to full size field by field; decord, torchcodec and
    FFmpeg's command line do so frame by frame, which all readers here follow.
    """
    return FrameFilter([("setfield", "prog")])
