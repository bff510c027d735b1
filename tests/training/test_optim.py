import logging

import pytest
import torch
from torch import nn

from lookupvit_video.checkpoints.checkpoint import load_checkpoint, training_checkpoints
from lookupvit_video.config import load_config
from lookupvit_video.distributed.parallel import clip_gradients, full_state, load_optimizer
from lookupvit_video.models.adapters import is_adapter
from lookupvit_video.models.blocks import LocalMixing
from lookupvit_video.models.build import build_model, model_spec
from lookupvit_video.training.optim import (
    build_optimizer,
    build_schedule,
    learning_rate_factor,
    parameter_groups,
    set_learning_rate,
    set_trainable,
)
from tests.models.test_models import MODELS, SMALL, clips, config, loss, small_model
from tests.small import make_videos, run_net, settings

ADAPTED = [
    ("lookupvit", "MODEL.ADAPTER lora"),
    ("factorised", "MODEL.ADAPTER adaptformer MODEL.TRAIN_NORMS True"),
    ("vit factorised", "MODEL.ADAPTER lora MODEL.FREEZE_SPATIAL True"),
]
LAYERS = nn.Linear | nn.Conv2d | nn.Conv3d | LocalMixing
every_training = pytest.mark.parametrize(("name", "overrides"), [*((name, "") for name in MODELS), *ADAPTED])


@every_training
def test_each_trainable_parameter_is_in_one_group_and_only_weights_of_linear_layers_and_convolutions_decay(
    name, overrides
):
    model = small_model(name, overrides)
    groups = parameter_groups(model, weight_decay=0.05, layer_decay=0.5)
    grouped = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in model.parameters() if p.requires_grad)
    # Told by the kind of layer, not by name: norms, biases, positions, tokens, queries and scales are what is left.
    weights = {id(m.weight): n for n, m in model.named_modules() if isinstance(m, LAYERS)}
    names = {id(parameter): parameter_name for parameter_name, parameter in model.named_parameters()}
    for group in groups:
        for parameter in group["params"]:
            weight = id(parameter) in weights or ".lora_" in names[id(parameter)]
            assert group["weight_decay"] == (0.05 if weight else 0.0), names[id(parameter)]


@every_training
def test_layer_decay_falls_from_the_heads_to_the_tokenizer(name, overrides):
    model = small_model(name, overrides)
    temporal = getattr(model, "temporal", None)
    depth, temporal_depth = len(model.blocks), len(temporal.blocks) if temporal else 0
    top = depth + temporal_depth + 1
    layers = {id(parameter): top for parameter in model.parameters()}
    parts = [(model.tokenizer, 0), *((block, i + 1) for i, block in enumerate(model.blocks))]
    if temporal:
        norms = getattr(model, "frame_norms", None) or model.frame_norm
        parts += [(norms, depth + 1), (temporal, depth + 1)]
        parts += [(block, depth + 1 + i) for i, block in enumerate(temporal.blocks)]
    for part, layer in parts:
        layers.update({id(p): layer for p_name, p in part.named_parameters() if not is_adapter(f".{p_name}")})
    for token in ("class_token", "registers"):
        if getattr(model, token, None) is not None:
            layers[id(getattr(model, token))] = 0
    for parameter_name, parameter in model.named_parameters():
        assert model.layer_ids()[parameter_name] == layers[id(parameter)], parameter_name
    for group in parameter_groups(model, 0.05, 0.5):
        for parameter in group["params"]:
            assert group["lr_scale"] == 0.5 ** (top - layers[id(parameter)])
    without = parameter_groups(model, 0.05, 1.0)
    assert len(without) <= 2
    assert {group["lr_scale"] for group in without} == {1.0}


@pytest.mark.parametrize(
    ("overrides", "powers"),
    [
        (  # As MAE's and BEiT's fine-tuning code number the layers of ViT-B: 13 below the head, 12 blocks, the head.
            "MODEL.ARCH vit MODEL.POOL class",
            {"tokenizer.projection.weight": 13, "tokenizer.positions": 13, "class_token": 13, "head.norm.weight": 0,
             "blocks.0.attention.qkv.weight": 12, "blocks.5.norm_mlp.bias": 7, "blocks.11.mlp.2.weight": 1,
             "head.linear.weight": 0, "head.linear.bias": 0},
        ),
        (
            "MODEL.ADAPTER adaptformer MODEL.TRAIN_NORMS True",
            {"blocks.0.norm_gather_lookup.weight": 12, "blocks.11.refine.norm_mlp.weight": 1,
             "blocks.0.lookup_mlp.adapter.down.weight": 0, "heads.lookup.linear.weight": 0},
        ),
        (  # Four temporal blocks stand between the twelve of the spatial stage and the heads.
            "MODEL.ENCODER factorised MODEL.COMPRESSED_GRID [7,7]",
            {"tokenizer.positions": 17, "blocks.0.cross_attention.query.weight": 16, "frame_norms.lookup.weight": 4,
             "blocks.11.refine.mlp.0.weight": 5, "temporal.positions": 4, "temporal.blocks.0.mlp.0.weight": 4,
             "temporal.blocks.3.mlp.0.weight": 1, "heads.compressed.norm.weight": 0},
        ),
    ],
)  # fmt: skip
def test_layer_decay_of_base_models(overrides, powers):
    with torch.device("meta"):
        model = build_model(load_config(None, overrides.split()))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = parameter_groups(model, 0.05, 0.75)
    scales = {names[id(parameter)]: group["lr_scale"] for group in groups for parameter in group["params"]}
    for name, power in powers.items():
        assert scales[name] == pytest.approx(0.75**power), name


