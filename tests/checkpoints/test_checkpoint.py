import logging
import pickle
import random
import resource
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lookupvit_video.checkpoints import checkpoint as checkpoint_module
from lookupvit_video.checkpoints.checkpoint import (
    check_settings,
    checkpoint_path,
    checkpoint_seen_by_main,
    latest_checkpoint,
    load_checkpoint,
    load_weights,
    remove_old_checkpoints,
    remove_unfinished,
    save_checkpoint,
    set_aside_after,
    training_checkpoints,
)
from lookupvit_video.config import load_config
from lookupvit_video.models.build import build_model, model_spec
from lookupvit_video.models.tokenizer import GridResize
from tests.models.test_models import SMALL

CLASSES = ["a", "b", "c", "d", "e"]


def saved(path, step=0):
    cfg = load_config(None, SMALL)
    model = build_model(cfg)
    save_checkpoint(path, cfg=cfg, classes=CLASSES, model=model, step=step)
    return cfg, model


def test_round_trip(tmp_path):
    cfg, model = saved(tmp_path / "model.pt", step=7)
    checkpoint = load_checkpoint(tmp_path / "model.pt")
    assert checkpoint.config == cfg
    assert checkpoint.classes == CLASSES
    assert checkpoint.step == 7
    other = build_model(checkpoint.config)
    load_weights(other, checkpoint)
    for name, value in model.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name
    assert [p.name for p in tmp_path.iterdir()] == ["model.pt"]  # no temporary file stays


def test_mapped_weights_stay_in_the_file(tmp_path):
    path = tmp_path / "model.pt"
    cfg, model = saved(path)
    before, mapped = path.read_bytes(), load_checkpoint(path, mapped=True)
    assert all(torch.equal(value, mapped.model[name]) for name, value in model.state_dict().items())
    lowest = min(tensor.data_ptr() for tensor in mapped.model.values())
    areas = [line.split() for line in Path("/proc/self/maps").read_text().splitlines()]
    (file,) = {area[-1] for area in areas for a, b in [area[0].split("-")] if int(a, 16) <= lowest < int(b, 16)}
    assert file == str(path)
    other = build_model(cfg, empty=True)
    load_weights(other, mapped, assign=True)
    saved(path, step=1)  # takes the place of the file
    path.unlink()
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in model.state_dict().items())
    path.write_bytes(before)
    again = load_checkpoint(path, mapped=True)
    for tensor in again.model.values():
        tensor.add_(1)
    assert path.read_bytes() == before


def test_a_file_that_torch_cannot_map_is_read(tmp_path):
    path = tmp_path / "caf\udce9.pt"
    _, model = saved(path)
    found = load_checkpoint(path, mapped=True).model
    assert all(torch.equal(value, found[name]) for name, value in model.state_dict().items())
    path.write_bytes(b"no archive")
    with pytest.raises(ValueError, match="this checkpoint cannot be read"):
        load_checkpoint(path, mapped=True)


def test_assigned_weights_have_the_number_format_and_layout_of_the_model(tmp_path):
    cfg, model = saved(tmp_path / "model.pt")
    checkpoint = load_checkpoint(tmp_path / "model.pt")
    odd = {name: tensor.double().transpose(0, -1).contiguous().transpose(0, -1)
           for name, tensor in checkpoint.model.items()}  # fmt: skip
    other = build_model(cfg, empty=True)
    load_weights(other, replace(checkpoint, model=odd), assign=True)
    for name, tensor in model.state_dict().items():
        found = other.state_dict()[name]
        assert (found.dtype, found.stride()) == (tensor.dtype, tensor.stride())
        assert torch.equal(found, tensor)


def test_a_hostile_file_is_not_run(tmp_path):
    class Payload:
        def __reduce__(self):
            return (open, (str(tmp_path / "was_run"), "w"))

    (tmp_path / "bad.pt").write_bytes(pickle.dumps(Payload()))
    torch.save({"format": "lookupvit_video/1", "x": Payload()}, tmp_path / "zip.pt")
    for name in ("bad.pt", "zip.pt"):
        with pytest.raises(ValueError, match=f"{name}: this checkpoint cannot be read .* holds code, which is not run"):
            load_checkpoint(tmp_path / name)
    assert not (tmp_path / "was_run").exists()


