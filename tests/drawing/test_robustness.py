import pytest

from lookupvit_video.drawing import robustness
from lookupvit_video.drawing.robustness import plot_robustness


def budget(name, gmacs, clean, *rows):
    mean = sum(map(sum, rows)) / sum(map(len, rows))
    return {
        "grid": name, "gmacs_per_view": gmacs,
        "corruptions": [{"corruption": f"_odd${row}", "top1": values} for row, values in enumerate(rows)],
        "summaries": [{}, {"clean": {"value": clean}, "mPC": {"value": mean}}],
    }  # fmt: skip


@pytest.fixture
def figures(monkeypatch):
    kept, plain = [], robustness.save_figure
    monkeypatch.setattr(robustness, "save_figure", lambda figure, path: kept.append(figure) or plain(figure, path))
    return kept


def lines_of(axes):
    return {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in axes.lines}


def test_heat_map_of_the_dearest_budget_and_curves_over_severity_and_cost(tmp_path, figures):
    small, large = budget("1x2x2", 0.1, 95, [80, 50], [60, 0]), budget("2x4x4", 0.2, 97, [90, 40], [70, 10])
    early = budget("2x4x4,b1", 0.15, 90, [60, 50], [40, 30])
    plot_robustness([large, early, small], [1, 5], tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    heat, curves, cost = figures[0].axes
    assert [text.get_text() for text in heat.texts] == ["90", "40", "70", "10"]
    assert heat.get_title() == "2x4x4: top-1, %; clean 97.0"
    assert lines_of(curves) == {
        "1x2x2": ([0, 1, 5], [95, 70, 25]), "2x4x4,b1": ([0, 1, 5], [90, 50, 40]), "2x4x4": ([0, 1, 5], [97, 80, 25]),
    }  # fmt: skip
    assert lines_of(cost) == {
        "clean": ([0.1, 0.2], [95, 97]), "mPC": ([0.1, 0.2], [47.5, 52.5]),
        "b1 clean": ([0.15], [90]), "b1 mPC": ([0.15], [45]),
    }  # fmt: skip
    assert [text.get_text() for text in cost.texts] == ["1x2x2", "2x4x4", "2x4x4"]


def test_a_model_without_budgets_has_no_curve_over_cost_and_many_budgets_no_names(tmp_path, figures):
    plot_robustness([budget("", 0.1, 95, [80, 50])], [1, 5], tmp_path / "a.png")
    plot_robustness([budget(f"{n}x1x1", n, 95, [80]) for n in range(1, 30)], [1], tmp_path / "b.png")
    assert len(figures[0].axes) == 2
    assert figures[0].axes[0].get_title() == "this checkpoint: top-1, %; clean 95.0"
    assert len(figures[1].axes[2].texts) == 0
