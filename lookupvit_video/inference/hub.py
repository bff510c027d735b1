"""Models in Hugging Face's layout: config.json, model.safetensors, and a model card of measured facts.

Written without huggingface_hub, which only a download needs.
"""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import simplejson
import yaml
from safetensors.torch import save_file

from lookupvit_video.checkpoints.checkpoint import Checkpoint
from lookupvit_video.config import KEYS, config_from_text
from lookupvit_video.errors import UserError
from lookupvit_video.evaluation.metrics import METRICS, main_metric
from lookupvit_video.files import atomic_write, write_json
from lookupvit_video.models.pretrained import load_safetensors
from lookupvit_video.remote import is_hub_id
from lookupvit_video.text import markdown_table, write_text

CONFIG, WEIGHTS, CARD, CALIBRATION = "config.json", "model.safetensors", "README.md", "calibration.json"
MODEL_TYPE = "lookupvit_video"
# Paths of the machine that trained the model; nobody else needs them.
LOCAL_KEYS = """OUTPUT_DIR TEST.CHECKPOINT_FILE_PATH DATA.PATH_TO_DATA_DIR DATA.PATH_PREFIX DATA.SKIP_LIST
                DATA.INDEX_CACHE MODEL.INIT_FROM DISTILL.TEACHER DISTILL.FEATURE_WEIGHT
                DISTILL.BLOCK_WEIGHT"""


def write_pretrained(
    folder: Path,
    loaded: Checkpoint,
    architecture: str,
    gmacs: dict[str, float],
    parameters: int,
    more: Mapping[str, Any],
) -> None:
    """Write config.json, model.safetensors and README.md; ``read_pretrained`` reads them back.

    calibration.json in addition, where there is one.

    Args:
        loaded: its card quotes the test_results.json next to it that is of this very file.
        architecture: name of the model's class.
        gmacs: of one view, by compressed grid ("" for a model without).
        more: further entries of config.json.

    Raises:
        OSError: the folder cannot be written to.
    """
    content = {
        "architectures": [architecture],
        "model_type": MODEL_TYPE,
        "id2label": {str(label): name for label, name in enumerate(loaded.classes)},
        "label2id": {name: label for label, name in enumerate(loaded.classes)},
        "lookupvit_video": portable(yaml.safe_load(loaded.config.dump())),
        **({"thresholds": loaded.thresholds} if loaded.thresholds else {}),
        **more,
    }
    write_json(folder / CONFIG, content, indent=2)
    (folder / CALIBRATION).unlink(missing_ok=True)  # of a model that was there before
    if loaded.calibration:
        write_json(folder / CALIBRATION, loaded.calibration, indent=None)
    with atomic_write(folder / WEIGHTS) as temporary:
        # Copies, since the format allows no two names for one memory.
        state = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in loaded.model.items()}
        save_file(state, temporary, metadata={"format": "pt"})
    write_text(folder / CARD, model_card(folder.resolve().name, loaded, gmacs, parameters, test_results(loaded.path)))


def portable(settings: dict[str, Any]) -> dict[str, Any]:
    """Return a config's settings without the paths of the machine that wrote it."""
    found = copy.deepcopy(settings)
    for name in LOCAL_KEYS.split():
        group, _, key = name.rpartition(".")
        (found[group] if group else found)[key] = KEYS[name].default
    return found


def test_results(checkpoint: Path) -> dict[str, Any] | None:
    """Return test_results.json next to a checkpoint if it is of this very file; else None."""
    try:
        found = simplejson.loads(checkpoint.with_name("test_results.json").read_text(encoding="utf-8"))
        is_same = Path(found["checkpoint"]).name == checkpoint.name
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return found if is_same and {main_metric(found), "videos", "views", "precision"} <= found.keys() else None


