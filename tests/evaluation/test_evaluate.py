import csv
import json
import logging

import numpy as np
import pytest
import torch

from lookupvit_video.config import load_config
from lookupvit_video.data.dataset import Batch
from lookupvit_video.data.manifest import Video
from lookupvit_video.data.transforms import IGNORED
from lookupvit_video.distributed.world import World
from lookupvit_video.errors import RunFailure
from lookupvit_video.evaluation import evaluate as evaluate_module
from lookupvit_video.evaluation.evaluate import (
    Results,
    class_recalls,
    evaluate,
    predict_clips,
    write_grids,
    write_results,
)
from lookupvit_video.evaluation.metrics import METRICS, interval
from lookupvit_video.models.build import build_model
from tests.models.test_models import SMALL

CPU = torch.device("cpu")


def options_of(cfg):
    return {"mean": cfg.DATA.MEAN, "std": cfg.DATA.STD, "precision": cfg.TRAIN.PRECISION}


def test_a_video_that_could_not_be_read_is_wrong_even_where_the_likeliest_class_would_be_right():
    labels = np.array([0, 1, 1, 0])
    probabilities = np.array([[0.9, 0.1, 0.0], [0.2, 0.7, 0.1], [0.6, 0.3, 0.1], [0.0, 0.0, 0.0]])
    results = Results(labels, probabilities, [(3, "empty")])
    assert results.top(1) == pytest.approx(50)
    assert results.top(2) == pytest.approx(75)
    assert results.confusion().tolist() == [[1, 0, 0], [1, 1, 0], [0, 0, 0]]
    assert results.per_class() == [pytest.approx(50), pytest.approx(50), None]


def test_softmax_is_averaged_over_the_views_of_a_video():
    cfg = load_config(None, SMALL)
    torch.manual_seed(0)
    model = build_model(cfg).train()
    clips = torch.randint(0, 256, (6, 3, 4, 32, 32), dtype=torch.uint8)
    batch = Batch(clips, torch.tensor([2, 2, IGNORED, IGNORED, 4, 4]), torch.tensor([1, 2, 0]), [(2, "empty")])
    videos = [Video("a", 4), Video("b", 2), Video("c", 0)]
    (results,) = evaluate(model, [batch], videos, cfg, World(0, 1, CPU), "test")
    assert model.training  # its mode is kept
    by_clip = predict_clips(model.eval(), clips, CPU, **options_of(cfg)).numpy()
    np.testing.assert_allclose(results.probabilities[1], by_clip[:2].mean(0), rtol=1e-6)
    np.testing.assert_allclose(results.probabilities[0], by_clip[4:].mean(0), rtol=1e-6)
    assert results.probabilities[2].tolist() == [0] * 5  # no answer is made up for what was not seen
    assert results.labels.tolist() == [4, 2, 0]


@pytest.mark.parametrize("encoder", ["joint", "factorised"])
def test_answers_of_several_grids_are_those_of_each_alone(encoder):
    grids = [(1, 2, 2), (2, 4, 4), (1, 1, 1)] if encoder == "joint" else [(2, 2), (4, 4), (1, 1)]
    first = ["MODEL.ENCODER", encoder, "MODEL.COMPRESSED_GRID", str(list(grids[0]))]
    torch.manual_seed(0)
    cfg = load_config(None, [*SMALL, *first, "TEST.GRIDS", str([list(grid) for grid in grids[1:]])])
    model = build_model(cfg)
    clips = torch.randint(0, 256, (6, 3, 4, 32, 32), dtype=torch.uint8)
    batch = Batch(clips, torch.tensor([2, 2, IGNORED, IGNORED, 4, 4]), torch.tensor([1, 2, 0]), [(2, "empty")])
    videos, world = [Video("a", 4), Video("b", 2), Video("c", 0)], World(0, 1, CPU)
    together = evaluate(model, [batch], videos, cfg, world, "test", [None, *grids])
    assert len(together) == 4
    np.testing.assert_array_equal(together[0].probabilities, together[1].probabilities)  # the default
    for grid, results in zip(grids, together[1:], strict=True):
        own_cfg = load_config(None, [*SMALL, *first[:2], "MODEL.COMPRESSED_GRID", str(list(grid))])
        alone = build_model(own_cfg)
        alone.load_state_dict(model.state_dict())
        (expected,) = evaluate(alone, [batch], videos, own_cfg, world, "test")
        np.testing.assert_array_equal(results.probabilities, expected.probabilities)
        assert results.probabilities[2].tolist() == [0] * 5
        assert results.bad == expected.bad == [(2, "empty")]
    assert len({results.probabilities.tobytes() for results in together}) == 3


