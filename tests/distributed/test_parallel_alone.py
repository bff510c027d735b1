"""What spreads a training, in one process: DDP and FSDP2 with a group of one, or noted as they are called.

In several processes: test_parallel.py.
"""

import contextlib
import copy
import socket

import pytest
import torch
import torch._inductor.config
from torch import distributed
from torch.distributed.fsdp import CPUOffloadPolicy, OffloadPolicy
from torch.nn.parallel import DistributedDataParallel

from lookupvit_video.config import load_config
from lookupvit_video.distributed import parallel as parallel_module
from lookupvit_video.distributed.parallel import (
    _shard,
    clip_gradients,
    compile_blocks,
    full_state,
    gathered,
    load_optimizer,
    parallelize,
    synchronizing,
)
from lookupvit_video.distributed.precision import autocast_dtype
from lookupvit_video.distributed.world import World
from lookupvit_video.errors import UserError
from lookupvit_video.models.build import build_model
from lookupvit_video.training import run as run_module
from lookupvit_video.training.optim import build_optimizer
from tests.small import settings
from tests.training.processes import description

ALONE = World(0, 1, torch.device("cpu"))
TWO = World(0, 2, torch.device("cpu"))
CLIPS = torch.randn(2, 3, 4, 32, 32, generator=torch.Generator().manual_seed(1))


def small(**changes):
    cfg = load_config("tests/small.yaml", settings("", "", **changes))
    torch.manual_seed(0)
    model = build_model(cfg)
    return cfg, model, parallelize(model, cfg, ALONE)


def with_gradients(*values):
    """Return a model whose parameters, of one number each, have such gradients (None: none)."""
    model = torch.nn.Module()
    for number, value in enumerate(values):
        parameter = torch.nn.Parameter(torch.zeros(1))
        parameter.grad = None if value is None else torch.tensor([value])
        model.register_parameter(f"p{number}", parameter)
    return model


@pytest.mark.parametrize(("limit", "scale"), [(0.0, 1.0), (5.0, 1.0), (6.0, 1.0), (2.5, 0.5), (1.0, 0.2), (0.05, 0.01)])
def test_gradients_are_scaled_to_a_limit_and_their_norm_before_is_returned(limit, scale):
    model = with_gradients(3.0, None, -4.0)
    norm = clip_gradients(model, limit)
    assert norm.item() == pytest.approx(5.0)
    assert model.p0.grad.item() == pytest.approx(3 * scale, rel=1e-4)
    assert model.p2.grad.item() == pytest.approx(-4 * scale, rel=1e-4)
    assert model.p1.grad is None


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_precisions_are_what_they_are_called(monkeypatch, device):
    device, asked = torch.device(device), []
    for has_bfloat16 in (True, False):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda x=has_bfloat16, **given: asked.append(given) or x)
        assert autocast_dtype("float32", device) is torch.float32
        assert autocast_dtype("bfloat16", device) is torch.bfloat16
        assert autocast_dtype("float16", device) is torch.float16
        wanted = torch.bfloat16 if has_bfloat16 and device.type == "cuda" else torch.float32
        assert autocast_dtype("auto", device) is wanted
    assert asked == ([{"including_emulation": False}] * 2 if device.type == "cuda" else [])
    with pytest.raises(KeyError):
        autocast_dtype("bf16", device)


@pytest.fixture
def group():
    """A process group of this process alone, under which DDP and FSDP2 do all that they do."""
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


def test_gradients_wait_for_the_last_part(group):
    model = torch.nn.Linear(2, 1)
    parallel = DistributedDataParallel(model)
    calls = []
    parallel.register_comm_hook(None, lambda state, bucket: calls.append(1) or future_of(bucket.buffer()))
    for wanted, count in ((False, 0), (False, 0), (True, 1), (True, 2)):
        with synchronizing(parallel, wanted):
            parallel(torch.ones(1, 2)).sum().backward()
        assert len(calls) == count
    with synchronizing(model, False):
        model(torch.ones(1, 2)).sum().backward()


def future_of(value):
    future = torch.futures.Future()
    future.set_result(value)
    return future


