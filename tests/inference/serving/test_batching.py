"""One model for all: batches, order, failures."""

import threading

import numpy as np
import pytest

from lookupvit_video.errors import UserError
from lookupvit_video.inference.prediction import Prediction
from lookupvit_video.inference.serving.batching import Batcher, Wish
from lookupvit_video.inference.views import Views

WISH = Wish(5, None)


def views(name, clips=1):
    return Views(name, np.zeros((clips, 3, 1, 2, 2), np.uint8), [(0.0, 0.0)])


class Model:
    """Answers with the name, once the gate is open; remembers its batches."""

    def __init__(self):
        self.batches, self.gate = [], threading.Event()

    def answers(self, videos, topk, **options):
        self.batches.append(([one.name for one in videos], topk, options))
        assert self.gate.wait(10)
        for one in videos:
            if one.name == "mistake":
                raise UserError("not calibrated")
            if one.name == "bug":
                raise IndexError("planted")
            yield Prediction(one.name, ["a"], [1.0], clip=None)


@pytest.fixture
def model():
    return Model()


@pytest.fixture
def batcher(model):
    counted = []
    batcher = Batcher(model, {"adaptive": "x", "reject": None}, 4, lambda clips, _: counted.append(clips))
    batcher.counted = counted
    yield batcher
    model.gate.set()
    batcher.close(10)
    assert not batcher.is_alive


def names(model):
    return [found for found, *_ in model.batches]


def start(batcher, model):
    """Keep the model busy with a first video."""
    first = batcher.submit(views("first"), WISH)
    while not model.batches:
        pass
    return first


def test_what_waits_is_answered_together(batcher, model):
    first = start(batcher, model)
    others = [batcher.submit(views(str(n)), WISH) for n in range(6)]
    model.gate.set()
    assert [one.result(10).path for one in (first, *others)] == ["first", *map(str, range(6))]
    assert names(model) == [["first"], ["0", "1", "2", "3"], ["4", "5"]]
    assert batcher.counted == [1, 4, 2]


def test_a_batch_is_full_by_its_clips(batcher, model):
    start(batcher, model)
    last = [batcher.submit(views(str(n), clips=3), WISH) for n in range(3)][-1]
    model.gate.set()
    last.result(10)
    assert names(model) == [["first"], ["0", "1"], ["2"]]


def test_wishes_are_kept_apart_and_a_grid_replaces_the_budget(batcher, model):
    start(batcher, model)
    wishes = [WISH, Wish(2, None), WISH, Wish(5, "2x2x2")]
    found = [batcher.submit(views(str(n)), wish) for n, wish in enumerate(wishes)]
    model.gate.set()
    assert [one.result(10).path for one in found] == ["0", "1", "2", "3"]
    assert names(model)[1:] == [["0", "2"], ["1"], ["3"]]
    assert [topk for _, topk, _ in model.batches[1:]] == [5, 2, 5]
    chosen = [(options["adaptive"], options.get("grid")) for *_, options in model.batches[1:]]
    assert chosen == [("x", None), ("x", None), (None, "2x2x2")]


def test_what_nobody_waits_for_is_left_out(batcher, model):
    start(batcher, model)
    left, kept = batcher.submit(views("left"), WISH), batcher.submit(views("kept"), WISH)
    assert left.cancel()
    model.gate.set()
    kept.result(10)
    assert names(model) == [["first"], ["kept"]]


@pytest.mark.parametrize(("name", "kind"), [("mistake", UserError), ("bug", IndexError)])
def test_a_failure_is_that_of_its_batch_alone(batcher, model, name, kind):
    model.gate.set()
    with pytest.raises(kind):
        batcher.submit(views(name), WISH).result(10)
    assert batcher.submit(views("next"), WISH).result(10).path == "next"
    assert batcher.is_alive


def test_a_batch_waits_for_videos_that_are_being_read(model):
    model.gate.set()
    expected = 1
    batcher = Batcher(model, {}, 2, lambda *_: None, linger=10.0, expected=lambda: expected)
    first = batcher.submit(views("0"), WISH)
    second = batcher.submit(views("1"), WISH)
    assert [first.result(5).path, second.result(5).path] == ["0", "1"]
    assert names(model) == [["0", "1"]]
    expected = 0
    assert batcher.submit(views("2"), WISH).result(5).path == "2"  # nothing to wait for
    batcher.close(5)


def test_closing_answers_what_came_before(model):
    batcher = Batcher(model, {}, 8, lambda *_: None)
    start(batcher, model)
    last = batcher.submit(views("last"), WISH)
    threading.Timer(0.2, model.gate.set).start()
    batcher.close(10)
    assert last.result(0).path == "last"
