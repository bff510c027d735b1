"""What a picture would show, without its pixels."""

from itertools import combinations

from matplotlib.text import Text


def texts(figure):
    """(text, bounding box in pixels) of each text that is drawn, after layout."""
    figure.draw_without_rendering()
    axes = [*figure.axes, *(child for axis in figure.axes for child in axis.child_axes)]
    lines = [line for axis in axes for line in (axis.xaxis, axis.yaxis)]
    of_ticks = {label for line in lines for tick in line.get_major_ticks() for label in (tick.label1, tick.label2)}
    drawn = {label for axis in axes if axis.axison for line in (axis.xaxis, axis.yaxis) if line.get_visible()
             for tick in line._update_ticks() for label in (tick.label1, tick.label2)}  # fmt: skip
    shown = [text for text in figure.findobj(Text) if text.get_visible() and text.get_text().strip()]
    return [(text.get_text(), text.get_window_extent()) for text in shown if text in drawn or text not in of_ticks]


def collisions(figure):
    """Pairs of texts that overlap by more than a pixel, and texts that leave the figure."""
    found, size = texts(figure), figure.bbox
    pairs = [
        (a, b)
        for (a, one), (b, two) in combinations(found, 2)
        if min(one.x1, two.x1) - max(one.x0, two.x0) > 1 and min(one.y1, two.y1) - max(one.y0, two.y0) > 1
    ]
    outside = [a for a, box in found if min(box.x0, box.y0) < -1 or box.x1 > size.x1 + 1 or box.y1 > size.y1 + 1]
    return pairs + [(a, "edge") for a in outside]
