import itertools
import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from lookupvit_video.checkpoints.checkpoint import fingerprint
from lookupvit_video.config import load_config
from lookupvit_video.data.transforms import normalize
from lookupvit_video.distributed.precision import autocast_dtype
from lookupvit_video.errors import UserError
from lookupvit_video.evaluation.calibration import Calibration
from lookupvit_video.evaluation.evaluate import predict_clips
from lookupvit_video.inference import budget, predictor
from lookupvit_video.inference.budget import (
    Cascade,
    Point,
    best_cascades,
    best_within,
    candidates,
    cascade_macs,
    choose,
    frontier,
    load_cascade,
    measure,
    measure_chain,
    measured_latencies,
    run_cascade,
    save_cascade,
)
from lookupvit_video.inference.predictor import Predictor
from lookupvit_video.models.attention import using_kernel
from lookupvit_video.models.budget import Budget
from lookupvit_video.models.build import build_model
from lookupvit_video.models.complexity import flop_counter, measured_macs
from tests.models.test_models import SMALL
from tests.small import settings

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
def costs(cfg, model):
    return Predictor(model, cfg, list("abcde"), CPU).costs


@pytest.fixture(scope="module")
def clips():
    return torch.randint(0, 256, (5, 3, 4, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def quick(monkeypatch):
    """Measuring takes no time: the n-th measurement is n milliseconds."""
    numbers = itertools.count(1)
    monkeypatch.setattr(budget, "_milliseconds", lambda work: float(next(numbers) + 0 * len(work())))


def test_costs_are_those_that_running_counts(cfg, model, clips):
    whole = Predictor(model, cfg, list("abcde"), CPU)
    costs = {grid: sum(parts.values()) for grid, parts in whole.costs.items()}
    assert list(costs) == GRIDS
    assert [*costs.values()] == sorted(costs.values())
    for grid, macs in costs.items():
        assert macs == measured_macs(model, clips[:1].float(), grid) == whole.macs_a_view(grid)


def test_the_dearest_grid_within_a_budget_is_taken(cfg, model):
    whole = Predictor(model, cfg, list("abcde"), CPU)
    macs = list(whole.grids.values())
    assert whole.grid_within(gmacs=macs[1]) == "1x2x2"
    assert whole.grid_within(gmacs=macs[2] * 0.999) == "1x2x2"
    assert whole.grid_within(gmacs=float("inf")) == "2x4x4"
    assert best_within({"1x1x1": 5.0, "1x2x2": 4.0}, 4.5, "ms", {}) == "1x2x2"
    with pytest.raises(ValueError, match=r"budget of 1e-09 GMACs a view: the cheapest grid, 1x1x1, takes"):
        whole.grid_within(gmacs=1e-9)
    for none in (0, -1, float("nan")):
        with pytest.raises(ValueError, match="must be above 0"):
            whole.grid_within(gmacs=none)
    vit = load_config(None, [*SMALL, "MODEL.ARCH", "vit"])
    with pytest.raises(UserError, match="this checkpoint's model has no compressed grids, hence a single budget"):
        Predictor(build_model(vit), vit, list("abcde"), CPU).grid_within(gmacs=1.0)


def test_the_most_accurate_budget_within_a_limit_is_taken_where_accuracies_are_known(cfg, model, caplog):
    caplog.set_level("INFO")
    costs = {"a": 1.0, "b": 2.0, "c": 3.0, "d": 4.0}
    top1 = {"a": 80.0, "b": 90.0, "c": 90.0, "d": 85.0}
    assert [best_within(costs, limit, "ms", top1) for limit in (1, 2.5, 3, 9)] == ["a", "b", "b", "b"]
    assert not caplog.messages
    assert best_within(costs, 9, "ms", {**top1, "x": 99.0}) == "b"
    assert best_within(costs, 3, "ms", {"a": 80.0, "b": 90.0, "c": 90.0}) == "c"  # that of d is not known
    assert "lookupvit calibrate" in caplog.text
    right = {"1x1x1": [True] * 3 + [False], "1x2x2": [True, False] * 2, "2x4x4": [True, False, True, True]}
    found = {name: Calibration([], right=values) for name, values in right.items()}
    whole = Predictor(model, cfg, list("abcde"), CPU, calibration=found)
    assert whole.top1 == {"1x1x1": 75.0, "1x2x2": 50.0, "2x4x4": 75.0}
    assert whole.grid_within(gmacs=float("inf")) == "1x1x1"


def test_latencies_are_measured_once(cfg, quick, tmp_path):
    asked = []

    def answer(clip, grid):
        asked.append(grid)
        return clip

    first = latencies(answer, cfg, CPU, tmp_path / "cache")
    assert list(first) == ["1x1x1", "1x2x2", "2x4x4"]
    assert set(asked) == set(GRIDS)
    count = len(asked)
    assert latencies(answer, cfg, CPU, tmp_path / "cache") == first
    assert len(asked) == count
    (kept,) = (tmp_path / "cache" / "latency").iterdir()
    assert json.loads(kept.read_text())["milliseconds"].keys() == {"1x1x1", "1x2x2", "2x4x4"}
    assert kept.read_text().count("\n") > 8  # for people too
    kept.write_text('{"milliseconds": {"1x1x1": "soon"}}')
    latencies(answer, cfg, CPU, tmp_path / "cache")
    assert len(asked) > count
    (tmp_path / "file").write_text("")
    kept = latencies(answer, cfg, CPU, tmp_path / "file")  # and no cache to write to
    assert list(kept) == ["1x1x1", "1x2x2", "2x4x4"]


def cascade_run(model, cfg, cascade, clips, counts, batch_size):
    """Run a cascade as a ``Predictor`` does."""
    inputs = (normalize(part, cfg.DATA.MEAN, cfg.DATA.STD) for part in clips.split(batch_size))
    return run_cascade(model, cascade, inputs, counts, batch_size, autocast_dtype(cfg.TRAIN.PRECISION, CPU))


def latencies(answer, cfg, device, folder=None):
    """Measure the grids of a config as a ``Predictor`` does."""
    size = cfg.DATA.TEST_CROP_SIZE
    clip = torch.zeros(1, 3, cfg.DATA.NUM_FRAMES, size, size, dtype=torch.uint8)
    facts = {"precision": str(autocast_dtype(cfg.TRAIN.PRECISION, device)), "model": cfg.MODEL.dump()}
    return measured_latencies(answer, clip, GRIDS, facts, device, folder)


def by_grid(model, cfg, clips, counts):
    """Each grid's probabilities (videos, K), by the test's own function."""
    tables = {
        grid: predict_clips(model, clips, CPU, mean=cfg.DATA.MEAN, std=cfg.DATA.STD, grid=grid).split(counts)
        for grid in GRIDS
    }
    return {grid: np.stack([part.mean(0).numpy() for part in parts]) for grid, parts in tables.items()}


def test_a_cascade_goes_on_while_the_mean_over_the_views_is_not_confident(cfg, model, costs, clips):
    counts = [2, 1, 2]
    tables = by_grid(model, cfg, clips, counts)
    first, second = (np.sort(tables[grid].max(1)) for grid in GRIDS[:2])
    cascade = Cascade(tuple(GRIDS), (float(first[1:].mean()), float(second.mean())))
    answers = list(cascade_run(model, cfg, cascade, clips, counts, batch_size=2))
    steps = [step for _, step in answers]
    assert len(set(steps)) > 1
    for video, (share, step) in enumerate(answers):
        np.testing.assert_allclose(share, tables[GRIDS[step]][video], atol=1e-6)
        for earlier in range(step):
            assert tables[GRIDS[earlier]][video].max() < cascade.thresholds[earlier]
        if step < 2:
            assert tables[GRIDS[step]][video].max() >= cascade.thresholds[step]
    found = measure(cascade, costs, tables, np.zeros(3, dtype=int))
    assert found.macs == pytest.approx(np.mean([cascade_macs(cascade, costs)[step] for step in steps]))
    assert found.ended == pytest.approx([100 * steps.count(step) / 3 for step in range(3)])


def test_the_tokenizer_runs_once_for_all_passes(cfg, model, costs, clips):
    calls = []
    handle = model.tokenizer.register_forward_hook(lambda *_: calls.append(1))
    list(cascade_run(model, cfg, Cascade(tuple(GRIDS), (2.0, 2.0)), clips, [1] * 5, batch_size=8))
    handle.remove()
    assert len(calls) == 1
    all_passes = sum(sum(parts.values()) for parts in costs.values())
    tokenizer = measured_macs(model.tokenizer, clips[:1].float())
    assert cascade_macs(Cascade(tuple(GRIDS), (2.0, 2.0)), costs)[-1] == all_passes - 2 * tokenizer


def test_measure_counts_what_ran_and_what_was_right(costs):
    labels = np.array([0, 1, 2, 0])
    small = np.array([[0.9, 0.1, 0.0], [0.5, 0.3, 0.2], [0.4, 0.3, 0.3], [0.0, 0.0, 0.0]])
    large = np.array([[0.1, 0.9, 0.0], [0.1, 0.8, 0.1], [0.1, 0.2, 0.7], [0.0, 0.0, 0.0]])
    tables = {GRIDS[0]: small, GRIDS[2]: large}
    cascade = Cascade((GRIDS[0], GRIDS[2]), (0.8,))
    found = measure(cascade, costs, tables, labels)
    assert found.top1 == 75.0  # the last could not be read
    assert found.ended == [25.0, 75.0]
    by_step = cascade_macs(cascade, costs)
    assert found.macs == pytest.approx(0.25 * by_step[0] + 0.75 * by_step[1])
    assert measure(Cascade((GRIDS[2],), ()), costs, tables, labels).top1 == 50.0


def test_the_cheapest_cascade_of_the_wanted_accuracy_is_chosen(costs):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 5, 400)
    tables = {}
    for grid, strength in zip(GRIDS, (1.5, 2.0, 4.0), strict=True):
        logits = rng.normal(size=(400, 5)) + strength * np.eye(5)[labels]
        shares = np.exp(2 * logits)
        tables[grid] = shares / shares.sum(1, keepdims=True)
    points = [point for chain, enough in candidates(tables, 3, steps=50)
              for point in measure_chain(chain, enough, costs, tables, labels)]  # fmt: skip
    assert len(points) == 3 + 4 * 50
    for point in points[::7]:
        alone = measure(point.cascade, costs, tables, labels)
        assert [point.top1, point.macs, *point.ended] == pytest.approx([alone.top1, alone.macs, *alone.ended])
    largest = measure(Cascade((GRIDS[2],), ()), costs, tables, labels)
    chosen = choose(points, largest.top1 - 2)
    assert chosen.top1 >= largest.top1 - 2
    assert chosen.macs < 0.9 * largest.macs
    assert all(p.macs >= chosen.macs for p in points if p.top1 >= largest.top1 - 2)
    curve = frontier(points)
    assert all(a.macs < b.macs and a.top1 < b.top1 for a, b in pairwise(curve))
    every = [point for chain, enough in candidates(tables, 2)
             for point in measure_chain(chain, enough, costs, tables, labels)]  # fmt: skip
    assert best_cascades(costs, tables, labels, 2) == frontier(every)
    with pytest.raises(ValueError, match=r"accuracy of 101.00 %: the best of this checkpoint here is"):
        choose(points, 101)


def test_thresholds_belong_to_the_weights_they_were_found_with(cfg, model, tmp_path):
    cascade = Cascade((GRIDS[0], GRIDS[2]), (0.75,))
    path = tmp_path / "x.adaptive.json"
    save_cascade(path, cascade, model, {"videos": 3})
    assert load_cascade(path, model, GRIDS) == cascade
    other = build_model(cfg)
    with pytest.raises(ValueError, match="thresholds of other weights"):
        load_cascade(path, other, GRIDS)
    content = json.loads(path.read_text())
    for change in ({"format": "x"}, {"grids": 3}, {"thresholds": []}, {"thresholds": ["a"]}, {"grids": [["a"], [1]]}):
        (tmp_path / "y.json").write_text(json.dumps({**content, **change}))
        with pytest.raises(ValueError, match=r"y.json: not a file of thresholds"):
            load_cascade(tmp_path / "y.json", model, GRIDS)
    (tmp_path / "y.json").write_text(json.dumps({**content, "grids": [[1, 1, 1], [2, 2, 2]]}))
    with pytest.raises(ValueError, match=r"grid 2x2x2: this checkpoint has 1x1x1, 1x2x2, 2x4x4"):
        load_cascade(tmp_path / "y.json", model, GRIDS)
    for text in ("", "[]", "[" * 5000, "\ud800"):
        (tmp_path / "y.json").write_text(text, errors="surrogatepass")
        with pytest.raises(ValueError, match="not a file of thresholds"):
            load_cascade(tmp_path / "y.json", model, GRIDS)
    with pytest.raises(ValueError, match=r"no such file; make it with lookupvit calibrate"):
        load_cascade(tmp_path / "none", model, GRIDS)


# Small things that hold, whatever the model ---------------------------------------------------------------------------


def test_a_view_of_another_model_has_its_macs_in_closed_form_where_there_is_one(monkeypatch):
    cfg, asked = load_config(None, [*SMALL, "MODEL.ARCH", "vit"]), []
    model = build_model(cfg)
    counted = measured_macs(model, torch.zeros(1, 3, 4, 32, 32))
    monkeypatch.setattr(predictor, "measured_macs", lambda of, clips: asked.append((of, clips.shape)) or 17)
    assert (Predictor(model, cfg, list("abcde"), CPU).macs_a_view(), asked) == (counted, [])
    other = load_config(None, [*SMALL, "MODEL.ARCH", "x3d", "MODEL.VARIANT", "XS"])
    assert (Predictor(model, other, list("abcde"), CPU).macs_a_view(), asked) == (17, [(model, (1, 3, 4, 32, 32))])


def test_where_measurements_are_kept(monkeypatch):
    monkeypatch.setenv("LOOKUPVIT_CACHE", "/mine")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert budget.cache_folder() == Path("/mine")
    monkeypatch.setenv("LOOKUPVIT_CACHE", "")
    assert budget.cache_folder() == Path("/xdg/lookupvit_video")
    for unset in (lambda: monkeypatch.setenv("XDG_CACHE_HOME", ""), lambda: monkeypatch.delenv("XDG_CACHE_HOME")):
        unset()
        assert budget.cache_folder() == Path.home() / ".cache" / "lookupvit_video"


def test_a_latency_is_of_one_view_of_the_tests_size(cfg, quick, tmp_path):
    asked = []
    found = latencies(lambda clip, grid: asked.append((clip, grid)) or clip, cfg, CPU, tmp_path)
    assert found == {"1x1x1": 1.0, "1x2x2": 2.0, "2x4x4": 3.0}
    assert [grid for _, grid in asked] == GRIDS
    for clip, _ in asked:
        assert (clip.shape, clip.dtype) == ((1, 3, 4, 32, 32), torch.uint8)


def test_a_latency_is_measured_for_each_model_precision_device_and_number_of_threads(cfg, quick, tmp_path, monkeypatch):
    def measured(*overrides, device=CPU):
        changed = load_config(None, [*SMALL, *SEVERAL, *overrides])
        return list(latencies(lambda clip, grid: clip, changed, device, tmp_path).values())

    first = measured()
    assert measured() == measured("OUTPUT_DIR", "elsewhere") == first == [1, 2, 3]
    others = [measured("MODEL.DEPTH", "3"), measured("TRAIN.PRECISION", "bfloat16"), measured("DATA.NUM_FRAMES", "8"),
              measured("DATA.TEST_CROP_SIZE", "64", "DATA.TRAIN_CROP_SIZE", "64")]  # fmt: skip
    with monkeypatch.context() as changed:
        changed.setattr(torch, "get_num_threads", lambda: 77)
        others.append(measured())
    for module, name in ((budget.platform, "node"), (budget.platform, "machine")):
        with monkeypatch.context() as changed:
            changed.setattr(module, name, lambda: "another")
            others.append(measured())
    with monkeypatch.context() as changed:
        changed.setattr(torch, "__version__", "99.0")
        others.append(measured())
    others.append(measured(device=torch.device("meta")))
    assert len({tuple(found) for found in others} | {tuple(first)}) == len(others) + 1
    assert measured() == first


def test_a_graphics_card_is_named_and_its_host_threads_do_not_matter(cfg, quick, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"card {device}")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: False)
    card = torch.device("cuda:1")
    first = latencies(lambda clip, grid: clip, cfg, card, tmp_path)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 77)
    assert latencies(lambda clip, grid: clip, cfg, card, tmp_path) == first
    (kept,) = (tmp_path / "latency").iterdir()
    assert json.loads(kept.read_text())["device"] == "card cuda:1"
    assert json.loads(kept.read_text())["threads"] == 0


