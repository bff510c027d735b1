"""Every mistake in a config is told with its key, file or line, before anything else is read."""

import re
from pathlib import Path

import pytest

from lookupvit_video import config
from lookupvit_video.config import config_from_text, get_defaults, get_key, load_config, token_grid, validate

DEFAULT_LINE = re.compile(r"_C\.(?P<key>[A-Z][\w.]*) = (?P<value>.+?)(  # (?P<reason>.+))?")


def flatten(node, prefix=""):
    """Dotted key -> value of every leaf."""
    leaves = {}
    for key, value in node.items():
        leaves |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return leaves


DEFAULTS = flatten(get_defaults())
LIMITS = [(low, name) for low, names in config.AT_LEAST.items() for name in names.split()]


def write(folder, text, name="run.yaml"):
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def below(low, default):
    """Text of a value of the default's type that is just below ``low``."""
    if default == []:  # of grids
        return str([[low - 1, 1, 1]])
    if isinstance(default, list):
        return str([low - 1, *default[1:]])
    return str(low - 0.5 if isinstance(default, float) else low - 1)


def replace_first(default, value):
    return str([value, *default[1:]] if isinstance(default, list) else value)


# Defaults ---------------------------------------------------------------------------------------------------------


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


def test_every_key_has_its_reason_beside_it():
    reasons = {}
    for line in Path(config.__file__).read_text(encoding="utf-8").splitlines():
        match = DEFAULT_LINE.fullmatch(line)
        if match and match["value"] != "CfgNode()":
            reasons[match["key"]] = match["reason"]
    assert reasons.keys() == DEFAULTS.keys()
    assert [key for key, reason in reasons.items() if not reason or len(reason) < 5] == []


def test_rules_are_about_keys_that_exist():
    named = [*config.CHOICES, *config.LENGTHS, *(name for _, name in LIMITS)]
    named += [*config.AT_MOST_ONE.split(), *config.BELOW_ONE.split()]
    assert set(named) - DEFAULTS.keys() == set()


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
    with pytest.raises(ValueError, match=r"bottom\.yaml: unknown key RNG_SEAD; did you mean RNG_SEED\?"):
        load_config(top)


def test_base_circle(tmp_path):
    write(tmp_path, "_BASE_: b.yaml\n", "a.yaml")
    write(tmp_path, "_BASE_: a.yaml\n", "b.yaml")
    with pytest.raises(ValueError, match=r"a\.yaml: _BASE_ leads back"):
        load_config(tmp_path / "a.yaml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("TRAIN: {BATCHSIZE: 4}", r"run\.yaml: unknown key TRAIN\.BATCHSIZE; did you mean TRAIN\.BATCH_SIZE\?"),
        ("MIXUP: {QQQ: 4}", r"unknown key MIXUP\.QQQ; keys here: ENABLE, ALPHA"),
        ("TRAIN.BATCH_SIZE: 4", r"unknown key TRAIN\.BATCH_SIZE"),
        ("LOG_PERIOD: 1\nRNG_SEED: 1\nRNG_SEED: 2", r"run\.yaml, line 3: key RNG_SEED stands twice"),
        ("TRAIN:\n  BATCH_SIZE: 4\n  BATCH_SIZE: 8", r"run\.yaml, line 3: key BATCH_SIZE stands twice"),
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
    with pytest.raises(ValueError, match=message):
        load_config(write(tmp_path, text))


def test_file_that_cannot_be_read(tmp_path):
    with pytest.raises(ValueError, match=r"gone\.yaml: this config cannot be read \(No such file"):
        load_config(tmp_path / "gone.yaml")
    with pytest.raises(ValueError, match="this config cannot be read"):
        load_config(tmp_path)
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=r"binary\.yaml: this config cannot be read"):
        load_config(tmp_path / "binary.yaml")


