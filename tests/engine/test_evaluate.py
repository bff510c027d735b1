import numpy as np
import pytest
import torch

from lookupvit_video.config import load_config
from lookupvit_video.data.dataset import Batch
from lookupvit_video.data.manifest import Video
from lookupvit_video.data.transforms import IGNORED
from lookupvit_video.engine.evaluate import Results, evaluate, predict_clips, write_results
from lookupvit_video.engine.world import World
from lookupvit_video.errors import RunFailure
from lookupvit_video.models.build import build_model
from tests.models.test_models import SMALL

CPU = torch.device("cpu")


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
    by_clip = predict_clips(model.eval(), cfg, clips, CPU).numpy()
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
    assert results.read.all()
    assert results.used_damaged == [(1, "damaged, used: picture data: torn")]
    summary = write_results(results, videos, classes, tmp_path, {})
    assert summary["damaged_videos"] == [{"path": "b", "damage": "picture data: torn"}]
    assert summary["bad_videos"] == []


def test_a_video_skipped_for_its_damage_is_listed_once():
    results = Results(np.array([0]), np.zeros((1, 2)), [(0, "a: damaged: x")], [(0, "x")])
    assert results.used_damaged == []