def test_latencies_that_are_kept_may_be_of_more_grids_but_not_of_fewer(cfg, quick, tmp_path):
    latencies(lambda clip, grid: clip, cfg, CPU, tmp_path)
    (kept,) = (tmp_path / "latency").iterdir()
    for known, expected in (
        ({"1x1x1": 7, "1x2x2": 8, "2x4x4": 9, "9x9x9": 1}, [7, 8, 9]),
        ({"1x1x1": 7, "1x2x2": 8, "2x4x4": 9}, [7, 8, 9]),
        ({"1x1x1": 7, "1x2x2": 8}, [4, 5, 6]),
        ({"1x1x1": 7, "9x9x9": 8}, [7, 8, 9]),
    ):
        kept.write_text(json.dumps({"milliseconds": known}))
        assert [*latencies(lambda clip, grid: clip, cfg, CPU, tmp_path).values()] == expected


def test_measurements_lie_in_the_users_cache(cfg, quick, tmp_path, monkeypatch):
    monkeypatch.setenv("LOOKUPVIT_CACHE", str(tmp_path / "cache"))
    latencies(lambda clip, grid: clip, cfg, CPU)
    assert len(list((tmp_path / "cache" / "latency").glob("*.json"))) == 1


@pytest.mark.parametrize(("seconds", "count"), [(0.0078125, 64), (0.03125, 16), (0.5, 10), (3.0, 10)])
def test_a_latency_is_the_median_of_half_a_second_or_ten_runs(monkeypatch, seconds, count):
    clock, runs = [0.0], []

    def work():
        runs.append(clock[0])
        clock[0] += seconds * (1000 if len(runs) <= 3 else 0 if len(runs) % 10 == 5 else 1)  # slow at first

    monkeypatch.setattr(budget.time, "perf_counter", lambda: clock[0])
    assert budget._milliseconds(work) == 1000 * seconds
    assert len(runs) - 3 == count + sum(number % 10 == 5 for number in range(4, len(runs) + 1)) * (count > 10)


