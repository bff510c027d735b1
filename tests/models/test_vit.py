"""How a dense ViT is put together; what it then does: test_models.py, and on fewer tokens: test_token_reduction.py."""

import math

import pytest
import torch
from torch import nn

from lookupvit_video.config import load_config
from lookupvit_video.models.blocks import TransformerBlock
from lookupvit_video.models.build import build_model
from lookupvit_video.models.token_reduction import MergingBlock
from lookupvit_video.models.tokenizer import GridResize
from lookupvit_video.models.vit import ViT
from tests.models.test_models import clips, small_model

SMALL = {"num_classes": 2, "num_frames": 4, "size": 32, "tubelet": (2, 8, 8), "dim": 24, "depth": 4, "num_heads": 3}


def test_what_is_not_given_is_as_the_config_has_it():
    with torch.device("meta"):
        model, built = ViT(num_classes=400), build_model(load_config(None, ["MODEL.ARCH", "vit"]))
        resized, built_resized = (
            ViT(num_classes=400, tokens="resize"),
            build_model(load_config(None, ["MODEL.ARCH", "vit", "MODEL.TOKENS", "resize"])),
        )
    for one, other in ((model, built), (resized, built_resized)):
        assert repr(one) == repr(other)
        assert [(n, p.shape) for n, p in one.named_parameters()] == [(n, p.shape) for n, p in other.named_parameters()]
    assert model.tokenizer.clip_shape == (3, 16, 224, 224)
    assert model.token_grid == (8, 14, 14)
    assert resized.token_grid == resized.reduce.grid_out == built_resized.token_grid == (4, 7, 7)
    assert resized.reduce.grid_in == (8, 14, 14)
    assert [block.attention.num_heads for block in model.blocks] == [12] * 12
    assert {part.drops for part in model.modules() if hasattr(part, "drops")} == {False}
    assert {part.p for part in model.modules() if isinstance(part, nn.Dropout)} == {0.0}
    assert len(ViT(**SMALL, encoder="factorised").temporal.blocks) == 4


def test_the_class_token_comes_first_and_is_no_feature():
    model = small_model("vit class").double().eval()
    clip = clips().double()
    with torch.no_grad():
        features = model.forward_features(clip)
        assert features.tokens.shape == (3, 32, 24)
        assert features.grid == (2, 4, 4)
        all_tokens = torch.cat([features.class_token, features.tokens], dim=1)
        torch.testing.assert_close(model(clip), model.head(all_tokens))
        model.blocks = nn.ModuleList()
        features = model.forward_features(clip)
        assert torch.equal(features.class_token, model.class_token.expand(3, 1, 24))
        assert torch.equal(features.tokens, model.tokenizer(clip))


def test_the_class_token_begins_small_and_trains():
    torch.manual_seed(0)
    token = ViT(**{**SMALL, "dim": 768}, pool="class").class_token
    assert token.shape == (1, 1, 768)
    assert token.requires_grad
    assert 0.018 < token.std() < 0.022
    assert abs(token.mean()) < 0.005
    for pool in ("average", "average_norm", "attentive"):
        assert ViT(**SMALL, pool=pool).class_token is None


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", ["vit", "vit class", "vit factorised", "vit resize", "vit merge"])
def test_features_returned_with_the_answer_are_its_own(name, training):
    model = small_model(name).train(training)
    with torch.no_grad():
        answer, features = model(clips(), with_features=True)
        torch.testing.assert_close(answer, model(clips()))
        assert isinstance(answer, tuple) == training
        torch.testing.assert_close(features.tokens, model.forward_features(clips()).tokens)
        assert features.grid == model.forward_features(clips()).grid


def test_a_factorised_encoder_is_norm_mean_of_each_time_temporal_transformer_and_head():
    model = small_model("vit factorised").double().eval()
    with torch.no_grad():
        features = model.forward_features(clips().double())
        assert features.tokens.shape == (3, 32, 24)
        frames = torch.stack([model.frame_norm(part).mean(1) for part in features.tokens.split(16, dim=1)], dim=1)
        torch.testing.assert_close(model(clips().double()), model.head(model.temporal(frames)))
        by_hand = []
        for part in model.tokenizer(clips().double()).split(16, dim=1):  # each time index by itself
            for block in model.blocks:
                part = block(part)
            by_hand.append(part)
        torch.testing.assert_close(features.tokens, torch.cat(by_hand, dim=1))


def test_only_merging_has_merging_blocks_and_only_fewer_tokens_have_a_reduction():
    for name, block, reduce in (
        ("vit", TransformerBlock, nn.Identity), ("vit merge", MergingBlock, nn.Identity),
        ("vit resize", TransformerBlock, GridResize),
    ):  # fmt: skip
        model = small_model(name)
        assert {type(each) for each in model.blocks} == {block}
        assert type(model.reduce) is reduce
        assert (model.merged is None) == (name != "vit merge")


def test_resized_tokens_are_the_tokenizers_resized():
    for kind in ("triangle", "trilinear"):
        model = small_model("vit resize", f"MODEL.RESIZE {kind}").eval()
        model.blocks = nn.ModuleList()
        with torch.no_grad():
            wanted = GridResize((2, 4, 4), (1, 2, 2), kind)(model.tokenizer(clips()))
            torch.testing.assert_close(model.forward_features(clips()).tokens, wanted)


def test_rates_rise_from_the_first_block_to_the_last():
    model = ViT(**SMALL, encoder="factorised", drop_path=0.3, dropout=0.25)
    kept = [block.drop_path.kept.item() for block in model.blocks]
    assert kept == pytest.approx([1.0, 0.9, 0.8, 0.7])
    assert not any(block.drop_path.drops for block in model.temporal.blocks)
    assert model.head.dropout.p == 0.25


def test_linear_layers_begin_as_vits():
    torch.manual_seed(0)
    model = ViT(**SMALL, encoder="factorised")
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and name.startswith(("blocks.", "temporal.")):
            bound = math.sqrt(6 / (module.in_features + module.out_features))
            assert 0.95 * bound < module.weight.abs().max() <= bound, name
            assert not module.bias.any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"pool": "mean"}, "pool 'mean': choose average, average_norm, class, attentive"),
     ({"tokens": "few"}, "tokens 'few': choose all, resize, random, merge"),
     ({"encoder": "factorised", "pool": "class"}, "takes all tokens and has no class token"),
     ({"encoder": "factorised", "tokens": "merge"}, "takes all tokens and has no class token"),
     ({"encoder": "factorised", "tokens": "resize"}, "takes all tokens and has no class token")],
)  # fmt: skip
def test_mistakes_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        ViT(**SMALL, **arguments)
    for pool in ("average", "average_norm", "attentive"):
        ViT(**{**SMALL, "depth": 1}, encoder="factorised", pool=pool)
