import json
from itertools import pairwise

import numpy as np
import pytest
import torch

from lookupvit_video.config import load_config
from lookupvit_video.engine.evaluate import predict_clips
from lookupvit_video.inference.budget import (
    Cascade,
    after_tokenizer,
    candidates,
    cascade_macs,
    choose,
    frontier,
    grid_costs,
    grid_within_latency,
    grid_within_macs,
    load_cascade,
    macs_a_view,
    measure,
    measured_latencies,
    parse_grid,
    run_cascade,
    save_cascade,
)
from lookupvit_video.models.build import build_model
from lookupvit_video.models.complexity import measured_macs
from tests.models.test_models import SMALL

GRIDS = [(1, 1, 1), (1, 2, 2), (2, 4, 4)]
SEVERAL = ["MODEL.COMPRESSED_GRID", "[1,2,2]", "MODEL.COMPRESSED_GRIDS", "[[2,4,4],[1,1,1],[1,2,2]]"]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def cfg():
    return load_config(None, [*SMALL, *SEVERAL])


@pytest.fixture(scope="module")
def model(cfg):
    torch.manual_seed(3)
    return build_model(cfg).eval()


@pytest.fixture(scope="module")
def clips():
    return torch.randint(0, 256, (5, 3, 4, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def test_grids_are_read_as_people_write_them():
    assert parse_grid("4x7x7") == (4, 7, 7)
    assert parse_grid("7x7") == (7, 7)
    for text in ("", "4", "4x", "axb", "4x7x7x7", "-1x2x2", "1 x2x2", "²x2x2", "1" * 30 + "x1"):
        with pytest.raises(ValueError, match="write t x h x w as 4x7x7"):
            parse_grid(text)


def test_costs_are_those_that_running_counts(cfg, model, clips):
    costs = grid_costs(cfg)
    assert list(costs) == GRIDS
    assert [*costs.values()] == sorted(costs.values())
    for grid, macs in costs.items():
        assert macs == measured_macs(model, clips[:1].float(), grid) == macs_a_view(model, cfg, grid)


def test_the_dearest_grid_within_a_budget_is_taken(cfg):
    costs = [macs / 1e9 for macs in grid_costs(cfg).values()]
    assert grid_within_macs(cfg, costs[1]) == GRIDS[1]
    assert grid_within_macs(cfg, costs[2] * 0.999) == GRIDS[1]
    assert grid_within_macs(cfg, float("inf")) == GRIDS[2]
    assert grid_within_latency({GRIDS[0]: 5.0, GRIDS[1]: 4.0}, 4.5) == GRIDS[1]
    with pytest.raises(ValueError, match=r"budget of 1e-09 GMACs a view: the cheapest grid, 1x1x1, takes"):
        grid_within_macs(cfg, 1e-9)
    for budget in (0, -1, float("nan")):
        with pytest.raises(ValueError, match="must be above 0"):
            grid_within_macs(cfg, budget)
    with pytest.raises(ValueError, match=r"MODEL.ARCH vit has no compressed grids"):
        grid_costs(load_config(None, [*SMALL, "MODEL.ARCH", "vit"]))


def test_latencies_are_measured_once(cfg, tmp_path):
    asked = []

    def answer(clip, grid):
        asked.append(grid)
        return clip

    first = measured_latencies(answer, cfg, CPU, tmp_path / "cache")
    assert list(first) == GRIDS
    assert set(asked) == set(GRIDS)
    count = len(asked)
    assert measured_latencies(answer, cfg, CPU, tmp_path / "cache") == first
    assert len(asked) == count
    (kept,) = (tmp_path / "cache" / "latency").iterdir()
    assert json.loads(kept.read_text())["milliseconds"].keys() == {"1x1x1", "1x2x2", "2x4x4"}
    kept.write_text('{"milliseconds": {"1x1x1": "soon"}}')
    measured_latencies(answer, cfg, CPU, tmp_path / "cache")
    assert len(asked) > count
    (tmp_path / "file").write_text("")
    assert list(measured_latencies(answer, cfg, CPU, tmp_path / "file")) == GRIDS  # and no cache to write to


def test_tokens_stand_in_for_clips(model, clips):
    with torch.no_grad():
        tokens = model.tokenizer(clips.float())
        for grid in GRIDS:
            torch.testing.assert_close(after_tokenizer(model)(tokens, grid), model(clips.float(), grid))
    assert type(model.tokenizer).__name__ == "TubeletTokenizer"


def by_grid(model, cfg, clips, counts):
    """Each grid's probabilities (videos, K), by the test's own function."""
    tables = {grid: predict_clips(model, cfg, clips, CPU, grid).split(counts) for grid in GRIDS}
    return {grid: np.stack([part.mean(0).numpy() for part in parts]) for grid, parts in tables.items()}


def test_a_cascade_goes_on_while_the_mean_over_the_views_is_not_confident(cfg, model, clips):
    counts = [2, 1, 2]
    tables = by_grid(model, cfg, clips, counts)
    first, second = (np.sort(tables[grid].max(1)) for grid in GRIDS[:2])
    cascade = Cascade(tuple(GRIDS), (float(first[1:].mean()), float(second.mean())))
    answers = list(run_cascade(model, cfg, CPU, cascade, clips, counts, batch_size=2))
    steps = [step for _, step in answers]
    assert len(set(steps)) > 1
    for video, (share, step) in enumerate(answers):
        np.testing.assert_allclose(share, tables[GRIDS[step]][video], atol=1e-6)
        for earlier in range(step):
            assert tables[GRIDS[earlier]][video].max() < cascade.thresholds[earlier]
        if step < 2:
            assert tables[GRIDS[step]][video].max() >= cascade.thresholds[step]
    found = measure(cascade, cfg, tables, np.zeros(3, dtype=int))
    assert found.macs == pytest.approx(np.mean([cascade_macs(cascade, cfg)[step] for step in steps]))
    assert found.ended == pytest.approx([100 * steps.count(step) / 3 for step in range(3)])


def test_the_tokenizer_runs_once_for_all_passes(cfg, model, clips):
    calls = []
    handle = model.tokenizer.register_forward_hook(lambda *_: calls.append(1))
    list(run_cascade(model, cfg, CPU, Cascade(tuple(GRIDS), (2.0, 2.0)), clips, [1] * 5, batch_size=8))
    handle.remove()
    assert len(calls) == 1
    all_passes = sum(grid_costs(cfg).values())
    tokenizer = measured_macs(model.tokenizer, clips[:1].float())
    assert cascade_macs(Cascade(tuple(GRIDS), (2.0, 2.0)), cfg)[-1] == all_passes - 2 * tokenizer


def test_measure_counts_what_ran_and_what_was_right(cfg):
    labels = np.array([0, 1, 2, 0])
    small = np.array([[0.9, 0.1, 0.0], [0.5, 0.3, 0.2], [0.4, 0.3, 0.3], [0.0, 0.0, 0.0]])
    large = np.array([[0.1, 0.9, 0.0], [0.1, 0.8, 0.1], [0.1, 0.2, 0.7], [0.0, 0.0, 0.0]])
    tables = {GRIDS[0]: small, GRIDS[2]: large}
    cascade = Cascade((GRIDS[0], GRIDS[2]), (0.8,))
    found = measure(cascade, cfg, tables, labels)
    assert found.top1 == 75.0  # the last could not be read
    assert found.ended == [25.0, 75.0]
    costs = cascade_macs(cascade, cfg)
    assert found.macs == pytest.approx(0.25 * costs[0] + 0.75 * costs[1])
    assert measure(Cascade((GRIDS[2],), ()), cfg, tables, labels).top1 == 50.0


def test_the_cheapest_cascade_of_the_wanted_accuracy_is_chosen(cfg):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 5, 400)
    tables = {}
    for grid, strength in zip(GRIDS, (1.5, 2.0, 4.0), strict=True):
        logits = rng.normal(size=(400, 5)) + strength * np.eye(5)[labels]
        shares = np.exp(2 * logits)
        tables[grid] = shares / shares.sum(1, keepdims=True)
    points = [measure(cascade, cfg, tables, labels) for cascade in candidates(cfg, tables, steps=50)]
    largest = measure(Cascade((GRIDS[2],), ()), cfg, tables, labels)
    chosen = choose(points, largest.top1 - 2)
    assert chosen.top1 >= largest.top1 - 2
    assert chosen.macs < 0.9 * largest.macs
    assert all(p.macs >= chosen.macs for p in points if p.top1 >= largest.top1 - 2)
    curve = frontier(points)
    assert all(a.macs < b.macs and a.top1 < b.top1 for a, b in pairwise(curve))
    with pytest.raises(ValueError, match=r"accuracy of 101.00 %: the best of this checkpoint here is"):
        choose(points, 101)


def test_thresholds_belong_to_the_weights_they_were_found_with(cfg, model, tmp_path):
    cascade = Cascade((GRIDS[0], GRIDS[2]), (0.75,))
    path = tmp_path / "x.adaptive.json"
    save_cascade(path, cascade, model, {"videos": 3})
    assert load_cascade(path, model, cfg) == cascade
    other = build_model(cfg)
    with pytest.raises(ValueError, match="thresholds are of other weights"):
        load_cascade(path, other, cfg)
    content = json.loads(path.read_text())
    for change in ({"format": "x"}, {"grids": 3}, {"thresholds": []}, {"thresholds": ["a"]}, {"grids": [["a"], [1]]}):
        (tmp_path / "y.json").write_text(json.dumps({**content, **change}))
        with pytest.raises(ValueError, match=r"y.json: these are no thresholds"):
            load_cascade(tmp_path / "y.json", model, cfg)
    (tmp_path / "y.json").write_text(json.dumps({**content, "grids": [[1, 1, 1], [2, 2, 2]]}))
    with pytest.raises(ValueError, match=r"grid 2x2x2: this checkpoint has 1x1x1, 1x2x2, 2x4x4"):
        load_cascade(tmp_path / "y.json", model, cfg)
    for text in ("", "[]", "[" * 5000, "\ud800"):
        (tmp_path / "y.json").write_text(text, errors="surrogatepass")
        with pytest.raises(ValueError, match="these are no thresholds"):
            load_cascade(tmp_path / "y.json", model, cfg)
    with pytest.raises(ValueError, match=r"no such file; make it with tools/calibrate\.py"):
        load_cascade(tmp_path / "none", model, cfg)