# Cascades -------------------------------------------------------------------------------------------------------------


def test_a_cascade_has_a_threshold_for_each_grid_but_the_last():
    assert Cascade(((1, 2, 2), (2, 4, 4)), (0.9345,)).name == "1x2x2 (0.934) 2x4x4"
    assert Cascade(((1, 2, 2),), ()).name == "1x2x2"
    for thresholds in ((), (0.5, 0.5)):
        with pytest.raises(ValueError, match=rf"2 grids take 1 thresholds, got {len(thresholds)}"):
            Cascade(((1, 2, 2), (2, 4, 4)), thresholds)


def test_a_confidence_equal_to_the_threshold_is_enough(cfg, model, costs, clips):
    first = next(iter(cascade_run(model, cfg, Cascade((GRIDS[0],), ()), clips[:2], [2], 8)))[0]
    exact = float(first.max())
    for enough, step in ((exact, 0), (np.nextafter(np.float32(exact), np.float32(2)).item(), 1)):
        cascade = Cascade((GRIDS[0], GRIDS[2]), (enough,))
        ((_, found),) = cascade_run(model, cfg, cascade, clips[:2], [2], 8)
        assert found == step
        table = first.numpy()[None].astype(np.float64)
        tables = {GRIDS[0]: table, GRIDS[2]: table}
        assert measure(cascade, costs, tables, np.array([0])).ended == [100.0 * (step == 0), 100.0 * step]