def schedule_of(cfg):
    solver, factor = cfg.SOLVER, learning_rate_factor(cfg.TRAIN.BATCH_SIZE, cfg.SOLVER.BASE_LR_BATCH)
    return build_schedule(solver.WARMUP_START_LR, solver.BASE_LR, solver.COSINE_END_LR,
                          warmup_epochs=solver.WARMUP_EPOCHS, epochs=solver.MAX_EPOCH, factor=factor)  # fmt: skip


def frozen_at_first(cfg, model):
    """Return the names of the parameters that a run freezes for SOLVER.FREEZE_EPOCHS."""
    spec = model_spec(cfg)
    return {name for name, _ in model.named_parameters() if cfg.SOLVER.FREEZE_EPOCHS and spec.is_frozen(name)}


def test_schedule_warms_up_then_falls_as_a_cosine():
    settings = ["SOLVER.BASE_LR", "1.0", "SOLVER.MAX_EPOCH", "10", "SOLVER.WARMUP_EPOCHS", "2",
                "SOLVER.WARMUP_START_LR", "0.1", "SOLVER.COSINE_END_LR", "0.0"]  # fmt: skip
    rate = schedule_of(load_config(None, settings))
    assert rate(0.0) == pytest.approx(0.1)
    assert rate(0.1) == pytest.approx(0.55)
    assert rate(0.2) == pytest.approx(1.0)
    assert rate(0.6) == pytest.approx(0.5)
    assert rate(1.0 - 1e-9) == pytest.approx(0.0, abs=1e-6)
    no_warmup = schedule_of(load_config(None, ["SOLVER.WARMUP_EPOCHS", "0", "SOLVER.BASE_LR", "1.0"]))
    assert no_warmup(0.0) == pytest.approx(1.0)
    # Written for 256 clips and run with 64: a quarter, from the first rate to the last.
    scaled = schedule_of(load_config(None, [*settings, "SOLVER.BASE_LR_BATCH", "256", "TRAIN.BATCH_SIZE", "64"]))
    for share in (0.0, 0.1, 0.2, 0.6, 0.9):
        assert scaled(share) == pytest.approx(rate(share) / 4)


@pytest.mark.parametrize("method", ["adamw", "sgd"])
def test_an_optimizer_step_follows_the_groups_factors(method, caplog):
    cfg = load_config(None, [*SMALL, "SOLVER.OPTIMIZING_METHOD", method, "SOLVER.LAYER_DECAY", "0.5",
                             "SOLVER.BASE_LR_BATCH", "128"])  # fmt: skip
    model = build_model(cfg)
    with caplog.at_level(logging.INFO):
        optimizer = build_optimizer(cfg, model)
    total = sum(parameter.numel() for parameter in model.parameters())
    assert f"{method}, fused, peak learning rate 0.00025 = 0.0005 x 64 / 128" in caplog.text
    assert f"trains {total} of {total} parameters (100.00 %)" in caplog.text
    set_learning_rate(optimizer, 0.2)
    assert sorted({round(group["lr"], 6) for group in optimizer.param_groups}) == [0.025, 0.05, 0.1, 0.2]
    before = model.heads["lookup"].linear.weight.clone()
    torch.stack(model.train()(torch.randn(2, 3, 4, 32, 32))).square().sum().backward()
    optimizer.step()
    assert not torch.equal(before, model.heads["lookup"].linear.weight)