@pytest.mark.parametrize("content", [b"", b"some text\n", b"\x80\x02}q", b"PK\x03\x04 cut off"])
def test_unreadable_files_are_named(tmp_path, content):
    (tmp_path / "x.pt").write_bytes(content)
    with pytest.raises(ValueError, match=r"x\.pt: this checkpoint cannot be read \((damaged|not a checkpoint)"):
        load_checkpoint(tmp_path / "x.pt")


def test_missing_file_directory_and_other_projects(tmp_path):
    with pytest.raises(ValueError, match="No such file"):
        load_checkpoint(tmp_path / "none.pt")
    with pytest.raises(ValueError, match="cannot be read"):
        load_checkpoint(tmp_path)
    torch.save({"state_dict": {}}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match="not a checkpoint of this project"):
        load_checkpoint(tmp_path / "other.pt")


def test_weights_of_another_shape_are_named(tmp_path):
    saved(tmp_path / "model.pt")
    checkpoint = load_checkpoint(tmp_path / "model.pt")
    deeper = build_model(load_config(None, [*SMALL, "MODEL.DEPTH", "3"]))
    with pytest.raises(ValueError, match=r"blocks\.2\..* is missing in the checkpoint"):
        load_weights(deeper, checkpoint)
    more_classes = build_model(load_config(None, [*SMALL, "MODEL.NUM_CLASSES", "6"]))
    with pytest.raises(ValueError, match=r"linear\.weight has shape \(5, 24\), the model's has \(6, 24\)"):
        load_weights(more_classes, checkpoint)


def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(tmp_path, caplog):
    assert latest_checkpoint(tmp_path) is None
    for step in (1, 2, 3):
        saved(checkpoint_path(tmp_path, step), step)
    newest = checkpoint_path(tmp_path, 3)
    newest.write_bytes(newest.read_bytes()[:-500])
    found = latest_checkpoint(tmp_path)
    assert found is not None
    assert found.step == 2
    assert "trying the one before" in caplog.text
    remove_old_checkpoints(tmp_path, keep=1)
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step_00000003.pt"]
    with pytest.raises(ValueError, match="none of these checkpoints can be read"):
        latest_checkpoint(tmp_path)


