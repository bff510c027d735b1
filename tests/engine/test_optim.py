import pytest
import torch

from lookupvit_video.config import load_config
from lookupvit_video.engine.optim import build_optimizer, build_schedule, parameter_groups, set_learning_rate
from lookupvit_video.models.build import build_model
from tests.models.test_models import SMALL


def small_model(arch="lookupvit"):
    return build_model(load_config(None, [*SMALL, "MODEL.ARCH", arch]))


@pytest.mark.parametrize("arch", ["lookupvit", "vit"])
def test_groups_hold_each_parameter_once_and_spare_norms_biases_and_positions(arch):
    model = small_model(arch)
    groups = parameter_groups(model, weight_decay=0.05, layer_decay=0.5)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    grouped = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(grouped) == sorted(names)
    for group in groups:
        for parameter in group["params"]:
            name = names[id(parameter)]
            spared = name.endswith("bias") or "norm" in name or name == "tokenizer.positions"
            assert group["weight_decay"] == (0.0 if spared else 0.05), name


def test_layer_decay_falls_from_the_heads_to_the_tokenizer():
    model = small_model()
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    scale = {names[id(p)]: g["lr_scale"] for g in parameter_groups(model, 0.05, 0.5) for p in g["params"]}
    assert scale["heads.compressed.linear.weight"] == 1.0
    assert scale["blocks.1.lookup_mlp.0.weight"] == 0.5
    assert scale["blocks.0.refine.mlp.0.bias"] == 0.25
    assert scale["tokenizer.positions"] == 0.125
    assert len(parameter_groups(model, 0.05, 1.0)) == 2


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
