"""Every mistake in a config is reported with its key, file or line, before anything else is read."""

import re

import pytest

from lookupvit_video.config import (
    config_from_text,
    find_config,
    get_defaults,
    get_key,
    given_keys,
    load_config,
    validate,
    with_settings,
)
from lookupvit_video.errors import UserError


def flatten(node, prefix=""):
    """Dotted key -> value of every leaf."""
    leaves = {}
    for key, value in node.items():
        leaves |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return leaves


DEFAULTS = flatten(get_defaults())


def write(folder, text, name="run.yaml"):
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_defaults_are_valid_and_come_back_frozen():
    validate(get_defaults())
    cfg = load_config()
    assert flatten(cfg) == DEFAULTS
    with pytest.raises(AttributeError):
        cfg.RNG_SEED = 1
    with pytest.raises(AttributeError):
        cfg.TRAIN.BATCH_SIZE = 1


def test_defaults_are_fresh_copies():
    changed = get_defaults()
    changed.DATA.MEAN.append(9.0)
    changed.TRAIN.BATCH_SIZE = 1
    assert flatten(get_defaults()) == DEFAULTS


# Files ------------------------------------------------------------------------------------------------------------


def test_file_then_overrides_over_defaults(tmp_path):
    path = write(tmp_path, "RNG_SEED: 3\nTRAIN: {BATCH_SIZE: 32}\nMODEL:\n  VARIANT: S\n")
    cfg = load_config(path, ["RNG_SEED", "4", "MODEL.DEPTH", "2"])
    expected = {"RNG_SEED": 4, "TRAIN.BATCH_SIZE": 32, "MODEL.VARIANT": "S", "MODEL.DEPTH": 2}
    assert flatten(cfg) == DEFAULTS | expected


def test_base_chain(tmp_path):
    (tmp_path / "sub").mkdir()
    write(tmp_path, "RNG_SEED: 1\nLOG_PERIOD: 1\nTRAIN: {BATCH_SIZE: 8}\n", "bottom.yaml")
    write(tmp_path, "_BASE_: ../bottom.yaml\nLOG_PERIOD: 2\n", "sub/middle.yaml")  # relative to the file it stands in
    top = write(tmp_path, "_BASE_: sub/middle.yaml\nTRAIN: {KEEP_CHECKPOINTS: 5}\n", "top.yaml")
    expected = {"RNG_SEED": 1, "LOG_PERIOD": 2, "TRAIN.BATCH_SIZE": 8, "TRAIN.KEEP_CHECKPOINTS": 5}
    assert flatten(load_config(top)) == DEFAULTS | expected


def test_base_error_names_the_file_that_has_it(tmp_path):
    write(tmp_path, "RNG_SEAD: 1\n", "bottom.yaml")
    top = write(tmp_path, "_BASE_: bottom.yaml\n", "top.yaml")
    with pytest.raises(UserError, match=r"bottom\.yaml: unknown key RNG_SEAD; did you mean RNG_SEED\?"):
        load_config(top)


def test_base_circle(tmp_path):
    write(tmp_path, "_BASE_: b.yaml\n", "a.yaml")
    write(tmp_path, "_BASE_: a.yaml\n", "b.yaml")
    with pytest.raises(UserError, match=r"a\.yaml: _BASE_ leads back"):
        load_config(tmp_path / "a.yaml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("TRAIN: {BATCHSIZE: 4}", r"run\.yaml: unknown key TRAIN\.BATCHSIZE; did you mean TRAIN\.BATCH_SIZE\?"),
        ("MIXUP: {QQQ: 4}", r"unknown key MIXUP\.QQQ; keys here: ENABLE, ALPHA"),
        ("TRAIN.BATCH_SIZE: 4", r"unknown key TRAIN\.BATCH_SIZE"),
        ("LOG_PERIOD: 1\nRNG_SEED: 1\nRNG_SEED: 2", r"run\.yaml, line 3: key RNG_SEED is there twice"),
        ("TRAIN:\n  BATCH_SIZE: 4\n  BATCH_SIZE: 8", r"run\.yaml, line 3: key BATCH_SIZE is there twice"),
        ("1: 2", r"run\.yaml, line 1: key 1 is not a name"),
        ("RNG_SEED: 1\nTRAIN: [1", r"run\.yaml, line \d: "),
        ("RNG_SEED: '3'", r"run\.yaml: RNG_SEED: expected int \(default 0\), got '3'"),
        ("RNG_SEED: 3.0", "RNG_SEED: expected int"),
        ("LOG_PERIOD: true", "LOG_PERIOD: expected int .*got True"),
        ("TRAIN: {ENABLE: 1}", r"TRAIN\.ENABLE: expected bool"),
        ("SOLVER: {BASE_LR: fast}", r"SOLVER\.BASE_LR: expected float .*got 'fast'"),
        ("SOLVER: {BASE_LR: true}", r"SOLVER\.BASE_LR: expected float .*got True"),
        ("OUTPUT_DIR: 5", "OUTPUT_DIR: expected str"),
        ("RNG_SEED: null", "RNG_SEED: expected int .*got None"),
        ("OUTPUT_DIR:", "OUTPUT_DIR: expected str .*got None"),
        ("TRAIN:", "TRAIN is a group of keys, got None"),
        ("TRAIN: 3", "TRAIN is a group of keys, got 3"),
        ("RNG_SEED: {A: 1}", "RNG_SEED: expected int"),
        ("RNG_SEED: [1]", r"RNG_SEED: expected int .*got \[1\]"),
        ("DATA: {MEAN: 0.5}", r"DATA\.MEAN: expected list .*got 0\.5"),
        ("DATA: {MEAN: [0.5, x, 0.5]}", r"DATA\.MEAN\[1\]: expected float"),
        ("MODEL: {TUBELET: [2, 16, null]}", r"MODEL\.TUBELET\[2\]: expected int"),
        ("", r"run\.yaml: a config holds 'KEY: value' lines; this file holds NoneType"),
        ("# only a remark", r"run\.yaml: a config holds"),
        ("- 1", "this file holds list"),
        ("_BASE_: [a.yaml]", r"run\.yaml: _BASE_ must be the path of one file"),
        ("_BASE_: gone.yaml", r"gone\.yaml: this config cannot be read \(No such file"),
    ],
)
def test_mistake_in_a_file(tmp_path, text, message):
    with pytest.raises(UserError, match=message):
        load_config(write(tmp_path, text))


