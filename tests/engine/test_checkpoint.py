import pickle
import random
import resource

import pytest
import torch

from lookupvit_video.config import load_config
from lookupvit_video.engine.checkpoint import (
    checkpoint_path,
    latest_checkpoint,
    load_checkpoint,
    load_weights,
    remove_old_checkpoints,
    remove_unfinished,
    save_checkpoint,
)
from lookupvit_video.models.build import build_model
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


def test_a_hostile_file_is_not_run(tmp_path):
    class Payload:
        def __reduce__(self):
            return (open, (str(tmp_path / "was_run"), "w"))

    (tmp_path / "bad.pt").write_bytes(pickle.dumps(Payload()))
    torch.save({"format": "lookupvit_video/1", "x": Payload()}, tmp_path / "zip.pt")
    for name in ("bad.pt", "zip.pt"):
        with pytest.raises(ValueError, match=f"{name}: this checkpoint cannot be read"):
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
    with pytest.raises(ValueError, match="no checkpoint of this project"):
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
    with pytest.raises(ValueError, match="no checkpoint here can be read"):
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


def test_a_flipped_bit_is_noticed_or_changes_nothing(tmp_path):
    """Wherever it is; some bytes of the archive only fill up the space between its parts."""
    path = tmp_path / "model.pt"
    saved(path)
    sound, content, noticed = load_checkpoint(path), path.read_bytes(), 0
    draw = random.Random(0)
    for _ in range(60):
        damaged = bytearray(content)
        damaged[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        path.write_bytes(damaged)
        try:
            found = load_checkpoint(path)
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