def test_the_optimizers_settings_are_the_configs():
    model = small_model()
    adamw = build_optimizer(load_config(None, [*SMALL, "SOLVER.BETAS", "[0.8,0.95]", "SOLVER.WEIGHT_DECAY", "0.3",
                                               "SOLVER.BASE_LR", "0.25"]), model)  # fmt: skip
    assert type(adamw) is torch.optim.AdamW
    assert {group["weight_decay"] for group in adamw.param_groups} == {0.0, 0.3}
    for group in adamw.param_groups:
        assert (group["betas"], group["lr"], group["eps"]) == ((0.8, 0.95), 0.25, 1e-8)
        assert not group["amsgrad"]
    default = build_optimizer(load_config(None, SMALL), model)
    assert {group["betas"] for group in default.param_groups} == {(0.9, 0.999)}  # as VideoMAE's and MAE's
    sgd = [*SMALL, "SOLVER.OPTIMIZING_METHOD", "sgd", "SOLVER.BASE_LR_BATCH", "256", "TRAIN.BATCH_SIZE", "64"]
    for momentum in (0.0, 0.7):
        optimizer = build_optimizer(load_config(None, [*sgd, "SOLVER.MOMENTUM", str(momentum)]), model)
        assert type(optimizer) is torch.optim.SGD
        for group in optimizer.param_groups:
            assert group["momentum"] == momentum
            assert group["nesterov"] == (momentum > 0)  # torch has none without momentum
            assert group["dampening"] == 0
            assert group["lr"] == pytest.approx(5e-4 / 4)


def test_two_steps_of_sgd_are_nesterovs():
    """v = m v + g; w = w - lr (g + m v): with a gradient of 1, steps of 1 + m and 1 + m (1 + m)."""
    cfg = load_config(None, [*SMALL, "SOLVER.OPTIMIZING_METHOD", "sgd", "SOLVER.MOMENTUM", "0.5",
                             "SOLVER.WEIGHT_DECAY", "0"])  # fmt: skip
    model = small_model()
    optimizer = build_optimizer(cfg, model)
    set_learning_rate(optimizer, 0.1)
    weight = model.tokenizer.projection.bias
    steps = []
    for _ in range(2):
        before = weight.detach().clone()
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
        steps.append((before - weight.detach()).mean().item())
    assert steps == pytest.approx([0.15, 0.175], rel=1e-4)


@pytest.mark.parametrize(
    ("method", "freeze", "fused"),
    [("adamw", "", True), ("adamw", "SOLVER.FREEZE_EPOCHS 2", True), ("sgd", "", True),
     ("sgd", "SOLVER.FREEZE_EPOCHS 2", None)],
)  # fmt: skip
def test_steps_are_fused_where_torch_can(method, freeze, fused, caplog):
    overrides = ["SOLVER.OPTIMIZING_METHOD", method, "MODEL.FREEZE_ENCODER", "True", *freeze.split()]
    with caplog.at_level(logging.INFO):
        model = small_model("lookupvit", " ".join(overrides))
        optimizer = build_optimizer(load_config(None, [*SMALL, *overrides]), model)
    assert {group["fused"] for group in optimizer.param_groups} == {fused}
    assert (f"{method}, fused, peak learning rate 0.0005, trains" in caplog.text) == bool(fused)
    assert ("the frozen ones from epoch 2 on" in caplog.text) == bool(freeze)
    total = sum(p.numel() for p in model.parameters())
    trained = sum(p.numel() for n, p in model.named_parameters() if freeze or n.startswith("heads."))
    assert f"trains {trained} of {total} parameters ({100 * trained / total:.2f} %)" in caplog.text


def test_the_linear_scaling_rule():
    for batch, written_for, factor in ((64, 256, 0.25), (512, 256, 2.0), (64, 0, 1.0)):
        assert learning_rate_factor(batch, written_for) == factor


def test_warmup_is_counted_in_epochs():
    cfg = load_config(None, "SOLVER.MAX_EPOCH 8 SOLVER.WARMUP_EPOCHS 2 SOLVER.BASE_LR 1.0 SOLVER.WARMUP_START_LR 0.5 \
                             SOLVER.COSINE_END_LR 0.2".split())  # fmt: skip
    rate = schedule_of(cfg)
    wanted = {0: 0.5, 1 / 8: 0.75, 2 / 8: 1.0, 3.5 / 8: 0.6 + 0.4 * 2**-0.5, 5 / 8: 0.6, 6.5 / 8: 0.6 - 0.4 * 2**-0.5}
    assert [rate(share) for share in wanted] == pytest.approx(list(wanted.values()))
    assert rate(1 - 1e-9) == pytest.approx(0.2)


@pytest.mark.parametrize("method", ["adamw", "sgd"])
def test_a_device_without_fused_kernels_gets_torchs_own_choice(method):
    cfg = load_config(None, [*SMALL, "SOLVER.OPTIMIZING_METHOD", method])
    with torch.device("meta"):
        optimizer = build_optimizer(cfg, build_model(cfg))
    assert all(not group["fused"] and group["foreach"] is None for group in optimizer.param_groups)