def test_a_failed_save_leaves_the_old_file_and_says_why(tmp_path):
    saved(tmp_path / "model.pt", step=1)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))  # bytes of a file: a disk that takes no more
    try:
        with pytest.raises(OSError, match="File too large"):
            saved(tmp_path / "model.pt", step=2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [path.name for path in tmp_path.iterdir()] == ["model.pt"]
    assert load_checkpoint(tmp_path / "model.pt").step == 1


@pytest.mark.parametrize("mapped", [False, True])
def test_a_flipped_bit_is_noticed_or_changes_nothing(tmp_path, mapped):
    """Wherever it is; some bytes of the archive only fill up the space between its parts."""
    path = tmp_path / "model.pt"
    saved(path)
    sound, content, noticed = load_checkpoint(path), path.read_bytes(), 0
    draw, listed = random.Random(0), content.find(b"PK\x01\x02")  # from there on the list of parts, without checksum
    places = [draw.randrange(len(content)) for _ in range(60)] + [
        draw.randrange(listed, len(content)) for _ in range(60)
    ]
    for place in places:
        damaged = bytearray(content)
        damaged[place] ^= 1 << draw.randrange(8)
        path.write_bytes(damaged)
        try:
            found = load_checkpoint(path, mapped=mapped)
        except ValueError as error:
            noticed += "cannot be read (damaged" in str(error)
        else:
            assert found.config == sound.config
            assert all(torch.equal(value, found.model[name]) for name, value in sound.model.items())
    assert noticed > 50


def test_what_a_killed_run_left_half_written_is_removed(tmp_path):
    saved(checkpoint_path(tmp_path, 3), 3)
    (tmp_path / "checkpoints" / ".step_00000004.77.tmp.pt").write_bytes(b"half")
    (tmp_path / ".best.77.tmp.pt").write_bytes(b"half")
    remove_unfinished(tmp_path)
    assert [path.name for path in tmp_path.rglob("*.pt")] == ["step_00000003.pt"]


GEOMETRIES = {  # of the model; the checkpoint's grid of tokens is 2 x 4 x 4
    "longer and larger": ("DATA.NUM_FRAMES 8 DATA.TRAIN_CROP_SIZE 48 DATA.TEST_CROP_SIZE 48", (4, 6, 6)),
    "shorter": ("DATA.NUM_FRAMES 2", (1, 4, 4)),
    "as many tokens": ("DATA.NUM_FRAMES 16 DATA.TRAIN_CROP_SIZE 16 DATA.TEST_CROP_SIZE 16", (8, 2, 2)),
}
KINDS = {
    "lookupvit": "",
    "vit": "MODEL.ARCH vit MODEL.POOL class",
    "factorised": "MODEL.ENCODER factorised MODEL.COMPRESSED_GRID [2,2] MODEL.TEMPORAL_DEPTH 1",
}


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("kind", KINDS)
def test_positions_are_resized_where_asked_for_and_nothing_else_is(tmp_path, kind, geometry):
    kind_of = [*SMALL, *KINDS[kind].split()]
    overrides, grid = GEOMETRIES[geometry]
    cfg = load_config(None, kind_of)
    torch.manual_seed(1)
    model = build_model(cfg)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    save_checkpoint(tmp_path / "model.pt", cfg=cfg, classes=CLASSES, model=model)
    checkpoint = load_checkpoint(tmp_path / "model.pt")
    other = build_model(load_config(None, [*kind_of, *overrides.split()]))
    with pytest.raises(ValueError, match=r"grid of lookup tokens is \(2, 4, 4\), the model's .* must be those of the"):
        load_weights(other, checkpoint)
    load_weights(other, checkpoint, resize_positions=True)
    own, given = other.state_dict(), model.state_dict()
    expected = {
        "tokenizer.positions": GridResize((2, 4, 4), grid)(given["tokenizer.positions"]),
        **({"temporal.positions": GridResize((2, 1, 1), (grid[0], 1, 1))(given["temporal.positions"])}
           if kind == "factorised" else {}),
    }  # fmt: skip
    assert own.keys() == given.keys()
    for name in own:
        assert torch.equal(own[name], expected.get(name, given[name])), name
    assert torch.equal(checkpoint.model["tokenizer.positions"], given["tokenizer.positions"])  # it is left as it was
    back = build_model(cfg)
    load_weights(back, checkpoint, resize_positions=True)
    assert all(torch.equal(value, given[name]) for name, value in back.state_dict().items())


# What a file holds ------------------------------------------------------------------------------------------------


def test_all_that_a_training_checkpoint_is_given_comes_back(tmp_path):
    cfg = load_config(None, SMALL)
    given = {
        "classes": CLASSES, "model": {"a": torch.randn(2)}, "optimizer": {"state": {"a": {"step": torch.tensor(3.0)}}},
        "ema": {"a": torch.randn(2)}, "step": 7, "best_top1": 62.5, "state": {"losses": [(0.5, 1.0)], "bad_steps": 2},
    }  # fmt: skip
    save_checkpoint(tmp_path / "x.pt", cfg=cfg, **given)
    found = load_checkpoint(str(tmp_path / "x.pt"))
    for name in ("classes", "step", "best_top1", "state"):
        assert getattr(found, name) == given[name], name
    for name in ("model", "ema"):
        assert torch.equal(getattr(found, name)["a"], given[name]["a"])
    assert found.optimizer["state"]["a"]["step"] == 3
    assert found.path == tmp_path / "x.pt"
    assert found.versions["torch"] == torch.__version__


def test_a_file_for_inference_has_nothing_to_resume_from(tmp_path):
    saved(tmp_path / "x.pt")
    found = load_checkpoint(tmp_path / "x.pt")
    assert (found.step, found.best_top1, found.state) == (0, -1.0, {})
    assert found.optimizer is None
    assert found.ema is None


def test_older_files_lack_what_came_later_and_others_are_refused(tmp_path):
    saved(tmp_path / "x.pt", step=4)
    content = torch.load(tmp_path / "x.pt", weights_only=True)
    later = ("ema", "state", "versions")
    torch.save({name: value for name, value in content.items() if name not in later}, tmp_path / "old.pt")
    found = load_checkpoint(tmp_path / "old.pt")
    assert (found.step, found.ema, found.state, found.versions) == (4, None, {}, {})
    for change in ({"format": "lookupvit_video/2"}, {"format": None}):
        torch.save(content | change, tmp_path / "other.pt")
        with pytest.raises(ValueError, match=r"other\.pt: not a checkpoint of this project"):
            load_checkpoint(tmp_path / "other.pt")
    for name in ("config", "classes", "model", "optimizer", "step", "best_top1"):
        torch.save({key: value for key, value in content.items() if key != name}, tmp_path / "other.pt")
        with pytest.raises(ValueError, match=r"other\.pt: not a checkpoint of this project"):
            load_checkpoint(tmp_path / "other.pt")
    torch.save([content], tmp_path / "other.pt")
    with pytest.raises(ValueError, match=r"other\.pt: not a checkpoint of this project"):
        load_checkpoint(tmp_path / "other.pt")


def test_tensors_come_to_the_cpu_whatever_they_were_on(tmp_path, monkeypatch):
    saved(tmp_path / "x.pt")
    plain = torch.load
    places = []
    monkeypatch.setattr(torch, "load", lambda *a, **given: places.append(given) or plain(*a, **given))
    load_checkpoint(tmp_path / "x.pt")
    assert places == [{"map_location": "cpu", "weights_only": True}]


def test_torch_that_cannot_write_is_an_error_of_the_file(tmp_path, monkeypatch):
    def fail(content, file):
        raise RuntimeError("unexpected pos")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(OSError, match=r"x\.pt: torch could not write it"):
        saved(tmp_path / "x.pt")
    assert list(tmp_path.iterdir()) == []


def settings_of(cfg):
    return model_spec(cfg).settings_not_in_weights


def test_settings_that_no_shape_tells(tmp_path):
    saved(tmp_path / "x.pt")
    checkpoint = load_checkpoint(tmp_path / "x.pt")
    check_settings(settings_of(checkpoint.config), checkpoint)
    check_settings(settings_of(load_config(None, [*SMALL, "MODEL.DROP_PATH", "0.5"])), checkpoint)
    for change, told in (
        ("NUM_HEADS 4", "NUM_HEADS 3, the config says 4"),
        ("NORM_EPS 1e-5", "NORM_EPS 1e-06, the config says 1e-05"),
        ("POOL average_norm", "POOL average, the config says average_norm"),
        ("RESIZE trilinear", "RESIZE triangle, the config says trilinear"),
        ("ACTIVATION quick_gelu", "ACTIVATION gelu, the config says quick_gelu"),
        ("REVERSE_WEIGHTS scaled", "REVERSE_WEIGHTS softmax, the config says scaled"),
    ):
        with pytest.raises(ValueError, match=f"it was trained with MODEL.{told}"):
            check_settings(settings_of(load_config(None, [*SMALL, *f"MODEL.{change}".split()])), checkpoint)
    check_settings(settings_of(load_config(None, [*SMALL, "MODEL.ARCH", "mvit", "MODEL.VARIANT", "Ti"])), checkpoint)


def test_weights_of_more_or_fewer_parameters_are_named(tmp_path):
    saved(tmp_path / "x.pt")
    checkpoint = load_checkpoint(tmp_path / "x.pt")
    model = build_model(checkpoint.config)
    more = replace(checkpoint, model=checkpoint.model | {"extra": torch.zeros(1)})
    with pytest.raises(ValueError, match="extra is missing in the model"):
        load_weights(model, more)
    first = next(iter(checkpoint.model))
    fewer = replace(checkpoint, model={name: value for name, value in checkpoint.model.items() if name != first})
    with pytest.raises(ValueError, match=f"{first} is missing in the checkpoint"):
        load_weights(model, fewer)


# The files of a run -----------------------------------------------------------------------------------------------


def empty_checkpoints(folder, *steps):
    (folder / "checkpoints").mkdir()
    for step in steps:
        checkpoint_path(folder, step).touch()


def names(folder):
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


def test_training_checkpoints_have_their_steps_as_names_and_the_newest_is_first(tmp_path):
    assert checkpoint_path("runs/a", 42) == Path("runs/a/checkpoints/step_00000042.pt")
    assert training_checkpoints(tmp_path) == []
    empty_checkpoints(tmp_path, 3, 12, 5)
    (tmp_path / "checkpoints" / "step_00000099.pt.damaged").touch()
    (tmp_path / "checkpoints" / ".step_00000098.77.tmp.pt").touch()
    assert training_checkpoints(str(tmp_path)) == [checkpoint_path(tmp_path, step) for step in (12, 5, 3)]


@pytest.mark.parametrize("resumed", [3, 6, 9])
def test_checkpoints_after_the_resumed_one_are_set_aside_and_no_other(tmp_path, resumed, caplog):
    empty_checkpoints(tmp_path, 3, 6, 9)
    set_aside_after(tmp_path, resumed)
    kept = [checkpoint_path("", step).name for step in (3, 6, 9) if step <= resumed]
    aside = [f"{checkpoint_path('', step).name}.damaged" for step in (3, 6, 9) if step > resumed]
    assert names(tmp_path) == sorted([*kept, *aside])
    assert caplog.text.count("set aside as") == len(aside)


def test_the_newest_stay(tmp_path):
    empty_checkpoints(tmp_path, 1, 2, 3, 10)
    for keep, left in ((9, 4), (4, 4), (3, 3), (1, 1)):
        remove_old_checkpoints(tmp_path, keep)
        assert len(names(tmp_path)) == left
    assert names(tmp_path) == ["step_00000010.pt"]


def test_a_checkpoint_that_another_machine_sees_late(tmp_path, monkeypatch):
    path, now = tmp_path / "x.pt", [100.0]

    def sleep(seconds):
        assert 0 < seconds <= 1
        now[0] += seconds
        if now[0] > 188:
            saved(path, step=3)

    monkeypatch.setattr(checkpoint_module.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(checkpoint_module.time, "sleep", sleep)
    assert checkpoint_seen_by_main(path).step == 3  # within 90 s
    began = now[0]
    assert checkpoint_seen_by_main(path).step == 3  # there is nothing to wait for
    assert now[0] == began
    path.unlink()
    monkeypatch.setattr(checkpoint_module.time, "sleep", lambda seconds: now.append(now.pop() + seconds))
    with pytest.raises(ValueError, match="that all machines share"):
        checkpoint_seen_by_main(path, patience=5)
    assert 5 < now[0] - began < 6
    monkeypatch.undo()
    began = time.monotonic()
    with pytest.raises(ValueError, match="that all machines share"):
        checkpoint_seen_by_main(path, patience=0.1)
    assert time.monotonic() - began < 5


def test_only_resized_positions_are_spoken_of(tmp_path, caplog):
    _, model = saved(tmp_path / "x.pt")
    with caplog.at_level(logging.INFO):
        load_weights(model, load_checkpoint(tmp_path / "x.pt"), resize_positions=True)
        assert "resized" not in caplog.text
        longer = build_model(load_config(None, [*SMALL, "DATA.NUM_FRAMES", "8"]))
        load_weights(longer, load_checkpoint(tmp_path / "x.pt"), resize_positions=True)
    assert "tokenizer.positions: resized from a grid of (2, 4, 4) to (4, 4, 4)" in caplog.text
