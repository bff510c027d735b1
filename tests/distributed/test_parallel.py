"""Training spread over processes: real ones, started by torchrun or as torchrun would."""

import json
import os
import socket
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from lookupvit_video.checkpoints.checkpoint import checkpoint_path, load_checkpoint
from lookupvit_video.config import load_config
from lookupvit_video.data.manifest import load_classes
from lookupvit_video.distributed.parallel import compile_blocks, full_state, load_optimizer, parallelize
from lookupvit_video.distributed.world import World, init_world
from lookupvit_video.errors import RunFailure
from lookupvit_video.log import read_json_lines
from lookupvit_video.models.budget import Budget
from lookupvit_video.models.build import build_model
from lookupvit_video.training.optim import build_optimizer
from lookupvit_video.training.train import train
from tests.small import make_videos, run_command, run_net, run_tool, settings
from tests.training.processes import description

ALONE = World(0, 1, torch.device("cpu"))
CURVE = {
    "TRAIN__BATCH_SIZE": 16, "SOLVER__MAX_EPOCH": 6, "TRAIN__KEEP_CHECKPOINTS": 9, "TRAIN__EVAL_PERIOD": 0,
    "MODEL__COMPRESSED_GRIDS": "[[1,2,2],[2,3,3]]", "TRAIN__PRECISION": "float32",
    "MODEL__EXITS": "[1]", "MODEL__KEEPS": "[[1,0.5],[1]]", "MODEL__TOKENIZER": "convolutional",
}  # fmt: skip


# Heads first, for two of the six steps, with averaged weights.
THAWS = {"MODEL__FREEZE_ENCODER": True, "SOLVER__FREEZE_EPOCHS": 2, "SOLVER__EMA_DECAY": 0.5,
         "TRAIN__ACCUMULATION_STEPS": 2}  # fmt: skip

MASKED = {"TRAIN__TASK": "masked", "TEST__ENABLE": False, "PRETRAIN__DECODER_WIDTH": 16, "PRETRAIN__DECODER_DEPTH": 1,
          "MODEL__EXITS": "[]", "MODEL__KEEPS": "[]", "MODEL__TOKENIZER": "linear", "SOLVER__EMA_DECAY": 0.5,
          "TRAIN__EVAL_PERIOD": 2}  # fmt: skip
MOVING = {**MASKED, "TRAIN__TASK": "moving", "DATA__RANDOM_FLIP": False, "AUG__NUM_SAMPLE": 2, "TRAIN__BATCH_SIZE": 32}


@pytest.fixture(scope="session")
def data17(tmp_path_factory):
    """Seventeen videos, which two processes cannot share evenly."""
    folder = tmp_path_factory.mktemp("data17")
    make_videos(folder, count=17)
    return folder


def losses(folder):
    return [entry["loss"] for entry in read_json_lines(folder / "log.jsonl", "train")]


def torchrun(processes, *arguments):
    return run_tool("-m", "tests.training.processes", *arguments, processes=processes)


def train_together(data, folder, processes, runs):
    """Train by several plans in one start of the processes; runs: name -> (overrides, checkpoint to go on from)."""
    plan = [
        {"overrides": settings(data, folder / name, **CURVE | changes), "begin": str(begin)}
        for name, (changes, begin) in runs.items()
    ]
    done = torchrun(processes, "train", json.dumps(plan))
    assert done.returncode == 0, done.stderr
    return folder


def train_alone(data, folder, begin="", **changes):
    cfg = load_config("tests/small.yaml", settings(data, folder, **CURVE | changes))
    (folder / "checkpoints").mkdir(parents=True)
    if begin:
        (folder / "checkpoints" / begin.name).write_bytes(begin.read_bytes())
    train(cfg, load_classes(cfg), ALONE)
    return losses(folder)


@pytest.fixture(scope="session")
def alone(data17, tmp_path_factory):
    """The folder of a run of one process."""
    folder = tmp_path_factory.mktemp("alone")
    train_alone(data17, folder)
    return folder