# The figures ------------------------------------------------------------------------------------------------------


def test_top_k_by_hand():
    probabilities = np.array([[0.5, 0.3, 0.2], [0.2, 0.3, 0.5], [0.4, 0.4, 0.2], [0.1, 0.8, 0.1]])
    results = Results(np.array([1, 0, 1, 1]), probabilities, [])
    assert [results.top(k) for k in (1, 2, 3, 5)] == [25, 75, 100, 100]  # of equal ones the first class is likelier
    assert results.readable.tolist() == [True] * 4
    assert results.confusion().tolist() == [[0, 0, 1], [2, 1, 0], [0, 0, 0]]
    assert results.per_class() == [0, pytest.approx(100 / 3), None]


def test_unread_videos_count_as_wrong_for_their_class_and_have_no_place_in_the_confusion():
    probabilities = np.array([[0.9, 0.1], [0.8, 0.2], [0.0, 0.0], [0.1, 0.9]])
    results = Results(np.array([0, 0, 0, 1]), probabilities, [(2, "empty")])
    assert results.readable.tolist() == [True, True, False, True]
    assert results.top(1) == 75
    assert results.top(2) == 75
    assert results.confusion().tolist() == [[2, 0], [0, 1]]
    assert results.per_class() == [pytest.approx(200 / 3), 100]


def test_recall_of_several_labels_is_over_the_videos_that_have_each():
    labels = np.array([[True, True, False], [True, False, False], [True, True, False], [True, True, False]])
    probabilities = np.array([[0.9, 0.6, 0.9], [0.5, 0.1, 0.1], [0.4, 0.7, 0.1], [0.0, 0.0, 0.0]])
    results = Results(labels, probabilities, [(3, "empty")])
    assert results.multi_label
    assert results.per_class() == [pytest.approx(50), pytest.approx(200 / 3), None]
    assert results.scores[3].tolist() == [0, 0, 2]  # wrong everywhere
    assert class_recalls(results, ["a", "b", "c"]) == (
        "recall a class: a 50 % of 4, b 67 % of 3; mean class accuracy 58.33 %"
    )


class Constant(torch.nn.Module):
    """Answers with what it is told, and notes what it was given."""

    def __init__(self, logits):
        super().__init__()
        self.logits, self.calls = logits, []

    def forward(self, clips, *grid):
        self.calls.append((clips, grid, self.training, torch.is_grad_enabled(), torch.is_autocast_enabled("cpu")))
        return self.logits[: len(clips)]


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_clips_are_normalised_and_answers_are_softmaxed_in_float32(precision):
    cfg = load_config(None, [*SMALL, "TRAIN.PRECISION", precision])
    logits = torch.tensor([[1.0, 2.0, 3.0], [0.0, 0.0, 5.0]])
    model = Constant(logits.to(getattr(torch, precision)))
    clips = torch.full((2, 3, 4, 32, 32), 51, dtype=torch.uint8)
    found = predict_clips(model, clips, CPU, **options_of(cfg))
    torch.testing.assert_close(found, logits.exp() / logits.exp().sum(1, keepdim=True))
    assert found.dtype == torch.float32
    predict_clips(model, clips, CPU, **options_of(cfg), grid=(1, 2, 2))
    (inputs, grid, *_), (_, other, *_) = model.calls
    assert (grid, other) == ((), ((1, 2, 2),))
    wanted = (0.2 - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225])
    torch.testing.assert_close(inputs[1, :, 2, 3, 4], wanted)
    assert [call[3:] for call in model.calls] == [(False, precision == "bfloat16")] * 2