@pytest.mark.parametrize(
    ("changes", "unused", "buffers"),
    [
        ({}, False, False),
        ({"MODEL__FREEZE_ENCODER": True, "SOLVER__FREEZE_EPOCHS": 1}, True, False),
        ({"MODEL__FREEZE_ENCODER": True}, False, False),
        ({"MODEL__ARCH": "x3d", "MODEL__VARIANT": "XS"}, False, True),
    ],
)
def test_ddp_is_told_what_the_model_is_like(monkeypatch, changes, unused, buffers):
    given = []
    monkeypatch.setattr(parallel_module, "DistributedDataParallel", lambda model, **kw: given.append(kw) or "wrapped")
    cfg = load_config("tests/small.yaml", settings("", "", **changes))
    model = build_model(cfg)
    assert parallelize(model, cfg, TWO) == "wrapped"
    assert given == [{"device_ids": None, "gradient_as_bucket_view": True, "broadcast_buffers": buffers,
                      "find_unused_parameters": unused}]  # fmt: skip
    assert parallelize(model, cfg, World(0, 2, torch.device("cuda", 1))) == "wrapped"
    assert given[1]["device_ids"] == [1]
    assert parallelize(model, cfg, ALONE) is model
    assert len(given) == 2


def test_one_process_has_nothing_to_spread(caplog):
    cfg = load_config("tests/small.yaml", settings("", "", TRAIN__PARALLEL="fsdp"))
    model = build_model(cfg)
    assert parallelize(model, cfg, ALONE) is model
    assert "TRAIN.PARALLEL fsdp is ignored: there is only one process" in caplog.text
    caplog.clear()
    cfg = load_config("tests/small.yaml", settings("", ""))
    assert parallelize(model, cfg, ALONE) is model
    assert caplog.text == ""


def test_blocks_are_checkpointed_before_they_are_compiled_and_only_where_asked(monkeypatch):
    done = []
    monkeypatch.setattr(parallel_module, "checkpoint_activations", lambda block, kind: done.append(kind))
    monkeypatch.setattr(parallel_module, "compile_blocks", lambda blocks: done.append(len(blocks)))
    monkeypatch.setattr(parallel_module, "require_compiler", lambda *given: None)
    joint = settings("", "", TRAIN__ACTIVATION_CHECKPOINTING="full", TRAIN__COMPILE=True)
    factorised = [*joint, *"MODEL.ENCODER factorised MODEL.COMPRESSED_GRID [2,2] MODEL.TEMPORAL_DEPTH 3".split()]
    for overrides, blocks in ((joint, 2), (factorised, 5)):
        cfg = load_config("tests/small.yaml", overrides)
        parallelize(build_model(cfg), cfg, ALONE)
        assert done == [*["full"] * blocks, blocks]
        done.clear()
    cfg = load_config("tests/small.yaml", settings("", ""))
    parallelize(build_model(cfg), cfg, ALONE)
    assert done == ["none"] * 2


def test_compiling_without_a_compiler_is_told_before_the_first_step():
    with (
        torch._inductor.config.patch({"cpp.cxx": ("/no/such/compiler",)}),
        pytest.raises(UserError, match=r"TRAIN.COMPILE needs a C\+\+ compiler: .*; TRAIN.COMPILE False"),
    ):
        small(TRAIN__COMPILE=True)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize(
    "changes", [{}, {"MODEL__ARCH": "vit", "MODEL__TOKENS": "merge"}, {"TRAIN__CPU_OFFLOAD": True}]
)
def test_each_block_is_a_unit_of_sharding_and_travels_in_low_precision_on_gpus(monkeypatch, caplog, device, changes):
    sharded, methods = [], []
    monkeypatch.setattr(parallel_module, "init_device_mesh", lambda kind, shape: (kind, shape))
    monkeypatch.setattr(parallel_module, "fully_shard", lambda part, **given: sharded.append((part, given)))
    monkeypatch.setattr(parallel_module, "register_fsdp_forward_method", lambda *given: methods.append(given))
    cfg = load_config(
        "tests/small.yaml", settings("", "", TRAIN__PARALLEL="fsdp", TRAIN__PRECISION="bfloat16", **changes)
    )
    model = build_model(cfg)
    assert parallelize(model, cfg, World(0, 2, torch.device(device))) is model
    *blocks, whole = sharded
    assert [part for part, _ in blocks] == list(model.blocks)
    assert whole[0] is model
    low = torch.bfloat16 if device == "cuda" else None
    for _, given in blocks:
        policy = given["mp_policy"]
        assert (policy.param_dtype, policy.reduce_dtype) == (low, torch.float32 if low else None)
        assert given["reshard_after_forward"]
    assert whole[1]["mp_policy"].param_dtype is None
    assert not whole[1]["reshard_after_forward"]
    for _, given in sharded:
        assert given["mesh"] == (device, (2,))
        assert not given["mp_policy"].cast_forward_inputs
        wanted = CPUOffloadPolicy if "TRAIN__CPU_OFFLOAD" in changes and device == "cuda" else OffloadPolicy
        assert type(given["offload_policy"]) is wanted
    assert ("there is no GPU here" in caplog.text) == ("TRAIN__CPU_OFFLOAD" in changes and device == "cpu")
    merging = [(block, "forward_merging") for block in model.blocks] if "MODEL__TOKENS" in changes else []
    assert methods == merging


