import numpy as np

from lookupvit_video.drawing import robustness
from lookupvit_video.drawing.robustness import plot_robustness


def test_heat_map_curves_and_costs_are_drawn(tmp_path, monkeypatch):
    kept, plain = [], robustness.save_figure
    monkeypatch.setattr(robustness, "save_figure", lambda figure, path: kept.append(figure) or plain(figure, path))
    values = np.array([[90.0, 40.0], [70.0, 10.0]])
    tables = [("1x2x2", 95.0, values), ("2x4x4", 97.0, values + 2)]
    costs = [("1x2x2", 0.1, 95.0, 52.5), ("2x4x4", 0.2, 97.0, 54.5)]
    plot_robustness(["fog", "_odd$"], tables, [1, 5], tmp_path / "a.png", costs)
    plot_robustness(["fog", "rain"], tables[:1], [1, 5], tmp_path / "b.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    heat, curves, cost = kept[0].axes
    assert [text.get_text() for text in heat.texts] == ["90", "40", "70", "10"]
    assert list(curves.lines[0].get_ydata()) == [95, 80, 25]
    assert list(curves.lines[0].get_xdata()) == [0, 1, 5]
    assert list(cost.lines[1].get_ydata()) == [52.5, 54.5]
    assert len(kept[1].axes) == 2