def batch_of(rows, errors=(), views=1):
    clips = torch.zeros(len(rows) * views, 3, 4, 32, 32, dtype=torch.uint8)
    return Batch(clips, torch.zeros(len(rows) * views, dtype=torch.long), torch.tensor(rows), list(errors))


@pytest.mark.parametrize("training", [True, False])
def test_the_shares_of_all_processes_make_the_table(monkeypatch, training):
    """This is the second of two processes: the first has read videos 0 and 2, of which the last is bad."""
    theirs = {0: [[(0, np.array([1.0, 0, 0])), (2, np.array([0.5, 0.5, 0]))]], 1: [(2, "cut")], 2: []}
    calls = iter((0, 1, 2))
    monkeypatch.setattr(evaluate_module, "gather_objects", lambda own, world: [theirs[next(calls)], own])
    shown = []
    monkeypatch.setattr(evaluate_module, "progress", lambda *a, **given: shown.append(given) or a[0])
    cfg = load_config(None, [*SMALL, "MODEL.NUM_CLASSES", "3"])
    videos = [Video(name, label) for name, label in zip("abcd", (0, 1, 2, 0), strict=True)]
    model = Constant(torch.tensor([[0.0, 9.0, 0.0], [0.0, 0.0, 9.0]])).train(training)
    (results,) = evaluate(model, [batch_of([1, 3])], videos, cfg, World(1, 2, CPU), "test")
    assert model.training == training
    assert not model.calls[0][2]  # it answers in eval mode
    assert results.probabilities.argmax(1).tolist() == [0, 1, 0, 2]
    assert results.probabilities[2].tolist() == [0, 0, 0]
    assert results.bad == [(2, "cut")]
    assert results.labels.tolist() == [0, 1, 2, 0]
    assert shown == []  # the main process tells


def test_the_main_process_tells_how_far_it_is(monkeypatch):
    shown = []
    monkeypatch.setattr(evaluate_module, "progress", lambda *a, **given: shown.append(given) or a[0])
    monkeypatch.setattr(evaluate_module, "gather_objects", lambda own, world: [own])
    cfg = load_config(None, [*SMALL, "MODEL.NUM_CLASSES", "3", "TEST.BATCH_SIZE", "2"])
    videos = [Video(name, 0) for name in "abcde"]
    batches = [batch_of([0, 2], [(2, "z"), (0, "y")]), batch_of([4])]
    (results,) = evaluate(Constant(torch.zeros(2, 3)), batches, videos, cfg, World(0, 2, CPU), "validation")
    assert shown == [{"total": 3, "label": "validation", "unit": "videos", "step": 2}]  # its share of five
    assert results.bad == [(0, "y"), (2, "z")]
    assert results.probabilities.shape == (5, 3)
    assert results.probabilities.dtype == np.float32


# The files --------------------------------------------------------------------------------------------------------


def test_results_are_written_for_programs_and_people(tmp_path):
    videos = [Video("a.mp4", 0), Video("b.mp4", 1), Video("c.mp4", 1)]
    probabilities = np.array([[0.25, 0.75], [0.1, 0.9], [0.0, 0.0]])
    results = Results(np.array([0, 1, 1]), probabilities, [(2, "empty")])
    summary = write_results(results, videos, ["left", "right"], tmp_path, {"views": "2x3", "top1": "overwritten"})
    assert summary == json.loads((tmp_path / "test_results.json").read_text()) == {
        "views": "2x3", "top1": 33.33, "videos": 3, "per_class": {"left": 0.0, "right": 50.0},
        "bad_videos": [{"path": "c.mp4", "reason": "empty"}], "damaged_videos": [],
        "intervals_95": {"top1": [0.0, 100.0]},
    }  # fmt: skip
    with (tmp_path / "test_predictions.csv").open(newline="") as file:
        assert list(csv.reader(file)) == [
            ["path", "label", "prediction", "probability"], ["a.mp4", "left", "right", "0.7500"],
            ["b.mp4", "right", "right", "0.9000"], ["c.mp4", "right", "", ""],
        ]  # fmt: skip
    with (tmp_path / "confusion_matrix.csv").open(newline="") as file:
        assert list(csv.reader(file)) == [
            ["true \\ predicted", "left", "right"],
            ["left", "0", "1"],
            ["right", "0", "1"],
        ]
    assert (tmp_path / "confusion_matrix.png").read_bytes().startswith(b"\x89PNG")


