"""A folder with a page that runs an exported model in the browser; no server code, nothing from other hosts.

Its scripts are in the folder `browser`; the runtime, onnxruntime-web, is copied from npm's package, or from a folder.
"""

import base64
import copy
import hashlib
import io
import logging
import shutil
import tarfile
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lookupvit_video.errors import RunFailure, UserError
from lookupvit_video.files import atomic_write, cache_folder, write_json
from lookupvit_video.inference.export.export import DeployedModel, export_model
from lookupvit_video.inference.timeline import plan_windows, window_offsets
from lookupvit_video.inference.views import Plan
from lookupvit_video.models.kernels.int8 import quantize_weights

logger = logging.getLogger(__name__)
VERSION = "1.30.0"
URL = f"https://registry.npmjs.org/onnxruntime-web/-/onnxruntime-web-{VERSION}.tgz"
SHA512 = "q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
RUNTIME = (
    "ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm",
    "ort.webgpu.min.mjs", "ort-wasm-simd-threaded.asyncify.mjs", "ort-wasm-simd-threaded.asyncify.wasm",
)  # fmt: skip
PAGE = Path(__file__).parent / "browser"
_TIMEOUT = 60  # seconds without a byte


def find_runtime(given: Path | None) -> Path:
    """Return a folder with the files of ``RUNTIME``.

    Args:
        given: npm's package, or a folder with the files of its `dist`; None: the package is downloaded once.

    Raises:
        UserError: what is given lacks them, or is another version's package.
        RunFailure: the package cannot be downloaded, or is not the one that is known.
    """
    if given is not None and given.is_dir():
        for folder in (given, given / "dist", given / "package" / "dist"):
            if all((folder / name).is_file() for name in RUNTIME):
                return folder
        missing = next(name for name in RUNTIME if not (given / name).is_file())
        raise UserError(f"--runtime {given}: has no {missing}; it must hold the files of onnxruntime-web's dist")
    cached = cache_folder() / f"onnxruntime-web-{VERSION}"
    if given is None and all((cached / name).is_file() for name in RUNTIME):
        return cached
    package = _downloaded() if given is None else _given(given)
    if base64.b64encode(hashlib.sha512(package).digest()).decode() != SHA512:
        where = URL if given is None else f"--runtime {given}"
        raise (RunFailure if given is None else UserError)(f"{where}: not the package of onnxruntime-web {VERSION}")
    _unpack(package, cached)
    return cached


def _given(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"--runtime {path}: {error.strerror}") from None


def _downloaded() -> bytes:
    logger.info("downloading onnxruntime-web %s, once: 33 MB from npm", VERSION)
    try:
        with urllib.request.urlopen(URL, timeout=_TIMEOUT) as response:
            return bytes(response.read())
    except (urllib.error.URLError, OSError) as error:
        why = getattr(error, "reason", error)
        raise RunFailure(
            f"format web: {URL} cannot be downloaded ({why}); fetch it elsewhere and give it with --runtime FILE"
        ) from None


def _unpack(package: bytes, folder: Path) -> None:
    """Write the files of the runtime from npm's package, each completely or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    with tarfile.open(fileobj=io.BytesIO(package)) as archive:
        for name in RUNTIME:
            member = archive.extractfile(f"package/dist/{name}")
            assert member is not None  # of a package whose checksum is known
            with atomic_write(folder / name) as temporary:
                temporary.write_bytes(member.read())


def write_models(folder: Path, plain: DeployedModel, example: Tensor) -> dict[str, dict[str, Any]]:
    """Write the model in floats and with weights of 8 bits; return facts on each file.

    Only the weights have 8 bits: with activations of 8 bits too (`--int8`), WebAssembly takes several times as long.

    Raises:
        UserError: a file's answers differ from those of the model that it was made from.
    """
    small = copy.deepcopy(plain)
    quantize_weights(small.model)
    found = {}
    for weights, name, model in (("floats", "model.onnx", plain), ("8 bits", "model_int8.onnx", small)):
        facts = export_model(model, example, folder / name, "onnx")
        with torch.no_grad():
            from_floats = float((model(example) - plain(example)).abs().max())
        found[name] = {"weights": weights, "file": name, "bytes": facts["bytes"], "difference_to_floats": from_floats,
                       "max_difference": facts["max_difference"]}  # fmt: skip
    return found


def write_web(
    folder: Path, models: Mapping[str, Mapping[str, Any]], facts: Mapping[str, Any], plan: Plan, runtime: Path
) -> None:
    """Complete the folder of a page whose models are there.

    Args:
        models: of ``write_models``; the first one is the page's choice.
        facts: of model.json.
        runtime: of ``find_runtime``.
    """
    for file in (*PAGE.iterdir(), *(runtime / name for name in RUNTIME)):
        if file.is_file():
            with atomic_write(folder / file.name) as temporary:
                shutil.copyfile(file, temporary)
    _, window = plan_windows(plan, 0.0, None, None)
    live = {
        "window_seconds": window,
        "offsets": window_offsets(plan, window).tolist(),
        "files": list(models.values()),
        "runtime": f"onnxruntime-web {VERSION}",
    }
    write_json(folder / "model.json", {**facts, "live": live})
