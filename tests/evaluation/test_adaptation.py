"""Clips unlike clean ones are moved to the statistics of clean tokens; clean ones stay, to the bit."""

import numpy as np
import pytest
import torch

from lookupvit_video.config import load_config
from lookupvit_video.errors import UserError
from lookupvit_video.evaluation.adaptation import (
    TokenStatistics,
    adapted,
    load_statistics,
    measure_tokens,
    save_statistics,
    statistics_path,
)
from lookupvit_video.models.build import build_model
from tests.models.test_models import SMALL


def model_of(arch="lookupvit", seed=0):
    torch.manual_seed(seed)
    return build_model(load_config(None, [*SMALL, "MODEL.ARCH", arch])).eval()


def clean(count=40):
    return torch.randn(count, 3, 4, 32, 32, generator=torch.Generator().manual_seed(1))


def content(model, clips):
    return model.tokenizer(clips).detach() - model.tokenizer.positions.detach()


def test_statistics_are_means_over_clips_whatever_the_batches():
    model, clips = model_of(), clean()
    found = measure_tokens(model, clips.split(7))
    tokens = content(model, clips)
    torch.testing.assert_close(found.mean, tokens.mean((0, 1)))
    torch.testing.assert_close(found.deviation, tokens.std(1).mean(0))
    assert (found.distance(tokens) > found.far).sum() == 2  # 5 % of 40


@pytest.mark.parametrize("arch", ["lookupvit", "vit"])
def test_far_clips_are_moved_and_the_others_stay(arch):
    model, clips = model_of(arch), clean()
    statistics = measure_tokens(model, [clips])
    near = clips[statistics.distance(content(model, clips)).argmin()][None]
    far = 0.2 * near + 3
    with torch.inference_mode():
        plain = model(torch.cat([near, far]))
        with adapted(model, statistics):
            moved = model(torch.cat([near, far]))
            tokens = content(model, far)
            torch.testing.assert_close(model(far), moved[1:])  # the batch does not matter
        with adapted(model, None):
            assert torch.equal(model(torch.cat([near, far])), plain)
        assert torch.equal(model(torch.cat([near, far])), plain)
    assert torch.equal(moved[:1], plain[:1])
    assert not torch.allclose(moved[1:], plain[1:])
    torch.testing.assert_close(tokens.mean((0, 1)), statistics.mean, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(tokens.std(1)[0], statistics.deviation, rtol=1e-3, atol=1e-4)


def test_a_change_of_scale_alone_is_far():
    statistics = TokenStatistics(torch.zeros(4), torch.ones(4), 0.5)
    tokens = torch.randn(1, 2000, 4, generator=torch.Generator().manual_seed(0))
    distances = [float(statistics.distance(tokens * scale)) for scale in (0.2, 1, 5)]
    assert distances[1] < 0.1
    assert distances[0] == pytest.approx(np.log(5), abs=0.1)
    assert distances[2] == pytest.approx(np.log(5), abs=0.4)


def test_kept_statistics_belong_to_their_weights(tmp_path):
    model, path = model_of(), statistics_path(tmp_path / "model.pt")
    assert path.name == "model.tokens.npz"
    with pytest.raises(UserError, match=r"model\.tokens\.npz: missing; lookupvit robustness --adapt"):
        load_statistics(path, model)
    statistics = measure_tokens(model, [clean()])
    save_statistics(path, statistics, model)
    found = load_statistics(path, model)
    assert torch.equal(found.mean, statistics.mean)
    assert torch.equal(found.deviation, statistics.deviation)
    assert found.far == statistics.far
    with pytest.raises(UserError, match="of other weights"):
        load_statistics(path, model_of(seed=1))
    path.write_bytes(b"damaged")
    with pytest.raises(UserError, match="cannot be read"):
        load_statistics(path, model)


def test_other_models_have_no_tubelet_tokens():
    model = build_model(load_config(None, [*SMALL, "MODEL.ARCH", "x3d", "MODEL.VARIANT", "XS", "MODEL.DEPTH", "0"]))
    with pytest.raises(UserError, match="no tubelet tokens"):
        measure_tokens(model, [clean(1)])