@pytest.fixture(scope="session")
def two(data17, alone, tmp_path_factory):
    """The folder of the runs of two processes."""
    folder = tmp_path_factory.mktemp("two")
    fsdp = {"TRAIN__PARALLEL": "fsdp"}
    third = checkpoint_path("", 3)
    return train_together(data17, folder, 2, {
        "ddp_1": ({}, ""),
        "ddp_2": ({"TRAIN__ACCUMULATION_STEPS": 2}, ""),
        "ddp_4": ({"TRAIN__ACCUMULATION_STEPS": 4}, ""),
        "fsdp_1": ({**fsdp, "TRAIN__EVAL_PERIOD": 2, "TEST__BATCH_SIZE": 8}, ""),
        "fsdp_2": ({**fsdp, "TRAIN__ACCUMULATION_STEPS": 2, "TRAIN__ACTIVATION_CHECKPOINTING": "full"}, ""),
        "fsdp_from_ddp": (fsdp, folder / "ddp_1" / third),
        "ddp_from_fsdp": ({}, folder / "fsdp_1" / third),
        "ddp_thaws": (THAWS, ""),
        "fsdp_thaws": (fsdp | THAWS, ""),
        "ddp_masked": (MASKED, ""),
        "fsdp_masked": (fsdp | MASKED, ""),
        "ddp_moving": (MOVING, ""),
        "fsdp_moving": (fsdp | MOVING, ""),
    })  # fmt: skip


def test_curves_are_the_same_for_any_number_of_processes_and_parts(alone, two, data17, tmp_path):
    expected = losses(alone)
    assert len(expected) == 6
    assert min(expected) < 0.999 * max(expected)  # it learns, and so would show a difference
    for parts in (2, 4):
        curve = train_alone(data17, tmp_path / str(parts), TRAIN__ACCUMULATION_STEPS=parts)
        assert curve == pytest.approx(expected, rel=1e-5), parts
    for name in ("ddp_1", "ddp_2", "ddp_4", "fsdp_1", "fsdp_2"):
        assert losses(two / name) == pytest.approx(expected, rel=1e-5), name


def test_four_processes_have_the_same_curves(alone, data17, tmp_path):
    parts = (1, 2, 4)
    train_together(data17, tmp_path, 4, {str(n): ({"TRAIN__ACCUMULATION_STEPS": n}, "") for n in parts})
    for n in parts:
        assert losses(tmp_path / str(n)) == pytest.approx(losses(alone), rel=1e-5), n


def test_a_checkpoint_goes_on_under_any_kind_of_parallelism(alone, two, data17, tmp_path):
    expected = losses(alone)[3:]
    assert losses(two / "fsdp_from_ddp") == pytest.approx(expected, rel=1e-5)
    assert losses(two / "ddp_from_fsdp") == pytest.approx(expected, rel=1e-5)
    found = train_alone(data17, tmp_path / "one", begin=two / "fsdp_1" / checkpoint_path("", 3))
    assert found == pytest.approx(expected, rel=1e-5)


def test_a_sharded_run_leaves_what_one_process_leaves(alone, two, data17):
    one, sharded = (load_checkpoint(checkpoint_path(folder, 3)) for folder in (alone, two / "fsdp_1"))
    assert one.model.keys() == sharded.model.keys()
    for name, weight in one.model.items():
        assert type(sharded.model[name]) is torch.Tensor
        torch.testing.assert_close(sharded.model[name], weight, rtol=1e-3, atol=1e-4, msg=name)
    assert one.optimizer["state"].keys() == sharded.optimizer["state"].keys()
    for name, state in one.optimizer["state"].items():
        assert state["step"] == sharded.optimizer["state"][name]["step"] == 3
        assert state["exp_avg"].shape == sharded.optimizer["state"][name]["exp_avg"].shape == one.model[name].shape
    assert len(read_json_lines(two / "fsdp_1" / "log.jsonl", "val")) == 3
    answered = run_tool("tools/predict.py", "--checkpoint", two / "fsdp_1" / "model.pt", data17 / "0.mp4")
    assert answered.returncode == 0, answered.stderr
    assert "class 0" in answered.stdout
    # Validation, in which each process used the gathered model on its own, counted what a test by one process counts.
    tested = run_net(settings(data17, two / "tested", **CURVE, TRAIN__ENABLE=False,
                              TEST__CHECKPOINT_FILE_PATH=two / "fsdp_1" / "model.pt"))  # fmt: skip
    top1 = json.loads(tested.stdout.splitlines()[-1])["top1"]
    assert read_json_lines(two / "fsdp_1" / "log.jsonl", "val")[-1]["top1"] == pytest.approx(top1, abs=0.01)


