import pytest
import torch
from torch import nn

from lookupvit_video.config import load_config
from lookupvit_video.engine.optim import build_optimizer, build_schedule, layer_of, parameter_groups, set_learning_rate
from lookupvit_video.models.build import build_model
from tests.models.test_models import SMALL, every_model, small_model


@every_model
def test_each_trainable_parameter_is_in_one_group_and_only_weights_of_linear_layers_and_convolutions_decay(name):
    model = small_model(name)
    groups = parameter_groups(model, weight_decay=0.05, layer_decay=0.5)
    grouped = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in model.parameters() if p.requires_grad)
    # Told by the kind of layer, not by name: norms, biases, positions, tokens, queries and scales are what is left.
    weights = {id(m.weight): n for n, m in model.named_modules() if isinstance(m, nn.Linear | nn.Conv3d)}
    names = {id(parameter): parameter_name for parameter_name, parameter in model.named_parameters()}
    for group in groups:
        for parameter in group["params"]:
            assert group["weight_decay"] == (0.05 if id(parameter) in weights else 0.0), names[id(parameter)]


@every_model
def test_layer_decay_falls_from_the_heads_to_the_tokenizer(name):
    model = small_model(name)
    temporal = getattr(model, "temporal", None)
    depth, temporal_depth = len(model.blocks), len(temporal.blocks) if temporal else 0
    top = depth + temporal_depth + 1
    layers = {id(parameter): top for parameter in model.parameters()}
    parts = [(model.tokenizer, 0), *((block, i + 1) for i, block in enumerate(model.blocks))]
    if temporal:
        parts += [(temporal, depth + 1), *((block, depth + 1 + i) for i, block in enumerate(temporal.blocks))]
    for part, layer in parts:
        layers.update({id(parameter): layer for parameter in part.parameters()})
    if getattr(model, "class_token", None) is not None:
        layers[id(model.class_token)] = 0
    for parameter_name, parameter in model.named_parameters():
        assert layer_of(parameter_name, depth, temporal_depth) == layers[id(parameter)], parameter_name
    for group in parameter_groups(model, 0.05, 0.5):
        for parameter in group["params"]:
            assert group["lr_scale"] == 0.5 ** (top - layers[id(parameter)])
    without = parameter_groups(model, 0.05, 1.0)
    assert len(without) == 2
    assert {group["lr_scale"] for group in without} == {1.0}


def test_schedule_warms_up_then_falls_as_a_cosine():
    cfg = load_config(None, ["SOLVER.BASE_LR", "1.0", "SOLVER.MAX_EPOCH", "10", "SOLVER.WARMUP_EPOCHS", "2",
                             "SOLVER.WARMUP_START_LR", "0.1", "SOLVER.COSINE_END_LR", "0.0"])  # fmt: skip
    rate = build_schedule(cfg)
    assert rate(0.0) == pytest.approx(0.1)
    assert rate(0.1) == pytest.approx(0.55)
    assert rate(0.2) == pytest.approx(1.0)
    assert rate(0.6) == pytest.approx(0.5)
    assert rate(1.0 - 1e-9) == pytest.approx(0.0, abs=1e-6)
    no_warmup = build_schedule(load_config(None, ["SOLVER.WARMUP_EPOCHS", "0", "SOLVER.BASE_LR", "1.0"]))
    assert no_warmup(0.0) == pytest.approx(1.0)


@pytest.mark.parametrize("method", ["adamw", "sgd"])
def test_an_optimizer_step_follows_the_groups_factors(method):
    cfg = load_config(None, [*SMALL, "SOLVER.OPTIMIZING_METHOD", method, "SOLVER.LAYER_DECAY", "0.5"])
    model = build_model(cfg)
    optimizer = build_optimizer(cfg, model)
    set_learning_rate(optimizer, 0.2)
    assert sorted({round(group["lr"], 6) for group in optimizer.param_groups}) == [0.025, 0.05, 0.1, 0.2]
    before = model.heads["lookup"].linear.weight.clone()
    torch.stack(model.train()(torch.randn(2, 3, 4, 32, 32))).square().sum().backward()
    optimizer.step()
    assert not torch.equal(before, model.heads["lookup"].linear.weight)