def test_python_tags_do_nothing(tmp_path):
    witness = tmp_path / "was_here"
    tag = f"!!python/object/apply:os.system ['touch {witness}']"
    with pytest.raises(ValueError, match=r"run\.yaml, line 2: .*python/object"):
        load_config(write(tmp_path, f"LOG_PERIOD: 1\nRNG_SEED: {tag}\n"))
    with pytest.raises(ValueError, match=r"command line: RNG_SEED.*python/object"):
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
        (["RNG_SEED"], "command line: overrides come in pairs 'KEY value'; 'RNG_SEED' stands alone"),
        (["RNG_SEED", "1", "LOG_PERIOD"], "'LOG_PERIOD' stands alone"),
        (["TRAIN.BATCH_SZE", "1"], r"command line: unknown key TRAIN\.BATCH_SZE; did you mean TRAIN\.BATCH_SIZE\?"),
        (["TRAIN", "1"], "command line: TRAIN is a group of keys"),
        (["RNG_SEED.X", "1"], "command line: RNG_SEED: expected int"),
        (["OUTPUT_DIR.X", "1"], "command line: OUTPUT_DIR: expected str"),
        (["", "1"], "command line: '' is no key; settings are written KEY VALUE or KEY=VALUE"),
        (["_BASE_", "a.yaml"], "command line: unknown key _BASE_"),
        (["RNG_SEED", "x"], "command line: RNG_SEED: expected int"),
        (["RNG_SEED", ""], "command line: RNG_SEED: expected int .*got None"),
        (["DATA.MEAN", "[0.1"], r"command line: DATA\.MEAN, line 1"),
        (["TRAIN.ENABLE", "1"], r"command line: TRAIN\.ENABLE: expected bool"),
    ],
)
def test_mistake_in_an_override(overrides, message):
    with pytest.raises(ValueError, match=message):
        load_config(None, overrides)


# Ranges and what must fit together --------------------------------------------------------------------------------


@pytest.mark.parametrize("key", config.CHOICES)
def test_choices(key):
    default = DEFAULTS[key]
    wrong = "[nonsense]" if isinstance(default, list) else "2" if isinstance(default, int) else "nonsense"
    with pytest.raises(ValueError, match=rf"^{re.escape(key)} is .*{wrong.strip('[]')}.*; choose one of "):
        load_config(None, [key, wrong])


@pytest.mark.parametrize(("low", "key"), LIMITS)
def test_lower_limits(low, key):
    with pytest.raises(ValueError, match=rf"^{re.escape(key)} is .*; it must be at least {low}$"):
        load_config(None, [key, below(low, DEFAULTS[key])])


@pytest.mark.parametrize("key", config.AT_MOST_ONE.split())
def test_limits_of_one(key):
    with pytest.raises(ValueError, match=rf"^{re.escape(key)} is .*; it must be at most 1$"):
        load_config(None, [key, replace_first(DEFAULTS[key], 1.01)])


@pytest.mark.parametrize("key", config.BELOW_ONE.split())
def test_limits_below_one(key):
    with pytest.raises(ValueError, match=rf"^{re.escape(key)} is .*; it must be at least 0 and below 1$"):
        load_config(None, [key, replace_first(DEFAULTS[key], 1.0)])


@pytest.mark.parametrize("key", config.ABOVE_ZERO.split())
def test_above_zero(key):
    with pytest.raises(ValueError, match=rf"^{re.escape(key)} is .*; it must be above 0$"):
        load_config(None, [key, replace_first(DEFAULTS[key], 0.0)])


@pytest.mark.parametrize("key", config.LENGTHS)
def test_lengths_of_lists(key):
    with pytest.raises(ValueError, match=rf"^{re.escape(key)} is .*; it takes .* values$"):
        load_config(None, [key, str(DEFAULTS[key] * 2)])


@pytest.mark.parametrize("value", [".nan", ".inf", "-.inf"])
@pytest.mark.parametrize("key", [key for key, value in DEFAULTS.items() if isinstance(value, float)] + ["DATA.MEAN"])
def test_numbers_are_finite(key, value):
    text = f"[{value}, 0.5, 0.5]" if key == "DATA.MEAN" else value
    with pytest.raises(ValueError, match=rf"command line: {re.escape(key)}(\[0\])?: .* is not a finite number"):
        load_config(None, [key, text])