def sharded(**changes):
    """A model of one shard: all of FSDP2 but other processes."""
    cfg = load_config("tests/small.yaml", settings("", "", TRAIN__PARALLEL="fsdp", **changes))
    torch.manual_seed(0)
    model = build_model(cfg)
    return cfg, _shard(model, list(model.blocks), ALONE, autocast_dtype(cfg.TRAIN.PRECISION, ALONE.device))


def test_a_sharded_model_clips_saves_and_loads_as_a_plain_one(group):
    (cfg, plain, _), (_, model) = small(), sharded()
    optimizers = build_optimizer(cfg, plain), build_optimizer(cfg, model)
    for each, optimizer in zip((plain, model), optimizers, strict=True):
        sum(head.square().sum() for head in each(CLIPS)).backward()
        each.norm = clip_gradients(each, 0.01)
        assert type(each.norm) is torch.Tensor
        optimizer.step()
    torch.testing.assert_close(model.norm, plain.norm)
    states = [full_state(each, optimizer) for each, optimizer in zip((plain, model), optimizers, strict=True)]
    (weights, moments), (found, found_moments) = states
    assert weights.keys() == found.keys()
    for name, weight in weights.items():
        torch.testing.assert_close(found[name], weight)
        assert type(found[name]) is torch.Tensor
    assert moments["state"].keys() == found_moments["state"].keys()
    other_cfg, other = sharded(SOLVER__WEIGHT_DECAY=0.3, SOLVER__BETAS="[0.5,0.6]")
    optimizer = build_optimizer(other_cfg, other)
    load_optimizer(other, optimizer, moments)
    for group_of in optimizer.param_groups:
        assert group_of["weight_decay"] in (0.0, 0.3)  # the config's, not the checkpoint's
        assert group_of["betas"] == (0.5, 0.6)
    loaded = full_state(other, optimizer)[1]["state"]
    for name, state in moments["state"].items():
        for key, value in state.items():
            torch.testing.assert_close(loaded[name][key], value)
    load_optimizer(other, optimizer, {"state": {}, "param_groups": []})  # nothing to load
    assert full_state(other)[1] is None


def test_gathered_parameters_are_whole_inside_and_sharded_again_after(group):
    _, model = sharded()
    _, plain, _ = small()

    def kinds():
        return {type(parameter.data).__name__ for parameter in model.parameters()}

    assert kinds() == {"DTensor"}
    with contextlib.suppress(KeyError), gathered(model):
        assert "DTensor" not in kinds()
        with torch.no_grad():
            for found, wanted in zip(model(CLIPS), plain(CLIPS), strict=True):
                torch.testing.assert_close(found, wanted)
            assert "DTensor" not in kinds()  # and stay so over several batches
        raise KeyError
    assert kinds() == {"DTensor"}
    policies = [part._get_fsdp_state()._fsdp_param_group for part in (*model.blocks, model)]
    after = [each.post_forward_mesh_info is not None for each in policies]
    assert after == [True, True, False]  # as before
    with gathered(plain):
        pass


def test_sharded_gradients_are_exchanged_when_wanted(group, monkeypatch):
    _, model = sharded()
    wanted = []
    monkeypatch.setattr(type(model), "set_requires_gradient_sync", lambda self, value: wanted.append(value))
    for value in (False, True):
        with synchronizing(model, value):
            pass
    assert wanted == [False, True]


def test_limits_of_the_compiler_are_raised_and_never_lowered(monkeypatch):
    limits = torch._dynamo.config
    blocks = list(small()[1].blocks)
    with limits.patch(recompile_limit=3, accumulated_recompile_limit=5):
        compile_blocks(blocks, "eager")
        assert limits.recompile_limit == limits.accumulated_recompile_limit == 16  # 8 for each block
    with limits.patch(recompile_limit=100, accumulated_recompile_limit=900):
        compile_blocks(blocks, "eager")
        assert (limits.recompile_limit, limits.accumulated_recompile_limit) == (100, 900)
    torch._dynamo.reset()


