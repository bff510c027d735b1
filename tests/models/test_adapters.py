"""Adapters and LoRA in every kind of block; what is frozen. What every model must do: test_models.py."""

import math

import pytest
import torch
from torch import nn

from lookupvit_video.checkpoints.checkpoint import load_checkpoint
from lookupvit_video.config import load_config
from lookupvit_video.inference.predictor import load_model
from lookupvit_video.models.adapters import AdaptedMLP, Adapter, LoRALinear, add_adapters, is_adapter, merge_lora
from lookupvit_video.models.build import build_model
from lookupvit_video.models.pretrained import init_from
from lookupvit_video.training.optim import build_optimizer
from tests.models.test_models import SMALL, clips, config, loss, small_model
from tests.small import call_tool, make_videos, run_net, settings

BASES = ["qk_norm", "factorised", "compressed only", "vit factorised", "vit merge class"]
KINDS = ["adaptformer", "lora"]
both = pytest.mark.parametrize("kind", KINDS)
every_base = pytest.mark.parametrize("name", BASES)


def adapted(name="lookupvit", kind="lora", overrides="", seed=0):
    """Build an adapted model in which the additions are not at their start of zero."""
    model = small_model(name, f"MODEL.ADAPTER {kind} MODEL.ADAPTER_WIDTH 3 {overrides}", seed)
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if is_adapter(parameter_name):
                parameter.add_(torch.randn_like(parameter), alpha=0.3)
    return model


def head_or_adapter(name):
    return name.startswith(("head.", "heads.")) or is_adapter(name)


def assert_starts_as(model, plain):
    """The same weights under the same names, adapters besides, and the same answers."""
    own = model.state_dict()
    for key, value in plain.state_dict().items():
        assert torch.equal(own.pop(key), value), key
    assert own
    assert all(is_adapter(key) for key in own)
    with torch.no_grad():
        torch.testing.assert_close(model(clips()), plain(clips()), rtol=0, atol=0)


@both
@every_base
def test_an_adapted_model_starts_as_the_plain_one_and_keeps_its_names(name, kind):
    torch.manual_seed(0)
    plain = build_model(config(name)).eval()
    torch.manual_seed(0)
    model = build_model(config(name, f"MODEL.ADAPTER {kind}")).eval()
    assert_starts_as(model, plain)
    with torch.no_grad():
        changed = adapted(name, kind).eval()
        changed.load_state_dict(plain.state_dict(), strict=False)
        assert not torch.equal(changed(clips()), plain(clips()))


@both
@every_base
def test_every_mlp_or_linear_layer_of_the_blocks_is_adapted_and_no_other(name, kind):
    plain, model = small_model(name), adapted(name, kind)
    stages = ("blocks.", "temporal.blocks.")
    sites = {
        key: module
        for key, module in plain.named_modules()
        if key.startswith(stages) and isinstance(module, nn.Linear if kind == "lora" else nn.Sequential)
    }
    found = {key for key, module in model.named_modules() if isinstance(module, LoRALinear | AdaptedMLP)}
    assert found == set(sites) != set()
    added = sum(p.numel() for key, p in model.named_parameters() if is_adapter(key))
    if kind == "lora":
        assert added == sum(3 * (linear.in_features + linear.out_features) for linear in sites.values())
    else:
        assert added == len(sites) * (24 * 3 + 3 + 3 * 24 + 24)