def test_what_is_frozen_at_first_thaws_in_all_processes(two, data17, tmp_path):
    expected = train_alone(data17, tmp_path, **THAWS)
    at_step = {folder: [load_checkpoint(checkpoint_path(folder, n)) for n in (1, 2, 6)]
               for folder in (tmp_path, two / "ddp_thaws", two / "fsdp_thaws")}  # fmt: skip
    for folder, (first, second, last) in at_step.items():
        assert losses(folder) == pytest.approx(expected, rel=1e-5)
        for name, weight in first.model.items():
            head = name.startswith(("heads.", "exits."))
            assert torch.equal(weight, second.model[name]) != head, name  # no step and no decay
            assert (name in second.optimizer["state"]) == head
            assert not torch.equal(weight, last.model[name]), name
            torch.testing.assert_close(last.ema[name], at_step[tmp_path][-1].ema[name], rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.parametrize("task", ["masked", "moving"])
def test_pretraining_is_the_same_however_weights_are_shared(two, task):
    """Each process draws its own masks, so one process has another curve."""
    ddp, fsdp = two / f"ddp_{task}", two / f"fsdp_{task}"
    assert losses(ddp) == pytest.approx(losses(fsdp), rel=1e-5)
    assert losses(ddp)[-1] < 0.99 * losses(ddp)[0]
    seen, expected = (read_json_lines(folder / "log.jsonl", "val") for folder in (fsdp, ddp))
    assert [line["videos"] for line in seen] == [17, 17, 17]
    for found, line in zip(seen, expected, strict=True):
        for name in ("knn", "probe", "rank"):
            assert found[name] == pytest.approx(line[name], rel=1e-3), name
    one, sharded = (load_checkpoint(checkpoint_path(folder, 6)) for folder in (ddp, fsdp))
    assert one.ema.keys() == sharded.ema.keys()
    for name, weight in one.ema.items():
        torch.testing.assert_close(sharded.ema[name], weight, rtol=1e-3, atol=1e-4, msg=name)


def test_the_first_lines_say_who_does_what(alone, two):
    cfg = load_config("tests/small.yaml", settings("", "", **CURVE, SOLVER__BASE_LR_BATCH=32))
    host = socket.gethostname()
    assert description(cfg, ALONE, 17) == [
        f"process 0 of 1: host {host}, device cpu",
        "a step: 16 clips = world size 1 x 1 accumulation steps x 16, float32; peak learning rate 0.0005 for any world "
        "size; 17 training videos",
    ]
    assert (two / "fsdp_2" / "world.txt").read_text().splitlines() == [
        f"process 0 of 2: host {host}, device cpu",
        f"process 1 of 2: host {host}, device cpu",
        "a step: 16 clips = world size 2 x 2 accumulation steps x 4, fsdp, float32; peak learning rate 0.001 for any "
        "world size; 17 training videos",
    ]


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def test_two_nodes_train_and_test_together(data17, tmp_path):
    port = free_port()
    agents = [
        [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc_per_node=1", "--rdzv_backend=c10d",
         "--rdzv_id=test", f"--rdzv_endpoint=127.0.0.1:{port}", f"--local_addr=127.0.0.{node}",
         "tools/run_net.py", "--cfg", "tests/small.yaml", *settings(data17, tmp_path)]
        for node in (1, 2)
    ]  # fmt: skip
    with ThreadPoolExecutor(2) as pool:
        both = list(pool.map(run_command, agents))
    assert [agent.returncode for agent in both] == [0, 0], both
    outputs = [(agent.stdout, agent.stderr) for agent in both]
    (results,) = [json.loads(line) for stdout, _ in outputs for line in stdout.splitlines() if line.startswith("{")]
    assert results["videos"] == 17
    assert results["step"] == 8
    told = "".join(stderr for _, stderr in outputs)
    assert "process 1 of 2: host" in told
    assert "world size 2 x 1" in told


def as_torchrun(monkeypatch, **variables):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_USE_AGENT_STORE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, str(value))