def test_what_a_step_is_in_words(monkeypatch):
    monkeypatch.setattr(run_module, "gather_objects", lambda value, world: [value] * world.size)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "A GPU")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)
    cfg = load_config("tests/small.yaml", settings("", "", TRAIN__BATCH_SIZE=24, TRAIN__ACCUMULATION_STEPS=3,
                                                   SOLVER__BASE_LR=0.5, SOLVER__BASE_LR_BATCH=48))  # fmt: skip
    first, _, last = description(cfg, World(0, 2, torch.device("cuda", 0)), 17)
    assert first == f"process 0 of 2: host {socket.gethostname()}, device cuda:0 A GPU"
    assert last == (
        "a step: 24 clips = world size 2 x 3 accumulation steps x 4, ddp, bfloat16; peak learning rate 0.25 for any "
        "world size; 17 training videos"
    )


def test_what_of_a_block_is_computed_again():
    """By the method that the model calls; names stay, and a block that has no such part stays what it was."""
    _, looking, _ = small(MODEL__ENCODER="factorised", MODEL__COMPRESSED_GRID="[2,2]")
    _, merging, _ = small(MODEL__ARCH="vit", MODEL__TOKENS="merge")
    blocks = {"lookup": looking.blocks[0], "dense": looking.temporal.blocks[0], "merging": merging.blocks[0]}
    for kind, names in {
        "none": {"lookup": "", "dense": "", "merging": ""},
        "write_back": {"lookup": "write_back", "dense": "", "merging": ""},
        "selective": {"lookup": "forward", "dense": "forward", "merging": "forward_merging"},
        "full": {"lookup": "forward", "dense": "forward", "merging": "forward_merging"},
    }.items():
        for which, name in names.items():
            block = copy.deepcopy(blocks[which])
            parallel_module.checkpoint_activations(block, kind)
            changed = {key: value for key, value in vars(block).items() if callable(value)}
            assert list(changed) == [name] * bool(name), (kind, which)
            for method in changed.values():
                assert method.func is torch.utils.checkpoint.checkpoint
                assert method.args == (getattr(type(block), name).__get__(block),)
                assert method.keywords["use_reentrant"] is False
                assert ("context_fn" in method.keywords) == (kind == "selective")


def test_the_method_that_the_model_calls_is_compiled(monkeypatch):
    given = []
    monkeypatch.setattr(torch, "compile", lambda method, **options: given.append((method.__name__, options)) or "fast")
    limits = torch._dynamo.config
    with limits.patch(recompile_limit=8, accumulated_recompile_limit=8):
        for changes, name in (({}, "forward"), ({"MODEL__ARCH": "vit", "MODEL__TOKENS": "merge"}, "forward_merging")):
            blocks = list(small(**changes)[1].blocks)
            compile_blocks(blocks)
            assert [vars(block)[name] for block in blocks] == ["fast"] * 2
            assert given == [(name, {"backend": "inductor", "dynamic": None})] * 2
            given.clear()
        compile_blocks(list(small()[1].blocks), "eager", dynamic=True)
        assert given == [("forward", {"backend": "eager", "dynamic": True})] * 2


def test_states_are_whole_and_on_the_cpu_wherever_the_shards_are(monkeypatch):
    asked = {}
    for name in ("get_model_state_dict", "get_optimizer_state_dict", "set_optimizer_state_dict"):
        plain = getattr(parallel_module, name)

        def watched(*given, options, name=name, plain=plain):
            asked[name] = (options.full_state_dict, options.cpu_offload, options.strict)
            return plain(*given, options=options)

        monkeypatch.setattr(parallel_module, name, watched)
    cfg, model, _ = small()
    optimizer = build_optimizer(cfg, model)
    sum(head.square().sum() for head in model(CLIPS)).backward()
    optimizer.step()
    _, state = full_state(model, optimizer)
    load_optimizer(model, optimizer, state)
    assert asked == {"get_model_state_dict": (True, True, True), "get_optimizer_state_dict": (True, True, True),
                     "set_optimizer_state_dict": (True, True, False)}  # fmt: skip
    monkeypatch.setattr(parallel_module, "get_optimizer_state_dict", lambda *_, **__: {})
    assert full_state(model, optimizer)[1] == {}  # in a process that is not the main one