@pytest.mark.parametrize(
    ("name", "overrides", "trains"),
    [
        ("lookupvit", "MODEL.ADAPTER lora", head_or_adapter),
        ("vit factorised", "MODEL.ADAPTER adaptformer", head_or_adapter),
        ("qk_norm", "MODEL.ADAPTER lora MODEL.TRAIN_NORMS True", lambda n: head_or_adapter(n) or "norm" in n),
        ("factorised", "MODEL.FREEZE_ENCODER True MODEL.TRAIN_NORMS True", lambda n: "heads." in n or "norm" in n),
        ("factorised", "MODEL.FREEZE_SPATIAL True", lambda n: not n.startswith(("tokenizer.", "blocks."))),
        (
            "vit factorised",
            "MODEL.FREEZE_SPATIAL True MODEL.ADAPTER lora",
            lambda n: is_adapter(n) or not n.startswith(("tokenizer.", "blocks.")),
        ),
        ("lookupvit", "MODEL.FREEZE_ENCODER True SOLVER.FREEZE_EPOCHS 2", lambda n: True),
    ],
)
def test_what_trains(name, overrides, trains):
    model = build_model(config(name, overrides))
    for parameter_name, parameter in model.named_parameters():
        assert parameter.requires_grad == trains(parameter_name), parameter_name
    if "SPATIAL" in overrides:
        assert not any(is_adapter(key) for key, _ in model.temporal.named_parameters())  # it trains itself
    cfg = config(name, f"{overrides} SOLVER.WARMUP_EPOCHS 0")
    model = adapted(name, overrides.split("ADAPTER ")[1].split()[0]) if "ADAPTER" in overrides else small_model(name)
    model.requires_grad_(True)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    model = build_model(config(name, overrides.replace("MODEL.ADAPTER ", "MODEL.ADAPTER_WIDTH 3 MODEL.ADAPTER ")))
    model.load_state_dict(state, strict=False)
    optimizer = build_optimizer(cfg, model)
    before = {key: value.clone() for key, value in model.named_parameters()}
    loss(model.train()(clips())).backward()
    optimizer.step()
    for key, value in model.named_parameters():
        if "norm_key.bias" not in key and "lora_down" not in key:  # a shift of all keys moves no softmax
            assert torch.equal(before[key], value) != trains(key), key


@every_base
def test_merging_lora_leaves_the_plain_model_that_computes_the_same(name):
    plain, model = small_model(name).double().eval(), adapted(name, "lora", "MODEL.ADAPTER_SCALE 0.7").double().eval()
    with torch.no_grad():
        before = model(clips().double())
        assert merge_lora(model) is model
        torch.testing.assert_close(model(clips().double()), before, rtol=0, atol=1e-10)
        assert list(model.state_dict()) == list(plain.state_dict())
        assert [type(module) for module in model.modules()] == [type(module) for module in plain.modules()]
        plain.load_state_dict(model.state_dict())
        assert torch.equal(plain(clips().double()), model(clips().double()))


def test_merging_in_float32_and_of_what_has_no_lora():
    model = adapted().eval()
    with torch.no_grad():
        before = model(clips())
        torch.testing.assert_close(merge_lora(model)(clips()), before, rtol=1e-5, atol=1e-5)
    adaptformer = adapted(kind="adaptformer").eval()
    want = adaptformer(clips())
    assert torch.equal(merge_lora(adaptformer)(clips()), want)


@pytest.mark.parametrize("name", ["factorised", "vit factorised"])
def test_a_temporal_transformer_that_starts_as_the_identity_hands_the_frames_to_the_head(name):
    model, random = (small_model(name, f"MODEL.TEMPORAL_INIT {init}").eval() for init in ("identity", "random"))
    torch.manual_seed(0)
    fresh = build_model(config(name, "MODEL.TEMPORAL_INIT identity")).eval()
    frames = torch.randn(3, 2, 24)
    with torch.no_grad():
        torch.testing.assert_close(fresh.temporal(frames), frames + fresh.temporal.positions, rtol=0, atol=0)
        assert 0 < fresh.temporal.positions.abs().max() <= 0.02
        assert not torch.allclose(random.temporal(frames), frames, atol=0.1)
    loss(model.train()(clips())).backward()  # what is zero learns at once
    assert all(block.mlp[2].weight.grad.abs().max() > 0 for block in model.temporal.blocks)


def test_a_frozen_spatial_stage_keeps_nothing_for_the_backward_pass():
    model = build_model(config("factorised", "MODEL.FREEZE_SPATIAL True")).train()
    features = model.forward_features(clips())
    assert not features.tokens.requires_grad
    assert not features.compressed.requires_grad


