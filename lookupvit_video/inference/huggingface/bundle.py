"""What transformers needs in a saved folder: the network's arguments, the processor's rules, and the code of both.

transformers copies single files that import one another by ``from .name import``, so each module of the package becomes
one file, named by its place.
"""

import ast
import inspect
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lookupvit_video.files import write_json
from lookupvit_video.inference.export.description import preprocessing
from lookupvit_video.inference.views import Plan
from lookupvit_video.models.build import ModelSpec
from lookupvit_video.text import write_text

PACKAGE = Path(__file__).parents[2]
HERE = "inference.huggingface."
MODULES = {HERE + "modeling": "modeling_lookupvit_video", HERE + "video_processing": "video_processing_lookupvit_video"}
"""Where the code begins, and what its files are called."""
NOT_COPIED = "models.kernels.flash"  # Triton, which is not everywhere; imported only where it is used
CLASSES = {
    "AutoConfig": "modeling_lookupvit_video.LookupViTVideoConfig",
    "AutoModelForVideoClassification": "modeling_lookupvit_video.LookupViTVideoForVideoClassification",
}


def config_entries(spec: ModelSpec, num_frames: int, temperature: Sequence[float], multi_label: bool) -> dict[str, Any]:
    """Return what config.json holds for transformers; nothing for models that it does not load."""
    model_class = spec.entry.model_class
    if not spec.entry.tubelets:
        return {}
    named = inspect.signature(model_class).parameters
    arguments = {name: value for name, value in spec.arguments.items() if name in named}
    del arguments["num_classes"]  # transformers' num_labels
    options = arguments.pop("options")
    adapted = spec.adapter != "none"
    return {
        "auto_map": CLASSES,
        "num_frames": num_frames,
        "problem_type": "multi_label_classification" if multi_label else "single_label_classification",
        "calibration_temperature": list(temperature),
        "network": {
            "class": model_class.__name__,
            "arguments": arguments,
            "options": asdict(options),
            "adapted_stages": spec.adapted_stages if adapted else [],
            "adapter": [spec.adapter, spec.adapter_width, spec.adapter_scale],
        },
    }


def write_code(folder: Path, plan: Plan, mean: Sequence[float], std: Sequence[float]) -> None:
    """Write the code of model and processor with all it imports from this package, and the processor's rules.

    Args:
        plan: what the model is shown of a video.
        mean, std: of its normalization.
    """
    name = "LookupViTVideoProcessor"
    rules = preprocessing(plan, mean, std)
    del rules["steps"]  # they explain the others
    content = {
        "video_processor_type": name,
        "auto_map": {"AutoVideoProcessor": f"{MODULES[HERE + 'video_processing']}.{name}"},
        "rules": rules,
    }
    write_json(folder / "video_preprocessor_config.json", content, indent=2)
    waiting, done = list(MODULES), set[str]()
    while waiting:
        module = waiting.pop()
        if module in done:
            continue
        done.add(module)
        text, needed = _flat(module)
        write_text(folder / f"{_file(module)}.py", text)
        waiting += needed


def _file(module: str) -> str:
    return MODULES.get(module, f"lookupvit_{module.replace('.', '_')}")


def _source(module: str) -> Path:
    place = PACKAGE.joinpath(*module.split("."))
    return place / "__init__.py" if place.is_dir() else place.with_suffix(".py")


def _imports(text: str) -> Iterator[ast.ImportFrom]:
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == PACKAGE.name:
            yield node


def _flat(module: str) -> tuple[str, list[str]]:
    """Return a module's text with imports from files next to it, and the modules that these are."""
    text = _source(module).read_text(encoding="utf-8")
    lines, needed = text.splitlines(), list[str]()
    for node in _imports(text):
        origin = (node.module or "").partition(".")[2]
        if origin == NOT_COPIED:
            continue
        for alias in node.names:
            inner = f"{origin}.{alias.name}"
            needed.append(inner if _source(inner).is_file() else origin)
        row = node.lineno - 1
        if needed[-1] == origin:
            lines[row] = re.sub(rf"from {PACKAGE.name}\S* import", f"from .{_file(origin)} import", lines[row])
        else:
            files = {_file(f"{origin}.{alias.name}"): alias.name for alias in node.names}
            # the second line is what transformers recognizes
            lines[row] = "\n".join(
                f"from . import {file} as {name}\nfrom .{file} import __doc__ as _{name}"
                for file, name in files.items()
            )
    return "\n".join(lines) + "\n", needed