def test_grids_after_the_last_decision_are_not_run(cfg, model, clips):
    passes = []
    handle = model.blocks[0].register_forward_hook(lambda *_: passes.append(1))
    for thresholds, count in (((0.0, 0.0), 1), ((2.0, 0.0), 2), ((2.0, 2.0), 3)):
        passes.clear()
        steps = [s for _, s in cascade_run(model, cfg, Cascade(tuple(GRIDS), thresholds), clips, [5], 8)]
        assert (len(passes), steps) == (count, [count - 1])
    handle.remove()


def test_a_cascade_runs_in_the_precision_of_the_config(cfg, model, clips):
    seen = []
    handle = model.blocks[0].register_forward_hook(lambda *_: seen.append(torch.is_autocast_enabled("cpu")))
    token = model.tokenizer.register_forward_hook(lambda *_: seen.append(torch.is_autocast_enabled("cpu")))
    for precision, expected in (("float32", False), ("bfloat16", True)):
        seen.clear()
        changed = load_config(None, [*SMALL, *SEVERAL, "TRAIN.PRECISION", precision])
        list(cascade_run(model, changed, Cascade((GRIDS[0],), ()), clips, [5], 8))
        assert seen == [expected] * 2
    handle.remove()
    token.remove()


def test_batches_of_a_cascade_are_no_larger_than_asked(cfg, model, clips):
    sizes = []
    hooks = [part.register_forward_hook(lambda _, inputs, __: sizes.append(len(inputs[0])))
             for part in (model.tokenizer, model.blocks[0].refine)]  # fmt: skip
    list(cascade_run(model, cfg, Cascade((GRIDS[0],), ()), clips, [2, 3], 2))
    for hook in hooks:
        hook.remove()
    assert sizes == [2, 2, 1, 2, 2, 1]