def test_intervals_have_two_decimals():
    rng = np.random.default_rng(0)
    labels, probabilities = rng.integers(0, 3, 7), rng.random((7, 3))
    (found,) = Results(labels, probabilities, []).intervals(["top1"]).values()
    exact = interval(METRICS["top1"].function, probabilities, labels)
    assert found == [round(value, 2) for value in exact] != [round(value, 1) for value in exact]


def test_recall_a_class_fits_one_line():
    results = Results(np.array([0, 0, 1]), np.array([[0.9, 0.1, 0.0], [0.2, 0.8, 0.0], [0.1, 0.9, 0.0]]), [])
    assert class_recalls(results, ["left", "a\nb", "never"]) == (
        "recall a class: left 50 % of 2, a\\nb 100 % of 1; mean class accuracy 75.00 %"
    )
    labels = np.repeat(np.arange(12), 2)
    answers = labels.copy()
    answers[[3, 10, 11]] = 0  # of classes 1 and 5
    names = [f"c{label}" for label in range(12)]
    assert class_recalls(Results(labels, np.eye(12)[answers], []), names) == (
        "lowest recall of 12 classes: c5 0 % of 2, c1 50 % of 2, c0 100 % of 2, c2 100 % of 2, c3 100 % of 2; "
        "mean class accuracy 87.50 %"
    )


def test_figures_by_grid_are_written_and_logged(tmp_path, caplog):
    rows = [{"grid": f"1x{n}x{n}", "tokens": n * n, "gmacs_per_view": n / 4, "top1": 10.0 * n, "top5": 99.0}
            for n in (1, 2)]  # fmt: skip
    with caplog.at_level(logging.INFO):
        write_grids(rows, tmp_path)
    text = (tmp_path / "accuracy_vs_gmacs.csv").read_text()
    assert text.split() == ["grid,tokens,gmacs_per_view,top1,top5", "1x1x1,1,0.25,10.0,99.0", "1x2x2,4,0.5,20.0,99.0"]
    assert (tmp_path / "accuracy_vs_gmacs.png").read_bytes().startswith(b"\x89PNG")
    assert "grid 1x2x2         4 compressed tokens       0.5 GMACs a view  top-1 20.00 %  top-5 99.00 %" in caplog.text
    write_grids(rows[:1], tmp_path)  # one grid is a table too
    assert (tmp_path / "accuracy_vs_gmacs.csv").read_text().split()[1:] == ["1x1x1,1,0.25,10.0,99.0"]


@pytest.mark.parametrize("damaged", ["use", "refuse"])
def test_damaged_videos_are_listed_or_stop_the_test(tmp_path, damaged):
    cfg = load_config(None, [*SMALL, "DATA.DAMAGED_TEST", damaged])
    clips = torch.randint(0, 256, (2, 3, 4, 32, 32), dtype=torch.uint8)
    batch = Batch(clips, torch.tensor([1, 2]), torch.tensor([0, 1]), [], [(1, "picture data: torn")])
    videos, classes = [Video("a", 1), Video("b", 2)], list("vwxyz")
    if damaged == "refuse":
        with pytest.raises(RunFailure, match=r"b: damaged: picture data: torn; .* DATA\.DAMAGED_TEST to use or skip"):
            evaluate(build_model(cfg), [batch], videos, cfg, World(0, 1, CPU), "test")
        return
    (results,) = evaluate(build_model(cfg), [batch], videos, cfg, World(0, 1, CPU), "test")
    assert results.readable.all()
    assert results.used_damaged == [(1, "damaged, used: picture data: torn")]
    summary = write_results(results, videos, classes, tmp_path, {})
    assert summary["damaged_videos"] == [{"path": "b", "damage": "picture data: torn"}]
    assert summary["bad_videos"] == []


def test_a_video_skipped_for_its_damage_is_listed_once():
    results = Results(np.array([0]), np.zeros((1, 2)), [(0, "a: damaged: x")], [(0, "x")])
    assert results.used_damaged == []
