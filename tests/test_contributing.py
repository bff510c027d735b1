"""CONTRIBUTING.md is followed to the letter: its blocks go into a copy of the package, which then does all it did."""

import json
import re
import shutil
import sys
import textwrap

import pytest

from tests.small import ROOT, run_command

TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
STEP = re.compile(r"(Create|Edit)\s+`([\w/.]+)`:\n|^ *```(?:python|diff)\n(.*?)^ *```\n", re.MULTILINE | re.DOTALL)
SETTINGS = {
    "MODEL.ARCH": "convnet", "MODEL.VARIANT": "B", "MODEL.NUM_CLASSES": 3,
    "DATA.NUM_FRAMES": 4, "DATA.SAMPLING_RATE": 2, "DATA.TRAIN_CROP_SIZE": 32, "DATA.TEST_CROP_SIZE": 32,
    "DATA_LOADER.NUM_WORKERS": 0, "TRAIN.BATCH_SIZE": 4, "SOLVER.MAX_EPOCH": 2, "SOLVER.WARMUP_EPOCHS": 0,
    "TEST.METRICS": "['top1','worst_class']", "TRAIN.BEST_METRIC": "worst_class",
    "SOLVER.LOSS": "poly", "AUG.GRAYSCALE_PROB": 0.5, "LOG_PERIOD": 1,
}  # fmt: skip


def steps():
    """Yield (file, block) of each block, those of a diff with their signs."""
    file = ""
    for match in STEP.finditer(TEXT):
        if match[2]:
            file = match[2]
        else:
            yield file, textwrap.dedent(match[3])


def edited(text, block):
    """The text after a diff whose context may leave out the end of a line."""
    lines, changes = text.split("\n"), block.splitlines()
    old = [line[1:] for line in changes if line[:1] != "+"]
    (place,) = (
        at
        for at in range(len(lines) - len(old) + 1)
        if all(line.startswith(part) for line, part in zip(lines[at:], old, strict=False))
    )
    rest, new = iter(lines[place:]), []
    for line in changes:
        if line[:1] == "+":
            new.append(line[1:])
        elif line[:1] == "-":
            next(rest)
        else:
            new.append(next(rest))
    return "\n".join([*lines[:place], *new, *rest])


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    folder = tmp_path_factory.mktemp("copy")
    shutil.copytree(ROOT / "lookupvit_video", folder / "lookupvit_video", ignore=shutil.ignore_patterns("__pycache__"))
    for file, block in steps():
        path = folder / file
        path.write_text(edited(path.read_text(), block) if path.exists() else block, encoding="utf-8")
    return folder


def lookupvit(copy, *arguments):
    command = [sys.executable, "-m", "lookupvit_video", *arguments]
    done = run_command(command, variables={"PYTHONPATH": str(copy)}, cwd=copy)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_each_file_is_changed(copy):
    changed = {file for file, _ in steps()}
    assert len(changed) == 6
    for file in changed:
        original = ROOT / file
        assert not original.exists() or original.read_text() != (copy / file).read_text()


def test_the_new_model_metric_loss_and_augmentation_do_what_the_old_ones_do(copy, data):
    run = copy / "run"
    values = {**SETTINGS, "DATA.PATH_TO_DATA_DIR": data, "OUTPUT_DIR": run}
    cfg = copy / "small.yaml"
    cfg.write_text("LOG_PERIOD: 1\n")
    lookupvit(copy, "train", "--cfg", cfg, *[str(part) for pair in values.items() for part in pair])
    validations = [row for row in map(json.loads, (run / "log.jsonl").open()) if "worst_class" in json.dumps(row)]
    assert validations
    assert "worst_class" in json.loads((run / "test_results.json").read_text())
    assert (run / "best.pt").exists()
    checkpoint = ("--checkpoint", run / "model.pt")
    assert "class" in lookupvit(copy, "predict", *checkpoint, data / "0.mp4", "--json", "-", "--workers", "0")
    lookupvit(copy, "export", *checkpoint, "--out", copy / "exported", "--format", "pt2")
    assert list((copy / "exported").glob("*.pt2"))


def test_the_defaults_of_the_new_settings_change_nothing():
    assert all("Key(0.0" in block for _, block in steps() if "Key(" in block)


def test_a_diff_must_fit():
    assert edited("a\n  bcd\ne", "+x\n   bc\n-e\n+f\n") == "a\nx\n  bcd\nf"
    with pytest.raises(ValueError, match="unpack"):
        edited("a\nb", " c\n")