# Calibration ----------------------------------------------------------------------------------------------------------


def test_every_chain_is_tried_with_thresholds_from_never_to_always():
    tables = {grid: np.array([[0.2 + shift, 0.8 - shift], [0.6, 0.4], [0.1, 0.9]]) for grid, shift in
              zip(GRIDS, (0.0, 0.1, 0.2), strict=True)}  # fmt: skip
    found = list(candidates(tables, 3, steps=3))
    assert [chain for chain, _ in found[:3]] == [(grid,) for grid in GRIDS]
    assert [len(thresholds) for _, thresholds in found[:3]] == [1] * 3
    pairs = {chain: thresholds.tolist() for chain, thresholds in found[3:]}
    assert set(pairs) == {(GRIDS[0], GRIDS[1]), (GRIDS[0], GRIDS[2]), (GRIDS[1], GRIDS[2]), tuple(GRIDS)}
    assert pairs[GRIDS[0], GRIDS[1]] == [0.6, 0.8, 0.9]
    assert pairs[GRIDS[1], GRIDS[2]] == pytest.approx([0.6, 0.7, 0.9])
    assert pairs[tuple(GRIDS)] == pytest.approx([0.6, 0.75, 0.9])
    assert [chain for chain, _ in candidates(tables, 2)] == [chain for chain, _ in found[:-1]]
    many = dict.fromkeys(GRIDS, np.random.default_rng(0).uniform(size=(1000, 2)))
    assert [len(thresholds) for _, thresholds in candidates(many, 2)] == [1, 1, 1, 200, 200, 200]


