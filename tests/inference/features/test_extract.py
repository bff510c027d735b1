"""Features are those of the model, whatever the batches and the order in which videos are read."""

import numpy as np
import pytest
import torch

from lookupvit_video.config import load_config
from lookupvit_video.errors import UserError
from lookupvit_video.inference.features.extract import Reading, VideoFeatures, clip_features, read_features
from lookupvit_video.inference.predictor import Predictor
from lookupvit_video.inference.timeline import plan_windows
from lookupvit_video.inference.views import Failure, read_views
from lookupvit_video.models.build import build_model
from tests.models.test_models import SMALL
from tests.videos import write_video

FACTORIZED = ["MODEL.ENCODER", "factorised", "MODEL.COMPRESSED_GRID", "[2,2]", "MODEL.TEMPORAL_DEPTH", "1"]
MIXED = {"x3d": ["MODEL.ARCH", "x3d", "MODEL.VARIANT", "XS", "DATA.TRAIN_CROP_SIZE", "64", "DATA.TEST_CROP_SIZE", "64"]}


def make_predictor(*changes):
    cfg = load_config(None, [*SMALL, "DATA.SAMPLING_RATE", "2", *changes])
    torch.manual_seed(0)
    return Predictor(build_model(cfg), cfg, list("abcde"), torch.device("cpu"))


def clips_of(predictor, count=3):
    plan = predictor.plan
    shape = (count, 3, plan.times.num_frames, plan.size, plan.size)
    return torch.randint(256, shape, generator=torch.Generator().manual_seed(1), dtype=torch.uint8)


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    paths = [write_video(folder / f"{i}.mp4", frames=20 + 4 * i, first_number=100 * i) for i in range(5)]
    (folder / "bad.mp4").write_text("hello")
    return [*paths[:2], str(folder / "bad.mp4"), *paths[2:]]


@pytest.mark.parametrize("changes", [[], FACTORIZED], ids=["joint", "factorized"])
def test_tokens_are_those_of_forward_features_after_the_norm(changes):
    predictor = make_predictor(*changes)
    model, clips = predictor.model, clips_of(predictor)
    with torch.inference_mode():
        features = model.forward_features(predictor.inputs(clips))
        norms = model.frame_norms if changes else {name: model.heads[name].norm for name in model.heads}
        for name, tokens in (("compressed", features.compressed), ("lookup", features.tokens)):
            found = clip_features(predictor, clips, name)
            assert found.shape == tokens.shape
            torch.testing.assert_close(found, norms[name](tokens), atol=1e-6, rtol=0)


@pytest.mark.parametrize("changes", [
    (), ("MODEL.INFERENCE_HEAD", "lookup"), FACTORIZED, ("MODEL.POOL", "attentive"),
    ("MODEL.ARCH", "vit"), MIXED["x3d"],
], ids=str)  # fmt: skip
def test_linear_layers_make_the_logits_from_pooled_features(changes):
    predictor = make_predictor(*changes)
    model, clips = predictor.model, clips_of(predictor)
    pooled = clip_features(predictor, clips)
    heads = [model.heads[name] for name in model.inference_heads] if hasattr(model, "heads") else [model.head]
    linear = [[m for m in head.modules() if isinstance(m, torch.nn.Linear)][-1] for head in heads]
    with torch.inference_mode():
        parts = torch.split(pooled, [layer.in_features for layer in linear], dim=1)
        logits = torch.stack([layer(part) for layer, part in zip(linear, parts, strict=True)]).mean(0)
        torch.testing.assert_close(logits, model(predictor.inputs(clips)), atol=1e-6, rtol=1e-6)
    assert all(not layer._forward_pre_hooks for layer in linear)


def test_a_budget_has_its_own_tokens():
    predictor = make_predictor("MODEL.COMPRESSED_GRIDS", "[[1,2,2],[2,2,2]]", "MODEL.EXITS", "[1]")
    clips = clips_of(predictor)
    assert clip_features(predictor, clips, "compressed", (2, 2, 2)).shape[1] == 8
    assert clip_features(predictor, clips, "compressed", (1, 2, 2)).shape[1] == 4


def test_what_a_model_does_not_have_is_a_mistake():
    for changes, tokens, message in (
        (("MODEL.ARCH", "vit"), "compressed", "a dense ViT has lookup tokens only"),
        (("MODEL.HEADS", "['compressed']"), "lookup", "no classifier of them, only of compressed"),
        (MIXED["x3d"], "lookup", "X3D has no norm for single tokens; use pooled"),
    ):
        predictor = make_predictor(*changes)
        with pytest.raises(UserError, match=message):
            clip_features(predictor, clips_of(predictor), tokens)


def test_groups_do_not_depend_on_what_is_done_or_on_workers(videos):
    predictor = make_predictor()
    plan = predictor.plan.changed(2, 1)
    reading = Reading(plan, batch_size=4)

    def rows(done=(), workers=0):
        groups = list(read_features(predictor, videos, done, Reading(plan, batch_size=4, workers=workers)))
        assert all(len(group) <= 2 for group in groups)
        return {item.path: item for group in groups for item in group}

    found = rows()
    assert list(found) == [*videos[:2], *videos[2:]]
    assert isinstance(found[videos[2]], Failure)
    expected = read_views(videos[0], plan)
    assert found[videos[0]].times.tolist() == [list(pair) for pair in expected.times]
    alone = clip_features(predictor, torch.from_numpy(expected.clips)).numpy()
    np.testing.assert_allclose(found[videos[0]].rows, alone, atol=1e-5)
    for others in (rows(done=videos[:2]), rows(workers=2)):
        for path, video in others.items():
            if isinstance(video, VideoFeatures):
                assert np.array_equal(video.rows, found[path].rows)
    assert list(rows(done=videos[:2])) == videos[2:]
    assert reading.tokens == "pooled"


def test_windows_slide_over_a_video(videos):
    predictor = make_predictor()
    plan = predictor.plan.changed(1, 1)
    reading = Reading(plan, batch_size=2, windows=True, stride=0.25)
    (video,), (bad,) = read_features(predictor, videos[1:3], (), reading)
    starts, window = plan_windows(plan, 1.0, 0.25, None)
    assert window == pytest.approx(2 / 3 * plan.times.num_frames / 8, abs=1)
    assert len(video.rows) == len(starts)
    assert video.times[:, 0].tolist() == pytest.approx(starts.tolist())
    assert video.times[-1, 1] <= 1.0
    assert isinstance(bad, Failure)
