"""Imports run downwards only, without circles; folders stay small. docs/architecture.md describes the layers."""

import ast
from collections import defaultdict
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "lookupvit_video"
# From the top down: a folder imports from those of lower layers, and from its own layer as far as no circle results.
LAYERS = [
    {"__init__", "__main__"},
    {"commands"},
    {"hf"},
    {"benchmarks", "inference", "own_videos", "studies", "training"},
    {"evaluation"},
    {"checkpoints", "preparation"},
    {"data", "distributed"},
    {"corruptions", "decoding", "models"},
    {"processes"},
    {"config", "drawing", "log"},
    {"arguments", "errors", "files", "progress", "provenance", "registry", "remote", "seeding", "text"},
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
MODULES = sorted(PACKAGE.rglob("*.py"))


def place_of(module: Path) -> str:
    """The folder of a module, or its name at the top."""
    return module.relative_to(PACKAGE).with_suffix("").parts[0]


def imports_of(module: Path) -> set[str]:
    """The folders of the package that a module imports from, at its top or inside functions."""
    found = set()
    for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level == 0:
            parts = (node.module or "").split(".")
            imported = [alias.name for alias in node.names if alias.name != "__version__"]  # a constant
            names = [parts[1]] if len(parts) > 1 else imported
        elif isinstance(node, ast.Import):
            parts = [alias.name for alias in node.names if alias.name.startswith("lookupvit_video.")]
            names, parts = [name.split(".")[1] for name in parts], ["lookupvit_video"] if parts else [""]
        else:
            continue
        if parts[0] == "lookupvit_video":
            found |= {name if name in LEVEL else "__init__" for name in names}
    return found


@pytest.mark.parametrize("module", MODULES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_imports_run_downwards(module):
    own = place_of(module)
    assert [name for name in imports_of(module) if LEVEL[name] < LEVEL[own]] == []


def test_folders_do_not_import_one_another_in_circles():
    below = defaultdict(set)
    for module in MODULES:
        below[place_of(module)] |= imports_of(module) - {place_of(module)}
    assert [(a, b) for a in below for b in below[a] if a in below[b]] == []


@pytest.mark.parametrize("folder", sorted({path.parent for path in MODULES}), ids=lambda path: path.name)
def test_a_folder_holds_at_most_twelve_modules(folder):
    assert len([path for path in folder.glob("*.py") if path.name != "__init__.py"]) <= 12


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_functions_have_at_most_sixty_lines(path):
    nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    functions = [node for node in nodes if isinstance(node, ast.FunctionDef)]
    assert [node.name for node in functions if node.end_lineno - node.lineno >= 60] == []


def test_few_functions_take_the_whole_config():
    """Below what builds a run, functions take plain arguments."""
    found = []
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef):
                arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
                if any(arg.annotation and "CfgNode" in ast.unparse(arg.annotation) for arg in arguments):
                    found.append(f"{place_of(path)}: {node.name}")
    assert len(found) <= 30, "\n".join(found)