def points(*pairs):
    return [Point(Cascade((GRIDS[0],), ()), top1, macs, [100.0]) for top1, macs in pairs]


def test_the_frontier_holds_what_no_other_beats():
    found = points((50, 3), (40, 1), (45, 2), (45, 4), (50, 5), (40, 2), (60, 6), (39, 1))
    assert [(p.top1, p.macs) for p in frontier(found)] == [(40, 1), (45, 2), (50, 3), (60, 6)]
    assert frontier([]) == []


def test_the_cheapest_of_the_accurate_and_of_equals_the_most_accurate_is_chosen():
    found = points((50, 3), (51, 3), (40, 1), (60, 9))
    assert (choose(found, 50).top1, choose(found, 50).macs) == (51, 3)
    assert choose(found, 40).macs == 1
    assert choose(found, 60 + 0.9e-9).macs == 9  # a rounding error is no loss
    with pytest.raises(ValueError, match=r"accuracy of 60\.00 %: the best of this checkpoint here is 60\.00 %"):
        choose(found, 60 + 1.5e-9)


def test_every_weight_and_its_name_count_in_the_fingerprint():
    class Parts(torch.nn.Module):
        def __init__(self, **parts):
            super().__init__()
            for name, value in parts.items():
                self.register_buffer(name, torch.tensor(value))

    models = [Parts(a=[1.0, 2.0], b=[3.0]), Parts(a=[1.0, 2.0], c=[3.0]), Parts(a=[1.0, 2.5], b=[3.0]),
              Parts(a=[1.0, 2.0], b=[3.5]), Parts(a=[1.0, 2.0])]  # fmt: skip
    prints = [fingerprint(model) for model in models]
    assert len(set(prints)) == len(models)
    assert all(len(text) == 32 and set(text) <= set("0123456789abcdef") for text in prints)
    assert fingerprint(Parts(a=[1.0, 2.0], b=[3.0])) == prints[0]