def start(name, overrides):
    cfg = config(name, overrides)
    model = small_model(name, overrides).train()
    return cfg, model, build_optimizer(cfg, model)


def take_steps(training, first, last, steps_per_epoch=2):
    """Make the optimiser steps from ``first`` up to ``last`` as the loop does; return the gradient's norms."""
    cfg, model, optimizer = training
    norms = []
    for step in range(first, last):
        torch.manual_seed(step)
        set_learning_rate(optimizer, 0.01)
        set_trainable(model, frozen_at_first(cfg, model), step / steps_per_epoch >= cfg.SOLVER.FREEZE_EPOCHS)
        loss(model(torch.randn(2, 3, 4, 32, 32))).backward()
        norms.append(clip_gradients(model, 1.0))
        optimizer.step()
        optimizer.zero_grad()
    return norms


def different(one, other):
    assert one.keys() == other.keys()
    return [name for name in one if not torch.equal(one[name], other[name])]


@pytest.mark.parametrize("method", ["adamw", "sgd"])
@pytest.mark.parametrize(
    ("name", "freeze"), [("lookupvit", "MODEL.FREEZE_ENCODER True"), ("vit factorised", "MODEL.FREEZE_SPATIAL True")]
)
def test_what_is_frozen_at_first_stays_as_if_it_had_no_gradients_and_then_trains(name, freeze, method):
    overrides = f"{freeze} SOLVER.OPTIMIZING_METHOD {method} SOLVER.MAX_EPOCH 4 SOLVER.WARMUP_EPOCHS 0"
    never = start(name, overrides)
    at_first = start(name, f"{overrides} SOLVER.FREEZE_EPOCHS 1.5")  # three steps
    begun = {key: value.clone() for key, value in at_first[1].state_dict().items()}
    assert torch.equal(torch.stack(take_steps(never, 0, 3)), torch.stack(take_steps(at_first, 0, 3)))
    state = at_first[1].state_dict()
    assert different(never[1].state_dict(), state) == []
    frozen = {key for key, parameter in never[1].named_parameters() if not parameter.requires_grad}
    assert frozen & set(different(begun, state)) == set()
    assert frozen < set(begun)
    # In the middle: saved, loaded into a fresh run, and on over the thaw, beside the run that was not disturbed.
    weights, moments = full_state(at_first[1], at_first[2])
    resumed = start(name, f"{overrides} SOLVER.FREEZE_EPOCHS 1.5 RNG_SEED 1")
    resumed[1].load_state_dict(weights)
    load_optimizer(resumed[1], resumed[2], moments)
    assert torch.equal(torch.stack(take_steps(at_first, 3, 6)), torch.stack(take_steps(resumed, 3, 6)))
    assert different(at_first[1].state_dict(), resumed[1].state_dict()) == []
    still = different(weights, at_first[1].state_dict())
    assert {key for key in frozen if "norm_key.bias" not in key} <= set(still)
    # What thaws starts with fresh moments: as a run that begins there, with heads that have theirs.
    if method == "adamw":
        steps = {int(s["step"]) for s in at_first[2].state.values()}
        assert steps == {3, 6}


def test_nothing_is_kept_for_a_backward_pass_through_what_is_frozen_at_first():
    cfg, model, _ = start("lookupvit", "MODEL.FREEZE_ENCODER True SOLVER.FREEZE_EPOCHS 1.5")
    for epoch, thawed in ((0.0, False), (1.4, False), (1.5, True)):
        set_trainable(model, frozen_at_first(cfg, model), epoch >= cfg.SOLVER.FREEZE_EPOCHS)
        features = model.forward_features(clips())
        assert features.compressed.requires_grad is features.tokens.requires_grad is thawed
    cfg, model, _ = start("lookupvit", "")
    set_trainable(model, frozen_at_first(cfg, model), False)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_run_thaws_at_its_epoch(tmp_path):
    make_videos(tmp_path / "data", count=4)
    done = run_net(
        settings(tmp_path / "data", tmp_path / "run", MODEL__FREEZE_ENCODER=True, SOLVER__FREEZE_EPOCHS=2.0,
                 SOLVER__MAX_EPOCH=3, TRAIN__KEEP_CHECKPOINTS=3, TRAIN__EVAL_PERIOD=0, TEST__ENABLE=False)
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert ", the frozen ones from epoch 2 on" in done.stderr
    third, second, first = (load_checkpoint(path).model for path in training_checkpoints(tmp_path / "run"))
    assert all(name.startswith("heads.") for name in different(first, second))
    assert any(name.startswith("heads.") for name in different(first, second))
    assert {"tokenizer.positions", "blocks.0.refine.mlp.0.weight"} <= set(different(second, third))