@both
@pytest.mark.parametrize("name", ["lookupvit", "vit factorised"])
def test_weights_of_the_plain_model_fill_an_adapted_one(tmp_path, name, kind):
    plain, model = small_model(name, "MODEL.NUM_CLASSES 4"), adapted(name, kind, seed=1)
    torch.save(plain.state_dict(), tmp_path / "plain.pt")
    report = init_from(model, str(tmp_path / "plain.pt"))
    assert {key for key in report.fresh if not is_adapter(key)} == {
        key for key in model.state_dict() if "linear" in key and key.startswith("head")
    }
    assert report.left_out
    for key, value in plain.state_dict().items():
        assert "linear" in key or torch.equal(model.state_dict()[key], value), key


@pytest.mark.parametrize(
    ("name", "kind", "target", "mend"),
    [
        ("lookupvit", "lora", "", r"blocks\.0\..*lora_.* lookupvit merge-lora .*file\.pt --out merged\.pt"),
        ("vit", "lora", "MODEL.ARCH lookupvit", "lookupvit merge-lora"),
        (
            "lookupvit",
            "adaptformer",
            "MODEL.ADAPTER lora",
            r"\.adapter\..* set MODEL\.ADAPTER adaptformer",
        ),
        (
            "lookupvit",
            "lora",
            "MODEL.ADAPTER lora MODEL.ADAPTER_WIDTH 5",
            "set MODEL.ADAPTER_WIDTH to that",
        ),
    ],
)
def test_additions_of_the_source_are_never_lost(tmp_path, name, kind, target, mend):
    torch.save(adapted(name, kind).state_dict(), tmp_path / "file.pt")
    with pytest.raises(ValueError, match=mend):
        init_from(small_model(name, target), str(tmp_path / "file.pt"))
    same = small_model(name, f"MODEL.ADAPTER {kind} MODEL.ADAPTER_WIDTH 3", seed=3)
    init_from(same, str(tmp_path / "file.pt"))
    with torch.no_grad():
        assert torch.equal(same.eval()(clips()), adapted(name, kind).eval()(clips()))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            "MODEL.ARCH x3d MODEL.VARIANT XS MODEL.ADAPTER lora",
            r"MODEL\.ADAPTER lora is only for .* or vit;",
        ),
        ("MODEL.ADAPTER lora MODEL.FREEZE_ENCODER True", r"MODEL\.ADAPTER freezes the encoder itself"),
        (
            "MODEL.ADAPTER peft",
            r"MODEL\.ADAPTER is 'peft'; choose one of none, adaptformer, adaptformer_code, lora, connector",
        ),
        ("MODEL.ADAPTER_WIDTH -1", r"MODEL\.ADAPTER_WIDTH is -1; it must be at least 0"),
        ("MODEL.FREEZE_SPATIAL True", r"MODEL\.FREEZE_SPATIAL True is only for .* factorised"),
        ("MODEL.TEMPORAL_INIT identity", r"MODEL\.TEMPORAL_INIT identity is only for"),
        (
            "MODEL.ENCODER factorised MODEL.COMPRESSED_GRID [7,7] MODEL.FREEZE_SPATIAL True MODEL.FREEZE_ENCODER True",
            r"MODEL\.FREEZE_ENCODER and MODEL\.FREEZE_SPATIAL: set one only",
        ),
        (
            "MODEL.ENCODER factorised MODEL.COMPRESSED_GRID [7,7] MODEL.FREEZE_SPATIAL True MODEL.DROP_PATH 0.1",
            r"MODEL\.FREEZE_SPATIAL needs MODEL\.DROP_PATH 0",
        ),
        ("MODEL.TRAIN_NORMS True", r"MODEL\.TRAIN_NORMS is only for"),
        ("SOLVER.FREEZE_EPOCHS 2", r"SOLVER\.FREEZE_EPOCHS is 2\.0; it is only for MODEL\.FREEZE_ENCODER"),
        ("SOLVER.FREEZE_EPOCHS 2 MODEL.ADAPTER lora", r"SOLVER\.FREEZE_EPOCHS is 2\.0; .* without ADAPTER"),
        ("SOLVER.FREEZE_EPOCHS 30 MODEL.FREEZE_ENCODER True", r"SOLVER\.FREEZE_EPOCHS is 30\.0; .* below .* 30"),
        ("SOLVER.BASE_LR_BATCH -1", r"SOLVER\.BASE_LR_BATCH is -1"),
    ],
)
def test_settings_that_do_not_fit_are_named(overrides, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        load_config(None, overrides.split())


@pytest.mark.parametrize(
    "overrides",
    [
        "MODEL.ADAPTER lora MODEL.DROP_PATH 0.1 MODEL.TRAIN_NORMS True",
        "MODEL.FREEZE_ENCODER True MODEL.DROP_PATH 0.1 SOLVER.FREEZE_EPOCHS 2",
    ],
)
def test_drop_path_goes_with_blocks_that_learn(overrides):
    load_config(None, overrides.split())


def test_a_kind_that_is_not_there():
    with pytest.raises(
        ValueError, match="adapters 'prefix': choose adaptformer or adaptformer_code or lora or connector"
    ):
        add_adapters(nn.ModuleList(), "prefix")


def test_from_a_checkpoint_over_lora_to_a_merged_model_that_predicts(tmp_path):
    """The whole way, with the commands: train, tune, merge, predict; only the additions and the heads have changed."""
    make_videos(tmp_path / "data", count=6)
    short = {"SOLVER__MAX_EPOCH": 1, "SOLVER__WARMUP_EPOCHS": 0, "TRAIN__EVAL_PERIOD": 0}
    first = run_net(settings(tmp_path / "data", tmp_path / "first", **short, TEST__ENABLE=False))
    assert first.returncode == 0, first.stderr
    tuned = run_net(
        settings(tmp_path / "data", tmp_path / "tuned", **short, MODEL__ADAPTER="lora", SOLVER__BASE_LR="1e-1",
                 MODEL__INIT_FROM=tmp_path / "first" / "model.pt")
    )  # fmt: skip
    assert tuned.returncode == 0, tuned.stderr
    before, after = (load_checkpoint(tmp_path / run / "model.pt").model for run in ("first", "tuned"))
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    assert changed
    assert all(key.startswith("heads.") for key in changed)
    assert any(after[key].abs().max() > 0 for key in after if "lora_up" in key)

    merged = tmp_path / "merged.pt"
    told = call_tool("tools/merge_lora.py", tmp_path / "tuned" / "model.pt", "--out", merged)
    assert told.returncode == 0, told.stderr
    checkpoint = load_checkpoint(merged)
    assert checkpoint.config.MODEL.ADAPTER == "none"
    assert checkpoint.model.keys() == before.keys()
    video = tmp_path / "data" / "0.mp4"
    answers = [load_model(file, "cpu").predict(video).probabilities for file in (tmp_path / "tuned/model.pt", merged)]
    assert answers[0] == pytest.approx(answers[1], abs=1e-5)

    table = call_tool("tools/compare_runs.py", tmp_path / "tuned")
    assert table.returncode == 0, table.stderr
    trains, of, *_ = table.stdout.splitlines()[-1].removeprefix("| tuned | ").split(" | ")
    added = sum(value.numel() for key, value in after.items() if head_or_adapter(key))
    assert (trains, of) == (f"{added / 1000:.1f}", f"{sum(v.numel() for v in after.values()) / 1000:.1f}")
    untested = call_tool("tools/compare_runs.py", tmp_path / "first")
    assert untested.returncode == 2
    assert "test_results.json: No such file or directory; give the OUTPUT_DIR" in untested.stderr

    again = call_tool("tools/merge_lora.py", merged, "--out", tmp_path / "again.pt")
    assert again.returncode == 2
    assert "MODEL.ADAPTER is none" in again.stderr
    assert not (tmp_path / "again.pt").exists()


def test_the_scale_is_part_of_what_a_checkpoint_computes():
    one, two = (load_config(None, [*SMALL, "MODEL.ADAPTER", "lora", "MODEL.ADAPTER_SCALE", s]) for s in ("1", "2"))
    a, b = build_model(one).eval(), build_model(two).eval()
    state = {k: v + 0.1 for k, v in a.state_dict().items()}
    a.load_state_dict(state)
    b.load_state_dict(state)
    with torch.no_grad():
        assert not torch.allclose(a(clips()), b(clips()), atol=1e-4)


# The additions in plain numbers -----------------------------------------------------------------------------------


def test_what_is_not_given_is_as_the_papers_have_it():
    """AdaptFormer (arXiv 2205.13535): 64 wide, s = 0.1; LoRA (2106.09685): rank 8, alpha = rank."""
    for kind, overrides, width, scale in (
        ("adaptformer", "", 64, 0.1), ("lora", "", 8, 1.0),
        ("adaptformer", "MODEL.ADAPTER_WIDTH 5 MODEL.ADAPTER_SCALE 0.5", 5, 0.5),
        ("lora", "MODEL.ADAPTER_WIDTH 5 MODEL.ADAPTER_SCALE 0.5", 5, 0.5),
    ):  # fmt: skip
        model = build_model(config("factorised", f"MODEL.ADAPTER {kind} {overrides}"))
        for stage in (model.blocks, model.temporal.blocks):
            found = [module for module in stage.modules() if isinstance(module, Adapter | LoRALinear)]
            assert found
            assert {module.scale for module in found} == {scale}
            widths = {(module.lora_down if kind == "lora" else module.down.weight).shape[0] for module in found}
            assert widths == {width}


def test_an_adapter_is_down_relu_up_beside_the_mlp():
    mlp = nn.Sequential(nn.Linear(4, 16), nn.GELU(), nn.Linear(16, 4)).double()
    adapted = AdaptedMLP(mlp, 3, 0.25)
    adapter = adapted.adapter
    assert adapter.down.weight.dtype == torch.float64  # as the layers beside it
    assert not any(x.any() for x in (adapter.down.bias, adapter.up.weight, adapter.up.bias))
    assert adapter.down.weight.any()
    x = torch.randn(2, 5, 4, dtype=torch.float64)
    with torch.no_grad():
        assert torch.equal(adapted(x), mlp(x))
        for parameter in adapter.parameters():
            nn.init.normal_(parameter)
        hidden = (x @ adapter.down.weight.T + adapter.down.bias).clamp(min=0)
        wanted = mlp(x) + 0.25 * (hidden @ adapter.up.weight.T + adapter.up.bias)
        torch.testing.assert_close(adapted(x), wanted)


@pytest.mark.parametrize("bias", [True, False])
def test_lora_is_the_layer_and_a_product_of_two_thin_ones(bias):
    linear = nn.Linear(4, 6, bias=bias).double()
    lora = LoRALinear(linear, 3, 0.25)
    assert lora.weight is linear.weight
    assert lora.bias is linear.bias
    assert lora.lora_down.shape == (3, 4)
    assert lora.lora_up.shape == (6, 3)
    assert lora.lora_down.any()
    assert not lora.lora_up.any()
    x = torch.randn(2, 5, 4, dtype=torch.float64)
    with torch.no_grad():
        assert torch.equal(lora(x), linear(x))
        nn.init.normal_(lora.lora_up)
        wanted = linear(x) + 0.25 * x @ lora.lora_down.T @ lora.lora_up.T
        torch.testing.assert_close(lora(x), wanted)
        merged = lora.merged()
        assert not isinstance(merged, LoRALinear)
        assert merged.bias is linear.bias
        assert merged.weight.requires_grad
        assert merged.weight.dtype == torch.float64
        torch.testing.assert_close(merged(x), wanted)


def test_the_way_down_begins_as_torchs_linear_layers():
    """Kaiming's uniform start with a = sqrt(5): at most 1 / sqrt(inputs), as LoRA's and AdaptFormer's code."""
    torch.manual_seed(0)
    down = LoRALinear(nn.Linear(400, 10), 50, 1.0).lora_down, Adapter(400, 50, 1.0).down.weight
    for weight in down:
        assert 0.99 / math.sqrt(400) < weight.abs().max() <= 1 / math.sqrt(400)


def test_merging_in_float32_rounds_once():
    torch.manual_seed(0)
    lora = LoRALinear(nn.Linear(64, 64), 8, 0.3)
    nn.init.normal_(lora.lora_up)
    exact = lora.weight.double() + 0.3 * lora.lora_up.double() @ lora.lora_down.double()
    assert torch.equal(lora.merged().weight, exact.float())


def test_names_of_additions():
    names = ("blocks.0.mlp.adapter.down.weight", "blocks.1.attention.qkv.lora_up", "temporal.blocks.0.mlp.0.lora_down")
    assert all(is_adapter(name) for name in names)
    assert not any(is_adapter(name) for name in ("blocks.0.mlp.0.weight", "adapter.weight", "blocks.0.explorato"))


@pytest.mark.parametrize("name", ["factorised", "vit factorised"])
def test_a_connector_keeps_no_activation_of_the_frozen_stage(name):
    """It reads one vector per time index; a norm that trains before the mean over space would keep every token."""

    def kept(model):
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda x: sizes.append(x.numel() * x.element_size()) or x, lambda x: x
        ):
            features = model.forward_features(clips())
            spatial = sum(sizes)
            model.forward_head(features)
        return spatial, max(sizes), features.tokens.numel() * 4

    alone = build_model(config(name, "MODEL.FREEZE_SPATIAL True MODEL.COMPRESSED_GRID [3,3]")).train()
    model = build_model(
        config(name, "MODEL.FREEZE_SPATIAL True MODEL.ADAPTER connector MODEL.COMPRESSED_GRID [3,3]")
    ).train()
    trains = {key for key, parameter in model.named_parameters() if parameter.requires_grad}
    assert {key.split(".")[0] for key in trains} == {"temporal", "heads" if name == "factorised" else "head"}
    assert any(is_adapter(key) for key in trains)
    with torch.no_grad():  # at first it changes nothing
        alone.load_state_dict(model.state_dict(), strict=False)
        torch.testing.assert_close(model.eval()(clips()), alone.eval()(clips()), rtol=0, atol=0)
    spatial, largest, tokens = kept(alone.train())
    assert spatial == 0
    assert largest == tokens  # the norm's
    for block in model.temporal.blocks:  # what the temporal stage keeps is not the question
        block.forward = lambda x, *_: x
    spatial, largest, tokens = kept(model.train())
    assert spatial == 0
    assert largest < tokens
    model.train()(clips())[0].square().sum().backward()
    assert model.temporal.adapter.up.weight.grad.abs().max() > 0
    with pytest.raises(ValueError, match=r"connector is between .* set MODEL\.FREEZE_SPATIAL True"):
        config(name, "MODEL.ADAPTER connector")
    with pytest.raises(ValueError, match=r"MODEL\.ADAPTER connector is only for .* factorised"):
        config("lookupvit", "MODEL.ADAPTER connector")