def model_card(
    name: str, loaded: Checkpoint, gmacs: dict[str, float], parameters: int, results: dict[str, Any] | None
) -> str:
    """Return the text of a model card: what the model is, its cost, and its accuracy where measured."""
    data, model, classes = loaded.config.DATA, loaded.config.MODEL, loaded.classes
    sampling = (
        f"one from each of {data.NUM_FRAMES} equal parts of the video"
        if data.SAMPLING == "segments"
        else f"{data.SAMPLING_RATE / data.TARGET_FPS:.4g} s apart"
    )
    costs = "\n".join(f"| {grid or '-'} | {cost:.4g} |" for grid, cost in gmacs.items())
    some = ", ".join(classes[:20]) + (f", ... (all {len(classes)} in {CONFIG})" if len(classes) > 20 else "")
    return f"""---
library_name: lookupvit_video
pipeline_tag: video-classification
tags:
- video-classification
- {model.ARCH}
---

# {name}

{model.ARCH} for video classification, {parameters:,} parameters, {len(classes)} classes: {some}.
It takes clips of {data.NUM_FRAMES} frames, {sampling}, of {data.TEST_CROP_SIZE} x {data.TEST_CROP_SIZE} pixels.
Its training started from {"pretrained" if model.INIT_FROM else "random"} weights.

```python
from lookupvit_video import load_model

model = load_model("{name}")  # this folder, or its id on the Hub
print(model.predict("video.mp4", topk=5))
```

## Cost

| compressed grid | GMACs a view |
|---|---|
{costs}

GMACs are 10^9 multiply-accumulates (papers call them GFLOPs), attention included.

## Accuracy

{_accuracy(results)}
"""


def _accuracy(results: dict[str, Any] | None) -> str:
    if results is None:
        return "Not measured."
    metrics = {name: metric.label for name, metric in METRICS.items() if name in results and metric.percent}
    accuracy = ", ".join(f"{label} {results[name]} %" for name, label in metrics.items()).capitalize()
    found = (
        f"{accuracy} of {results['videos']} test videos, {results['views']} views (times x crops), "
        f"{results['precision']}; {len(results.get('bad_videos', []))} that could not be read count as wrong."
    )
    if grids := results.get("grids"):
        header = ["compressed grid", "GMACs a view", *(f"{label}, %" for label in metrics.values())]
        rows = [[row[key] for key in ("grid", "gmacs_per_view", *metrics)] for row in grids]
        found += "\n\n" + markdown_table(header, rows).rstrip()
    return found


def read_pretrained(source: str | Path, revision: str | None = None) -> Checkpoint:
    """Read a folder of ``write_pretrained``, or fetch it from the Hugging Face Hub; no code in it is executed.

    Raises:
        UserError: it is missing, damaged, or something else.
    """
    folder = Path(source)
    if not folder.is_dir():
        folder = _downloaded(str(source), revision)
    try:
        content = simplejson.loads((folder / CONFIG).read_text(encoding="utf-8"))
        names, tree = content["id2label"], content["lookupvit_video"]
        classes = [names[str(label)] for label in range(len(names))]
        tree["MODEL"]["NUM_CLASSES"] = len(classes)  # transformers may have given it a head for others
        thresholds = [float(value) for value in content.get("thresholds", [])]
    except OSError as error:
        hint = "give a .pt file of training, the folder of a finished run (model.pt), or one of save_pretrained"
        raise UserError(f"{folder / CONFIG}: cannot be read ({error.strerror}); {hint}") from None
    except (ValueError, TypeError, KeyError, RecursionError):
        raise UserError(
            f"{folder / CONFIG}: not a config of this project; Predictor.save_pretrained writes one"
        ) from None
    calibration = _read_calibration(folder / CALIBRATION)
    cfg = config_from_text(simplejson.dumps(tree), f"{folder / CONFIG} (lookupvit_video)")  # JSON is YAML
    try:
        state = load_safetensors(folder / WEIGHTS)
    except Exception as error:  # of a damaged file: any class
        reason = "No such file" if isinstance(error, FileNotFoundError) else "damaged, or not a file of weights"
        raise UserError(f"{folder / WEIGHTS}: these weights cannot be read ({reason})") from None
    return Checkpoint(
        folder, cfg, classes, state, optimizer=None, step=0, best_top1=-1.0, thresholds=thresholds,
        calibration=calibration,
    )  # fmt: skip


def _read_calibration(path: Path) -> dict[str, Any]:
    try:
        found = simplejson.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    except (OSError, ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise UserError(f"{path}: damaged; run lookupvit calibrate and Predictor.save_pretrained again")
    return found


def _downloaded(repository: str, revision: str | None) -> Path:
    if not is_hub_id(repository):
        raise UserError(f"{repository}: no such folder, and not an id of the Hugging Face Hub (org/name)")
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise UserError(
            f"{repository}: no such file or folder; to fetch it from the Hugging Face Hub, pip install huggingface_hub"
        ) from None
    try:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=[CONFIG, WEIGHTS, CALIBRATION]))
    except Exception as error:  # offline, missing, no access: each another class
        raise UserError(
            f"{repository}: no such file or folder, and it cannot be fetched from the Hugging Face Hub "
            f"({type(error).__name__}); check the name and the network"
        ) from None