def test_a_start_that_fails_says_why_and_what_to_check(monkeypatch):
    port = free_port()
    as_torchrun(monkeypatch, WORLD_SIZE=2, RANK=1)
    with pytest.raises(ValueError, match="WORLD_SIZE is set but not MASTER_ADDR, MASTER_PORT; start with torchrun"):
        init_world()
    as_torchrun(monkeypatch, WORLD_SIZE=2, RANK=1, MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
    told = rf"process 1 of 2 on .* cannot reach the others at 127.0.0.1:{port} \(.* timed out .*\); check .* see docs"
    with pytest.raises(RunFailure, match=told):
        init_world(join_timeout=2)
    as_torchrun(monkeypatch, WORLD_SIZE=3, RANK=0, MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
    with pytest.raises(RunFailure, match=r"process 0 of 3 .* 1/3 clients joined\); check that torchrun runs on every"):
        init_world(join_timeout=2)
    port = free_port()
    server = torch.distributed.TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False)  # as torchrun's
    as_torchrun(monkeypatch, WORLD_SIZE=3, RANK=1, MASTER_ADDR="127.0.0.1", MASTER_PORT=port,
                TORCHELASTIC_USE_AGENT_STORE=True, TORCHELASTIC_RESTART_COUNT=0)  # fmt: skip
    with pytest.raises(RunFailure, match=r"process 1 of 3 .* timed out after 2 s waiting for process 0; check"):
        init_world(join_timeout=2)
    del server


# The first process has a part of its own: without torchrun it keeps where they meet. test_faults.py stops another one.
@pytest.mark.parametrize("hanging", [0, 2] if os.environ.get("LOOKUPVIT_ALL_FAULTS") else [0])
def test_a_process_that_hangs_is_named(hanging):
    done = torchrun(3, "hang", hanging)
    assert done.returncode == 1
    place = f"process {hanging} of 3 on {socket.gethostname()}"
    assert f"no answer within 2 s from {place}: it is not responding or has exited" in done.stderr
    assert "processes.py: error: lost contact (" in done.stderr


def small(*overrides, **changes):
    cfg = load_config("tests/small.yaml", [*settings("", "", **changes), *overrides])
    torch.manual_seed(0)
    model = build_model(cfg)
    return cfg, model, parallelize(model, cfg, ALONE)


CLIPS = torch.randn(2, 3, 4, 32, 32, generator=torch.Generator().manual_seed(1))


class Products(TorchDispatchMode):
    """Counts matrix products of two kinds."""

    def __init__(self):
        super().__init__()
        self.linear, self.batched = 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.linear += func in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default)
        self.batched += func is torch.ops.aten.bmm.default
        return func(*args, **(kwargs or {}))


def gradients(kind, **changes):
    _, model, parallel = small(TRAIN__ACTIVATION_CHECKPOINTING=kind, **changes)
    torch.manual_seed(3)
    loss = sum(head.square().mean() for head in parallel(CLIPS))
    with Products() as products:
        loss.backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}, products


@pytest.mark.parametrize(
    "changes",
    [{}, {"MODEL__ARCH": "vit", "MODEL__TOKENS": "merge"},
     {"MODEL__ENCODER": "factorised", "MODEL__COMPRESSED_GRID": "[2,2]"}],
    ids=["lookupvit", "merging", "factorised"],
)  # fmt: skip
def test_activation_checkpointing_recomputes_and_changes_nothing(changes):
    changes = {"MODEL__DROP_PATH": 0.5, **changes}
    plain, all_kept = gradients("none", **changes)
    selective, linear_kept = gradients("selective", **changes)
    full, none_kept = gradients("full", **changes)
    assert plain.keys() == selective.keys() == full.keys()
    for name, gradient in plain.items():
        assert torch.equal(gradient, selective[name]), name
        assert torch.equal(gradient, full[name]), name
    assert all_kept.linear == linear_kept.linear < none_kept.linear
    if not changes.get("MODEL__ARCH"):  # scores of the cross-attention are not kept
        assert all_kept.batched < linear_kept.batched <= none_kept.batched
        write_back, back_dropped = gradients("write_back", **changes)
        assert all(torch.equal(gradient, write_back[name]) for name, gradient in plain.items())
        assert all_kept.linear < back_dropped.linear < none_kept.linear


