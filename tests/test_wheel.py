"""The wheel, built and installed offline, does everything without a clone."""

import shutil
import sys

import pytest

from tests.commands.test_train import kinetics_layout
from tests.small import ROOT, run_command, settings

SOURCES = ("setup.py", "setup.cfg", "pyproject.toml", "README.md", "LICENSE")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The folder that the wheel is installed in."""
    folder = tmp_path_factory.mktemp("wheel")
    (folder / "source").mkdir()
    for name in SOURCES:
        shutil.copy(ROOT / name, folder / "source")
    for name in ("lookupvit_video", "configs"):
        shutil.copytree(ROOT / name, folder / "source" / name, ignore=shutil.ignore_patterns("__pycache__"))
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    built = run_command([*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", folder, folder / "source"])
    assert built.returncode == 0, built.stdout + built.stderr
    (file,) = folder.glob("*.whl")
    installed = run_command([*pip, "install", "--no-deps", "--no-index", "--target", folder / "site", file])
    assert installed.returncode == 0, installed.stdout + installed.stderr
    shutil.rmtree(folder / "source")
    return folder / "site"


@pytest.fixture
def python(wheel, tmp_path):
    """Run Python outside of the clone, with the wheel in front of everything."""

    def run(*arguments):
        done = run_command([sys.executable, *arguments], cwd=tmp_path, variables={"PYTHONPATH": str(wheel)})
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run


def test_version_and_command(wheel, python):
    assert python("-m", "lookupvit_video", "--version") == python(wheel / "bin" / "lookupvit", "--version")
    assert python("-m", "lookupvit_video", "--version").startswith("lookupvit 0.")
    assert python("-c", "import lookupvit_video as l; print(l.__file__)").startswith(str(wheel))
    assert (wheel / "lookupvit_video" / "inference" / "export" / "browser" / "index.html").is_file()


def test_all_configs_are_found_by_name(wheel, python):
    names = [path.relative_to(ROOT / "configs").with_suffix("").as_posix() for path in ROOT.glob("configs/**/*.yaml")]
    shipped = [name for name in names if "/" not in name]
    assert len(names) > len(shipped) > 5
    checked = python("-m", "lookupvit_video", "check-configs", *shipped)
    assert len(checked.splitlines()) == len(shipped)
    for name in set(names) - set(shipped):
        python("-m", "lookupvit_video", "study", "--study", name, "--table-only", "--out", "out")


def test_a_training_and_a_prediction(python, tmp_path):
    kinetics_layout(tmp_path / "data", ".mp4", "libx264")
    small = settings(tmp_path / "data", tmp_path / "run", MODEL__NUM_CLASSES=4, SOLVER__MAX_EPOCH=1,
                     SOLVER__WARMUP_EPOCHS=0, AUG__NUM_SAMPLE=1)  # fmt: skip
    command = ["-m", "lookupvit_video", "train", "--cfg", "k400_lvit"]
    assert "one step" in python(*command, "--dry-run", *small)
    assert not (tmp_path / "run").exists()
    python(*command, *small)
    model, video = tmp_path / "run" / "model.pt", tmp_path / "data" / "test" / "class 1" / "clip_test_1.mp4"
    assert "class" in python("-m", "lookupvit_video", "predict", "--checkpoint", model, "--workers", 1, video)


def test_a_model_from_python(python):
    code = "from lookupvit_video import create_model; print(type(create_model('lookupvit_base_16x2')).__name__)"
    assert python("-c", code) == "LookupViT\n"