def test_file_that_cannot_be_read(tmp_path):
    with pytest.raises(UserError, match=r"gone\.yaml: this config cannot be read \(No such file"):
        load_config(tmp_path / "gone.yaml")
    with pytest.raises(UserError, match="this config cannot be read"):
        load_config(tmp_path)
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"binary\.yaml: this config cannot be read"):
        load_config(tmp_path / "binary.yaml")


def test_a_shipped_config_is_found_by_name_and_a_file_of_that_name_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where there is no folder configs
    assert load_config("k400_lvit") == load_config("k400_lvit.yaml") == load_config(find_config("k400_lvit"))
    assert load_config("k400_lvit").MODEL.NUM_CLASSES == 400
    assert find_config("studies/finetune").name == "finetune.yaml"
    (tmp_path / "k400_lvit").mkdir()  # such as a folder of results; it is no config
    assert load_config("k400_lvit").MODEL.NUM_CLASSES == 400
    write(tmp_path, "RNG_SEED: 7", "k400_vit")
    assert load_config("k400_vit").RNG_SEED == 7


def test_keys_that_are_given_in_a_file_its_base_and_the_command_line(tmp_path):
    (tmp_path / "base.yaml").write_text("DATA: {NUM_FRAMES: 16}\n")
    (tmp_path / "own.yaml").write_text("_BASE_: base.yaml\nDATA: {MEAN: [0.5, 0.5, 0.5]}\nRNG_SEED: 0\n")
    given = given_keys(tmp_path / "own.yaml", ["MODEL.DIM", "96", "MODEL.DEPTH=2"])
    assert given == {"DATA.NUM_FRAMES", "DATA.MEAN", "RNG_SEED", "MODEL.DIM", "MODEL.DEPTH"}


def test_other_settings_are_checked_and_the_first_config_stays():
    cfg = load_config()
    changed = with_settings(cfg, {"DATA.NUM_FRAMES": 8, "SOLVER.BASE_LR": 1, "RNG_SEED": 3})
    assert (changed.DATA.NUM_FRAMES, changed.SOLVER.BASE_LR, changed.RNG_SEED) == (8, 1.0, 3)
    assert (cfg.DATA.NUM_FRAMES, cfg.RNG_SEED) == (16, 0)
    with pytest.raises(UserError, match=r"it must be divisible by MODEL\.TUBELET's 2 frames"):
        with_settings(cfg, {"DATA.NUM_FRAMES": 7})
    automatic = load_config(None, ["AUTO.ENABLE", "True", "DATA.NUM_FRAMES", "7"])  # the tubelet is chosen later
    assert automatic.DATA.NUM_FRAMES == 7


def test_an_unknown_name_lists_the_shipped_configs():
    shipped = "demo_motion, demo_pretrain, demo_pretrain_moving, finetune_own, k400_lvit, k400_lvit_128"
    with pytest.raises(UserError, match=rf"^k401: this config cannot .*: {shipped}"):
        load_config("k401")


