"""A new model is one new file and one line in the registry: it trains, tests, predicts and exports like all others."""

import shutil
import sys

import pytest
import simplejson

from tests.small import ROOT, make_videos, run_command, settings

MODULE = '''"""A model for this test: tokens that go through residual MLPs one by one."""

from torch import Tensor, nn

from lookupvit_video.models.blocks import Classifier
from lookupvit_video.models.contract import Features, VideoModel
from lookupvit_video.models.tokenizer import Grid, TubeletTokenizer


class TokenMLP(VideoModel):
    """No token sees another one before the mean over them."""

    def __init__(self, *, num_classes: int, num_frames: int, size: int, tubelet: Grid, dim: int, depth: int):
        super().__init__()
        self.tokenizer = TubeletTokenizer(num_frames=num_frames, size=size, tubelet=tubelet, dim=dim)
        layers = (nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, dim), nn.GELU()) for _ in range(depth))
        self.blocks = nn.ModuleList(layers)
        self.head = Classifier(dim, num_classes)

    def forward_features(self, clip_BCTHW: Tensor) -> Features:
        """Run tokenizer and blocks on a normalized clip (B, C, T, H, W)."""
        tokens_BND = self.tokenizer(clip_BCTHW)
        for block in self.blocks:
            tokens_BND = tokens_BND + block(tokens_BND)
        return Features(tokens_BND, self.tokenizer.grid)
'''
ENTRY = """\
    "token_mlp": ModelEntry("lookupvit_video.models.token_mlp:TokenMLP", {"Ti": ("token_mlp_tiny", {})}, tubelets=True),
"""


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """A copy of the package with the new model in it."""
    folder = tmp_path_factory.mktemp("extended")
    shutil.copytree(ROOT / "lookupvit_video", folder / "lookupvit_video", ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "lookupvit_video" / "models" / "token_mlp.py").write_text(MODULE)
    registry = folder / "lookupvit_video" / "registry.py"
    start = "MODELS: dict[str, ModelEntry] = {\n"
    assert start in registry.read_text()
    registry.write_text(registry.read_text().replace(start, start + ENTRY))
    make_videos(folder / "data")
    return folder


def test_a_model_in_one_file_and_one_line_of_the_registry(package):
    assert len(MODULE.splitlines()) <= 30
    assert len(ENTRY.splitlines()) == 1

    def call(*arguments):
        command = [sys.executable, "-m", "lookupvit_video", *arguments]
        done = run_command(command, cwd=package, variables={"PYTHONPATH": str(package)})
        assert done.returncode == 0, done.stderr
        return done.stdout

    out, videos = package / "out", package / "data"
    changed = settings(videos, out, MODEL__ARCH="token_mlp", MODEL__VARIANT="Ti", SOLVER__LAYER_DECAY=0.75)
    call("train", "--cfg", str(ROOT / "tests" / "small.yaml"), *changed)
    results = simplejson.loads((out / "test_results.json").read_text())
    assert results["arch"] == "token_mlp"
    assert 0 <= results["top1"] <= 100
    checkpoint = str(out / "model.pt")
    assert "class " in call("predict", "--checkpoint", checkpoint, str(videos / "0.mp4"))
    call("export", "--checkpoint", checkpoint, "--out", str(package / "exported"), "--format", "pt2")
    assert simplejson.loads((package / "exported" / "model.json").read_text())["arch"] == "token_mlp"