def test_a_file_of_thresholds_names_its_format(model, tmp_path):
    save_cascade(tmp_path / "x.json", Cascade((GRIDS[0], GRIDS[2]), (0.75,)), model, {"videos": 3})
    content = json.loads((tmp_path / "x.json").read_text())
    assert content == {"format": "lookupvit_video/cascade/1", "model": fingerprint(model), "videos": 3,
                       "grids": [[1, 1, 1], [2, 4, 4]], "thresholds": [0.75]}  # fmt: skip


# Budgets of depth and of lookup tokens ------------------------------------------------------------------------------

DEEP = ["MODEL.DEPTH", "4", "MODEL.EXITS", "[1,2]", "MODEL.KEEPS", "[[1],[1,0.5]]"]
CHAIN = (Budget((1, 1, 1), 1), Budget((1, 2, 2), 1), Budget((1, 1, 1), 2), Budget((1, 1, 1), 0, (1, 0.5)), (1, 2, 2))


@pytest.fixture(scope="module", params=[("average", "mass"), ("compressed", "mass"), ("compressed", "pixels")])
def deep(request):
    """A model of three depths and two shares of tokens, in float64, and its predictor."""
    grids = ["MODEL.COMPRESSED_GRID", "[1,1,1]", "MODEL.COMPRESSED_GRIDS", "[[1,2,2]]"]
    head, keep_by = request.param
    overrides = [*settings("", ""), "MODEL.NUM_CLASSES", 5, *grids, *DEEP, "MODEL.INFERENCE_HEAD", head,
                 "MODEL.KEEP_BY", keep_by]  # fmt: skip
    cfg = load_config("tests/small.yaml", list(map(str, overrides)))
    torch.manual_seed(0)
    return Predictor(build_model(cfg), cfg, list("abcde"), CPU)


