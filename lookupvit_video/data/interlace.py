"""Interlaced pictures are converted to RGB as if they were progressive: both fields in one frame, as stored.

libswscale brings the colours of a picture flagged as interlaced to full size field by field; decord, torchcodec and
FFmpeg's command line do so frame by frame. One of the two had to hold for all, and this one needs no second decoder.
"""

from __future__ import annotations

from typing import Any

from av.filter import Graph


class FieldJoiner:
    """Takes the flag off interlaced frames; one for each stream, since it keeps a filter for the last kind of frame."""

    def __init__(self) -> None:
        self._kind: Any = None
        self._graph: Any = None

    def joined(self, frame: Any) -> Any:
        """The same frame of PyAV, with the same pixels, flagged as progressive."""
        kind = frame.width, frame.height, frame.format.name, frame.time_base
        if kind != self._kind:
            width, height, pixel_format, time_base = self._kind = kind
            self._graph = Graph()
            source = self._graph.add_buffer(width=width, height=height, format=pixel_format, time_base=time_base)
            flag, sink = self._graph.add("setfield", "prog"), self._graph.add("buffersink")
            source.link_to(flag)
            flag.link_to(sink)
            self._graph.configure()
        self._graph.push(frame)
        return self._graph.pull()
