"""What ``import lookupvit_video`` offers, and that it is quick to import."""

import pydoc
import subprocess
import sys

import pytest

import lookupvit_video


def test_every_public_name_is_there():
    for name in lookupvit_video.__all__:
        assert getattr(lookupvit_video, name) is not None
    assert lookupvit_video.__version__[0].isdigit()
    with pytest.raises(AttributeError, match="has no attribute nothing"):
        _ = lookupvit_video.nothing


def test_people_find_their_way():
    assert set(lookupvit_video.__all__) == set(dir(lookupvit_video))
    text = pydoc.render_doc(lookupvit_video.load_model, renderer=pydoc.plaintext)
    for part in ("load_model(checkpoint: str | pathlib", 'load_model("runs/mine")', "device:", "Raises:"):
        assert part in text


def test_importing_it_imports_nothing_heavy():
    code = "import sys, lookupvit_video as l; l.list_models(); print({'torch', 'numpy', 'fvcore'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
