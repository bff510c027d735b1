from matplotlib.figure import Figure

from lookupvit_video.drawing import budgets
from lookupvit_video.drawing.budgets import Drawn, best_of, plot_budgets
from tests.drawing.pictures import collisions, texts

CLOUD = [Drawn("1x2x2,b2", 1.0, 5.0, 80.0), Drawn("1x2x2", 2.0, 6.0, 79.0), Drawn("2x4x4", 4.0, 20.0, 90.0),
         Drawn("2x3x3", 3.0, 30.0, 90.0)]  # fmt: skip


def test_a_frontier_is_that_of_its_cost():
    assert [point.name for point in best_of(CLOUD, lambda point: point.gmacs)] == ["1x2x2,b2", "2x3x3"]
    assert [point.name for point in best_of(CLOUD, lambda point: point.ms)] == ["1x2x2,b2", "2x4x4"]


def test_a_cloud_its_frontier_and_other_models_are_drawn_over_both_costs(tmp_path, monkeypatch):
    kept: list[Figure] = []
    monkeypatch.setattr(budgets, "save_figure", lambda figure, path, dpi: kept.append(figure))
    models = {"one/model.pt": CLOUD, "vit/model.pt": [Drawn("", 9.0, 60.0, 91.0)]}
    for size in ((10, 4.6), (7, 4), (14, 6)):
        plot_budgets(models, tmp_path / "a.png", "batch 8, a processor of some name, threads 1", size)
        assert collisions(kept[-1]) == []
        shown = [text for text, _ in texts(kept[-1])]
        assert {"1x2x2,b2", "2x3x3", "2x4x4", "one/model.pt", "vit/model.pt", "its frontier"} <= set(shown)
    over_macs, over_time = kept[0].axes
    assert [list(line.get_xdata()) for line in over_macs.lines] == [[1, 2, 4, 3], [1, 3], [9]]
    assert [list(line.get_xdata()) for line in over_time.lines] == [[5, 6, 20, 30], [5, 20], [60]]
    assert [list(line.get_ydata()) for line in over_time.lines] == [[80, 79, 90, 90], [80, 90], [91]]
