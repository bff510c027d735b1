"""docs/tutorial.ipynb: every cell runs, in order, in this process and at a small size."""

import ast
import json
import os
import shlex

from tests.small import ROOT, call_tool

NOTEBOOK = ROOT / "docs" / "tutorial.ipynb"
SMALL = {
    "VIDEOS, MINUTES = 480, 3": "VIDEOS, MINUTES = 24, 0.1",
    "OUTPUT_DIR": "SOLVER.MAX_EPOCH 1 DATA.TRAIN_CROP_SIZE 32 OUTPUT_DIR",
}


def run_cell(source, names, folder):
    """Run a cell as Jupyter does: "!" begins a command, in which {NAME} is a value; return the value at the end."""
    if source.startswith("!lookupvit "):
        words = shlex.split(source.removeprefix("!lookupvit ").format_map(names))
        done = call_tool(ROOT / "lookupvit_video" / "__main__.py", *words, folder=folder)
        assert done.returncode == 0, done.stderr
        return done.stdout
    tree = ast.parse(source)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, str(NOTEBOOK), "exec"), names)
    return eval(compile(ast.Expression(last.value), str(NOTEBOOK), "eval"), names) if last else None


def test_the_tutorial_goes_from_a_folder_to_answers_and_pictures(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "agg")
    names, values = {}, []
    for cell in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] == "code":
            source = "".join(cell["source"])
            for large, small in SMALL.items():
                source = source.replace(large, small)
            values.append(run_cell(source, names, tmp_path))
    assert sum(hasattr(value, "_repr_png_") for value in values) == 3  # Jupyter shows these pictures
    assert any(repr(value).startswith("Predictor(lookupvit") for value in values)
    shown = capsys.readouterr().out.splitlines()
    assert len(shown) == 5
    assert "broken.mp4 is text, not a video" in shown[-1]
    assert os.listdir(tmp_path / "sheets") == ["000_00000.png"]