def test_nan_set_in_code_is_caught_too():
    cfg = get_defaults()
    cfg.SOLVER.BASE_LR = float("nan")
    with pytest.raises(ValueError, match=r"SOLVER\.BASE_LR is nan"):
        validate(cfg)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ("MODEL.NUM_CLASSES 0", r"MODEL\.NUM_CLASSES is 0; it must be at least 1"),
        ("MODEL.NUM_CLASSES -4", r"MODEL\.NUM_CLASSES is -4"),
        ("MODEL.COMPRESSED_GRID [9,7,7]", r"MODEL\.COMPRESSED_GRID: \[9, 7, 7\] is larger than .* \[8, 14, 14\]"),
        ("TEST.GRIDS [[4,7,7],[4,15,7]]", r"TEST\.GRIDS: \[4, 15, 7\] is larger than .* \[8, 14, 14\]"),
        ("MODEL.COMPRESSED_GRIDS [[7,7]]", r"MODEL\.COMPRESSED_GRIDS: \[7, 7\] has 2 numbers; .* takes t x h x w"),
        ("MODEL.ENCODER factorised", r"MODEL\.COMPRESSED_GRID: \[4, 7, 7\] has 3 numbers; .* takes h x w"),
        (
            "MODEL.COMPRESSED_GRIDS [[1,7,7]] MODEL.COMPRESSED_GRID_WEIGHTS [1,2]",
            r"MODEL\.COMPRESSED_GRID_WEIGHTS has 2",
        ),
        ("MODEL.ARCH vit TEST.GRIDS [[1,7,7]]", r"TEST\.GRIDS is for MODEL\.ARCH lookupvit"),
        ("MODEL.ARCH vit MODEL.TOKENS resize MODEL.COMPRESSED_GRID [9,7,7]", r"MODEL\.COMPRESSED_GRID: \[9, 7, 7\] is"),
        ("MODEL.TOKENS random", r"MODEL\.TOKENS random is for MODEL\.ARCH vit"),
        (
            "MODEL.ARCH vit MODEL.ENCODER factorised MODEL.TOKENS merge MODEL.COMPRESSED_GRID [7,7]",
            r"MODEL\.TOKENS merge is for",
        ),
        ("MODEL.POOL class", r"MODEL\.POOL class needs a class token"),
        ("MODEL.HEADS [lookup] MODEL.INFERENCE_HEAD compressed", r"MODEL\.INFERENCE_HEAD is compressed, .* not among"),
        ("MODEL.ARCH mvit MODEL.VARIANT S", r"MODEL\.VARIANT is \'S\'; for MODEL\.ARCH mvit choose one of Ti, B$"),
        ("MODEL.VARIANT M", r"MODEL\.VARIANT is \'M\'; for MODEL\.ARCH lookupvit choose one of Ti, S, B, L$"),
        ("MODEL.ARCH x3d MODEL.VARIANT M MODEL.DROP_PATH 0.1", r"MODEL\.DROP_PATH is for transformers"),
        ("MODEL.FREEZE_ENCODER True MODEL.DROP_PATH 0.1", r"MODEL\.FREEZE_ENCODER is for"),
        ("DISTILL.FEATURE_WEIGHT 1", r"DISTILL\.FEATURE_WEIGHT is for .* needs DISTILL\.TEACHER"),
        ("MODEL.COMPRESSED_GRID [4,7,15]", r"MODEL\.COMPRESSED_GRID"),
        ("DATA.NUM_FRAMES 15", r"DATA\.NUM_FRAMES is 15; MODEL\.TUBELET takes it in parts of 2"),
        ("DATA.TRAIN_CROP_SIZE 220", r"DATA\.TRAIN_CROP_SIZE is 220; MODEL\.TUBELET takes it in parts of 16"),
        ("MODEL.TUBELET [2,16,13]", r"DATA\.TRAIN_CROP_SIZE is 224; MODEL\.TUBELET takes it in parts of 13"),
        ("DATA.TEST_CROP_SIZE 256", r"DATA\.TEST_CROP_SIZE is 256 and DATA\.TRAIN_CROP_SIZE 224"),
        ("DATA.TEST_SHORT_SIDE 200", r"DATA\.TEST_SHORT_SIDE is 200"),
        ("MODEL.DIM 100 MODEL.NUM_HEADS 3", r"MODEL\.DIM is 100; MODEL\.NUM_HEADS 3 does not divide it"),
        ("DATA.TRAIN_JITTER_SCALES_RELATIVE [0.9,0.5]", r"DATA\.TRAIN_JITTER_SCALES_RELATIVE is \[0\.9, 0\.5\]"),
        ("DATA.TRAIN_JITTER_SCALES_RELATIVE [0,0.5]", r"DATA\.TRAIN_JITTER_SCALES_RELATIVE"),
        ("DATA.TRAIN_JITTER_SCALES_RELATIVE [0.5,1.5]", r"DATA\.TRAIN_JITTER_SCALES_RELATIVE"),
        ("DATA.TRAIN_JITTER_ASPECT_RELATIVE [2,1]", r"DATA\.TRAIN_JITTER_ASPECT_RELATIVE is \[2\.0, 1\.0\]"),
        ("DATA.TRAIN_JITTER_SCALES_RELATIVE [] DATA.TRAIN_JITTER_SCALES [200,320]", r"DATA\.TRAIN_JITTER_SCALES is"),
        ("DATA.TRAIN_JITTER_SCALES_RELATIVE [] DATA.TRAIN_JITTER_SCALES [320,256]", r"DATA\.TRAIN_JITTER_SCALES is"),
        ("TRAIN.ACCUMULATION_STEPS 3", r"TRAIN\.BATCH_SIZE is 64; .*ACCUMULATION_STEPS x AUG\.NUM_SAMPLE = 3"),
        ("TRAIN.ACCUMULATION_STEPS 4 AUG.NUM_SAMPLE 3", r"TRAIN\.BATCH_SIZE is 64; .* = 12 does not divide it"),
        ("MIXUP.ENABLE True MIXUP.ALPHA 0 MIXUP.CUTMIX_ALPHA 0", r"MIXUP\.ENABLE is True with MIXUP\.ALPHA"),
        ("SOLVER.WARMUP_EPOCHS 30", r"SOLVER\.WARMUP_EPOCHS is 30\.0; it must be below SOLVER\.MAX_EPOCH 30"),
        ("SOLVER.MAX_EPOCH 3", r"SOLVER\.WARMUP_EPOCHS is 5\.0; it must be below SOLVER\.MAX_EPOCH 3"),
    ],
)
def test_what_does_not_fit_together(overrides, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        load_config(None, overrides.split())


@pytest.mark.parametrize(
    "overrides",
    [
        "MODEL.ARCH vit MODEL.COMPRESSED_GRID [99,99,99]",  # the dense model has no compressed tokens
        "MODEL.COMPRESSED_GRID [8,14,14]",
        "DATA.TRAIN_JITTER_SCALES_RELATIVE [] DATA.TRAIN_JITTER_SCALES [224,224]",
        "MIXUP.ENABLE True MIXUP.ALPHA 0",
        "TRAIN.ACCUMULATION_STEPS 4 AUG.NUM_SAMPLE 2",
        "DATA.TEST_SHORT_SIDE 224",
        "SOLVER.MAX_EPOCH 1 SOLVER.WARMUP_EPOCHS 0",
        "MODEL.ARCH lookupvit MODEL.ENCODER factorised MODEL.COMPRESSED_GRID [7,7] TEST.GRIDS [[3,3],[5,5]]",
        "MODEL.COMPRESSED_GRIDS [[4,7,7],[2,5,5]] MODEL.COMPRESSED_GRID_WEIGHTS [1,0.5]",
        "MODEL.ARCH x3d MODEL.VARIANT XS",
        "AUG.RE_PROB 1 SOLVER.LAYER_DECAY 1 TEST.NUM_SPATIAL_CROPS 3",
    ],
)
def test_what_just_fits(overrides):
    load_config(None, overrides.split())


def test_token_grid():
    cfg = load_config(None, "DATA.NUM_FRAMES 12 MODEL.TUBELET [3,16,32] MODEL.COMPRESSED_GRID [4,7,7]".split())
    assert token_grid(cfg) == (4, 14, 7)


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
    with pytest.raises(ValueError, match=message):
        config_from_text(text, "model.pt")