@pytest.mark.parametrize("name", ["lookupvit", "vit", "vit factorised"])
def test_adaptformer_as_its_authors_code_has_it(name):
    """x + MLP(norm(x)) + s up(relu(down(x))): outside drop path, with dropout 0.1 inside."""
    torch.manual_seed(0)
    plain = build_model(config(name, "MODEL.DROP_PATH 0.5")).eval()
    torch.manual_seed(0)
    model = build_model(config(name, "MODEL.ADAPTER adaptformer_code MODEL.DROP_PATH 0.5")).eval()
    assert_starts_as(model, plain)
    block = model.blocks[0].refine if name == "lookupvit" else model.blocks[0]
    adapter = block.adapter
    nn.init.normal_(adapter.up.weight)
    x = torch.randn(2, 5, 24)
    with torch.no_grad():
        alone = x + block.mlp(block.norm_mlp(x))
        expected = alone + 0.1 * (torch.relu(x @ adapter.down.weight.T) @ adapter.up.weight.T)
        torch.testing.assert_close(block.add_mlp(x), expected)
        block.drop_path.drops = True
        block.drop_path.kept = torch.tensor(1e-9)  # drops every branch
        torch.manual_seed(0)
        dropped = block.train().add_mlp(x) - x
        torch.manual_seed(0)
        torch.bernoulli(torch.full((2, 1, 1), 1e-9))  # what drop path drew
        torch.testing.assert_close(dropped, adapter(x))
        assert not torch.allclose(dropped, adapter.eval()(x))