def test_a_predictor_has_every_budget_with_its_cost(deep):
    assert len(deep.costs) == 2 * 4
    assert list(deep.grids) == sorted(deep.grids, key=lambda name: deep.grids[name])
    assert {"1x1x1,b1", "1x1x1", "1x2x2,b2", "1x2x2,k1-0.5"} < deep.grids.keys()
    assert deep.default_budget == (1, 1, 1)
    assert deep.grid_within(gmacs=1.0001 * deep.grids["1x2x2,k1-0.5"]) == "1x2x2,k1-0.5"
    clips = torch.randint(0, 256, (2, 3, 4, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    found = [deep.predict_clips(clips, grid) for grid in deep.costs]
    assert len({tuple(table.flatten().tolist()) for table in found}) == 8


def test_which_step_continues_which():
    assert Cascade(CHAIN, (2.0,) * 4).sources(32, 4) == [None, None, 0, 2, 1]
    assert Cascade(((1, 1, 1), (1, 2, 2)), (2.0,)).sources(32, 4) == [None, None]
    assert Cascade((Budget((1, 1, 1), 1), Budget((1, 1, 1), 2), (1, 1, 1)), (2, 2)).sources(32, 4) == [None, 0, 1]


def test_a_cascade_answers_as_separate_passes_and_runs_no_block_twice_on_a_grid(deep):
    model, cascade = deep.model.double(), Cascade(CHAIN, (2.0,) * 4)
    clips = torch.randn(5, 3, 4, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    runs = []
    hooks = [block.register_forward_hook(lambda _, given, __, number=number: runs.append((number, len(given[0]))))
             for number, block in enumerate(model.blocks)]  # fmt: skip
    try:
        counts = [2, 1, 2]
        sure = run_cascade(model, cascade, [clips[:3], clips[3:]], counts, 2, torch.float32)
        with torch.no_grad():
            (last,) = {step for _, step in list(sure)}
            assert last == 4
            totals = [sum(batch for number, batch in runs if number == block) for block in range(4)]
            assert totals == [2 * 5] * 4  # once on each of two grids
            for end in range(5):
                wanted = model(clips, CHAIN[end]).softmax(-1).split(counts)
                thresholds = tuple([2.0] * end + [0.0] * (4 - end))
                answers = list(run_cascade(model, Cascade(CHAIN, thresholds), [clips], counts, 3, torch.float32))
                assert [step for _, step in answers] == [end] * 3
                for (found, _), expected in zip(answers, wanted, strict=True):
                    torch.testing.assert_close(found.double(), expected.mean(0), rtol=0, atol=1e-6)
    finally:
        model.float()
        for hook in hooks:
            hook.remove()


def test_a_cascade_costs_what_its_passes_measure(deep):
    clip = torch.zeros(1, 3, 4, 32, 32)
    for length in range(1, 6):
        cascade = Cascade(CHAIN[:length], (2.0,) * (length - 1))
        with using_kernel(deep.model, "eager"), flop_counter() as counter:
            list(run_cascade(deep.model, cascade, [clip], [1], 1))
        assert counter.get_total_flops() // 2 == cascade_macs(cascade, deep.costs)[-1], length


def test_a_cascade_over_budgets_is_kept_in_a_file(deep, tmp_path):
    cascade = Cascade(CHAIN, (0.9, 0.8, 0.7, 0.6))
    save_cascade(tmp_path / "x.json", cascade, deep.model, {})
    found = load_cascade(tmp_path / "x.json", deep.model, deep.costs)
    assert found == cascade
    assert found.name == "1x1x1,b1 (0.9) 1x2x2,b1 (0.8) 1x1x1,b2 (0.7) 1x1x1,k1-0.5 (0.6) 1x2x2"
    content = json.loads((tmp_path / "x.json").read_text())
    content["grids"][0]["blocks"] = 3
    (tmp_path / "x.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="grid 1x1x1,b3: this checkpoint has 1x1x1,b1"):
        load_cascade(tmp_path / "x.json", deep.model, deep.costs)