def test_write_back_checkpointing_keeps_nothing_of_the_narrow_mlp():
    def kept(kind):
        cfg, model, parallel = small(TRAIN__ACTIVATION_CHECKPOINTING=kind)
        shapes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x: shapes.append(x.shape) or x, lambda x: x):
            parallel(CLIPS)
        hidden = sum(shape[-2:] == (model.tokenizer.num_tokens, cfg.MODEL.DIM // 2) for shape in shapes)
        return hidden, sum(shape.numel() for shape in shapes)

    all_kept, back_dropped, none_kept = map(kept, ("none", "write_back", "full"))
    assert all_kept[0] > back_dropped[0] == 0
    assert none_kept[1] < back_dropped[1] < all_kept[1]


def test_checkpointed_blocks_compile():
    """In the order of ``parallelize``; the backend makes a graph of the backward pass too, as inductor does."""
    plain, _ = gradients("none")
    for kind in ("write_back", "selective", "full"):
        torch._dynamo.reset()
        _, model, _ = small(TRAIN__ACTIVATION_CHECKPOINTING=kind)
        compile_blocks(list(model.blocks), "aot_eager")
        sum(head.square().mean() for head in model(CLIPS)).backward()
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(parameter.grad, plain[name], rtol=1e-4, atol=1e-6, msg=name)
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    torch._dynamo.reset()


def compiled_and_counted(model):
    """Compile a model's blocks; return the list to which each compilation will add its graph."""
    torch._dynamo.reset()
    compilations = []

    def counting(graph, inputs):
        compilations.append(graph)
        return graph

    compile_blocks(list(model.blocks), counting)
    return compilations


def test_compilation_keeps_names_and_does_not_grow_with_grids_or_blocks():
    grids = [(1, 2, 2), (2, 3, 3), (1, 3, 3), (1, 4, 4), (2, 2, 2)]
    changes = {"MODEL__COMPRESSED_GRIDS": str([list(grid) for grid in grids]), "MODEL__DEPTH": 4}
    _, plain, _ = small(**changes)
    _, model, _ = small(**changes)
    compilations = compiled_and_counted(model)
    assert list(dict(model.named_parameters())) == list(dict(plain.named_parameters()))
    after = []
    for grid in grids:
        for keep in ((), (1, 0.5), (1, 0.7, 0.2)):
            budget = Budget(grid, 0, keep)
            for found, expected in zip(model(CLIPS, budget), plain(CLIPS, budget), strict=True):
                torch.testing.assert_close(found, expected)
            after.append(len(compilations))
    assert after[0] == 1  # four blocks, one code
    assert after[-10:] == [after[-1]] * 10 < [10] * 10  # sizes that have changed once are free
    torch._dynamo.reset()


def test_blocks_that_differ_in_drop_path_share_the_code():
    changes = {"MODEL__DEPTH": 4, "MODEL__DROP_PATH": 0.3}
    _, plain, _ = small(**changes)
    _, model, _ = small(**changes)
    compilations = compiled_and_counted(model)
    answers = []
    for each in (model, plain):
        torch.manual_seed(0)
        answers.append(each(CLIPS))
    for found, expected in zip(*answers, strict=True):
        torch.testing.assert_close(found, expected)
    assert len(compilations) == 2  # the first block drops nothing
    torch._dynamo.reset()


def test_a_state_loads_where_some_parameters_have_had_no_step():
    cfg, model, parallel = small()
    optimizer = build_optimizer(cfg, model)
    assert full_state(parallel, optimizer)[1] == {"state": {}, "param_groups": []}
    assert not optimizer.state  # asking made no step
    for _ in range(2):
        sum(head.square().mean() for head in parallel(CLIPS)).backward()
        model.tokenizer.positions.grad = None  # as what is frozen at first
        optimizer.step()
        optimizer.zero_grad()
    weights, state = full_state(parallel, optimizer)
    before = {name: value.clone() for name, value in weights.items()}
    _, other, parallel_other = small(RNG_SEED=1)
    other.load_state_dict(weights)
    optimizer_other = build_optimizer(cfg, other)
    load_optimizer(parallel_other, optimizer_other, state)
    assert other.tokenizer.positions not in optimizer_other.state
    for part, own in ((parallel, optimizer), (parallel_other, optimizer_other)):
        sum(head.square().mean() for head in part(CLIPS)).backward()
        own.step()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
    assert all(torch.equal(value, before[name]) for name, value in weights.items())  # shares nothing with the model
    assert not torch.equal(weights["tokenizer.positions"], model.tokenizer.positions)


def test_settings_that_cannot_work_are_refused():
    for overrides, reason in (
        ("TRAIN.CPU_OFFLOAD True", "TRAIN.CPU_OFFLOAD True is only for TRAIN.PARALLEL fsdp"),
        (
            "MODEL.ARCH vit TRAIN.ACTIVATION_CHECKPOINTING write_back",
            "write_back is only for MODEL.ARCH lookupvit; MODEL.ARCH is vit",
        ),
        ("MODEL.ARCH x3d MODEL.VARIANT M TRAIN.PARALLEL fsdp", "TRAIN.PARALLEL fsdp is only for .*; MODEL.ARCH is x3d"),
        ("TRAIN.PARALLEL zero", "TRAIN.PARALLEL is 'zero'; choose one of ddp, fsdp"),
        ("DIST_TIMEOUT 60", "DIST_TIMEOUT is 60 and DATA_LOADER.TIMEOUT 60"),
    ):
        with pytest.raises(ValueError, match=reason):
            load_config("tests/small.yaml", [*settings("", ""), *overrides.split()])