def test_python_tags_do_nothing(tmp_path):
    witness = tmp_path / "was_here"
    tag = f"!!python/object/apply:os.system ['touch {witness}']"
    with pytest.raises(UserError, match=r"run\.yaml, line 2: .*python/object"):
        load_config(write(tmp_path, f"LOG_PERIOD: 1\nRNG_SEED: {tag}\n"))
    with pytest.raises(UserError, match=r"command line: RNG_SEED.*python/object"):
        load_config(None, ["RNG_SEED", tag])
    assert not witness.exists()


# Overrides --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("MIXUP.ENABLE", "True", True),
        ("TRAIN.ENABLE", "false", False),
        ("SOLVER.BASE_LR", "1e-3", 1e-3),
        ("SOLVER.BASE_LR", "1", 1.0),
        ("MODEL.COMPRESSED_GRID", "[4,7,7]", [4, 7, 7]),
        ("DATA.MEAN", "[0, 0.5, 1e-1]", [0.0, 0.5, 0.1]),
        ("DATA.TRAIN_JITTER_SCALES_RELATIVE", "[]", []),
        ("DATA.PATH_TO_DATA_DIR", "/no/such folder: here #1", "/no/such folder: here #1"),
        ("OUTPUT_DIR", "2024", "2024"),
        ("OUTPUT_DIR", "1e-3", "1e-3"),
        ("OUTPUT_DIR", "null", "null"),
        ("DATA.PATH_PREFIX", "", ""),
        ("RNG_SEED", "12", 12),
    ],
)
def test_override_is_read_as_the_type_of_its_key(key, text, value):
    got = get_key(load_config(None, [key, text]), key)
    assert got == value
    assert type(got) is type(value)
    if isinstance(value, list):
        assert [type(item) for item in got] == [type(item) for item in value]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["RNG_SEED"], "command line: settings come in pairs 'KEY value'; 'RNG_SEED' has no value"),
        (["RNG_SEED", "1", "LOG_PERIOD"], "'LOG_PERIOD' has no value"),
        (["TRAIN.BATCH_SZE", "1"], r"command line: unknown key TRAIN\.BATCH_SZE; did you mean TRAIN\.BATCH_SIZE\?"),
        (["TRAIN", "1"], "command line: TRAIN is a group of keys"),
        (["RNG_SEED.X", "1"], "command line: RNG_SEED: expected int"),
        (["OUTPUT_DIR.X", "1"], "command line: OUTPUT_DIR: expected str"),
        (["", "1"], "command line: '' is not a key; settings are written KEY VALUE or KEY=VALUE"),
        (["_BASE_", "a.yaml"], "command line: unknown key _BASE_"),
        (["RNG_SEED", "x"], "command line: RNG_SEED: expected int"),
        (["RNG_SEED", ""], "command line: RNG_SEED: expected int .*got None"),
        (["DATA.MEAN", "[0.1"], r"command line: DATA\.MEAN, line 1"),
        (["TRAIN.ENABLE", "1"], r"command line: TRAIN\.ENABLE: expected bool"),
    ],
)
def test_mistake_in_an_override(overrides, message):
    with pytest.raises(UserError, match=message):
        load_config(None, overrides)


@pytest.mark.parametrize("value", [".nan", ".inf", "-.inf"])
@pytest.mark.parametrize("key", [key for key, value in DEFAULTS.items() if isinstance(value, float)] + ["DATA.MEAN"])
def test_numbers_are_finite(key, value):
    text = f"[{value}, 0.5, 0.5]" if key == "DATA.MEAN" else value
    with pytest.raises(UserError, match=rf"command line: {re.escape(key)}(\[0\])?: .* is not a finite number"):
        load_config(None, [key, text])


def test_nan_set_in_code_is_caught_too():
    cfg = get_defaults()
    cfg.SOLVER.BASE_LR = float("nan")
    with pytest.raises(UserError, match=r"SOLVER\.BASE_LR is nan"):
        validate(cfg)


# Saved configs ----------------------------------------------------------------------------------------------------


def test_saved_text_gives_the_same_config_back():
    overrides = ["OUTPUT_DIR", "007", "SOLVER.BASE_LR", "1e-7", "DATA.TRAIN_JITTER_SCALES_RELATIVE", "[]"]
    cfg = load_config(None, [*overrides, "DATA.PATH_PREFIX", "C:\\a: #b 'ü'"])
    again = config_from_text(cfg.dump(), "a checkpoint")
    assert again == cfg
    assert flatten(again) == flatten(cfg)
    with pytest.raises(AttributeError):
        again.RNG_SEED = 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "model.pt: does not hold a config"),
        ("- 1", "model.pt: does not hold a config"),
        ("RNG_SEAD: 1", "model.pt: unknown key RNG_SEAD"),
        ("RNG_SEED: -1", "RNG_SEED is -1"),
        ("{", "model.pt, line 1"),
    ],
)
def test_saved_text_is_checked_too(text, message):
    with pytest.raises(UserError, match=message):
        config_from_text(text, "model.pt")
