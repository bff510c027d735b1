"""The formats of exported models: what each needs, how its file is written, and how it is run here to check it.

Shape letters: B clips, C channels, T frames, H W pixels, K classes.
"""

import contextlib
import importlib
import logging
import os
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

from lookupvit_video.errors import UserError
from lookupvit_video.models.kernels.compiler import require_compiler

Run = Callable[[Tensor], Tensor]
"""uint8 clips (B, C, T, H, W) -> probabilities (B, K), float32."""

_XNNPACK_AXES = 6  # of a tensor; ExecuTorch's partitioner does not look at them


@dataclass(frozen=True)
class Format:
    """One format.

    Args:
        file: its name in the folder.
        write: writes an exported program to a path with the file's suffix, and next to it what ``beside`` says.
        load: returns what runs the file; None: no runtime of this machine can.
        extra: of the package, that installs what it needs; empty: torch alone.
        needs: modules to import.
        any_batch: whether the number of clips may stay free.
        int8: whether it has the products of ``--int8``.
        beside: suffixes of further files.
        dtype: of the clips.
    """

    file: str
    write: Callable[[ExportedProgram, Path], Any]
    load: Callable[[Path], Run] | None
    extra: str = ""
    needs: tuple[str, ...] = ()
    any_batch: bool = True
    int8: bool = False
    beside: tuple[str, ...] = ()
    dtype: torch.dtype = torch.uint8

    def files(self, path: Path) -> list[Path]:
        """Return the files of a model whose main file is ``path``, this one first."""
        return [path, *(path.with_suffix(suffix) for suffix in self.beside)]


# torch.export and AOTInductor ---------------------------------------------------------------------------------------


def _write_aoti(program: ExportedProgram, path: Path) -> None:
    torch._inductor.aoti_compile_and_package(program, package_path=str(path))


def _load_pt2(path: Path) -> Run:
    return torch.export.load(path).module()


def _load_aoti(path: Path) -> Run:
    return torch._inductor.aoti_load_package(str(path))


# ONNX ---------------------------------------------------------------------------------------------------------------


def write_onnx(
    program: ExportedProgram,
    path: Path,
    inputs: Sequence[str] = ("clips",),
    outputs: Sequence[str] = ("probabilities",),
) -> None:
    """Write a program as one ONNX file, whose inputs and outputs have these names."""
    for name in ("onnxscript", "onnx_ir"):  # which log every step
        logging.getLogger(name).setLevel(logging.WARNING)
    torch.onnx.export(
        program,
        (),
        str(path),
        dynamo=True,
        external_data=False,  # one file
        verbose=False,
        input_names=list(inputs),
        output_names=list(outputs),
        custom_translation_table={torch.ops.aten._int_mm.default: _onnx_int_mm},
    )


def _onnx_int_mm(ints: Any, weight: Any) -> Any:
    """Write the product of the 8-bit layers, which torch's exporter does not know."""
    operators: Any = importlib.import_module("onnxscript").opset18
    return operators.MatMulInteger(ints, weight)


def onnx_session(path: str | Path) -> Any:
    """Open a file with ONNX Runtime, on as many threads as torch uses, with its usage reports off."""
    onnxruntime: Any = importlib.import_module("onnxruntime")
    onnxruntime.disable_telemetry_events()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _load_onnx(path: Path) -> Run:
    session = onnx_session(path)
    return lambda clips: torch.from_numpy(session.run(None, {"clips": clips.cpu().numpy()})[0])


# OpenVINO -----------------------------------------------------------------------------------------------------------


def _write_openvino(program: ExportedProgram, path: Path) -> None:
    openvino: Any = importlib.import_module("openvino")
    model = openvino.convert_model(program)
    model.inputs[0].get_tensor().set_names({"clips"})
    model.outputs[0].get_tensor().set_names({"probabilities"})
    openvino.save_model(model, str(path), compress_to_fp16=False)


def _load_openvino(path: Path) -> Run:
    openvino: Any = importlib.import_module("openvino")
    # In float32: on some processors its default is bfloat16.
    hints = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    model = openvino.Core().compile_model(str(path), "CPU", hints)
    return lambda clips: torch.from_numpy(model(clips.cpu().numpy())[0])


# LiteRT -------------------------------------------------------------------------------------------------------------


def _write_litert(program: ExportedProgram, path: Path) -> None:
    converter: Any = importlib.import_module("litert_torch")
    (clips,) = program.example_inputs[0]
    converter.convert(program.module(), (clips,)).export(str(path))


def _load_litert(path: Path) -> Run:
    interpreter: Any = importlib.import_module("ai_edge_litert.interpreter").Interpreter(
        model_path=str(path), num_threads=torch.get_num_threads()
    )
    interpreter.allocate_tensors()
    (given,), (answer,) = interpreter.get_input_details(), interpreter.get_output_details()

    def run(clips: Tensor) -> Tensor:
        interpreter.set_tensor(given["index"], clips.cpu().numpy())
        interpreter.invoke()
        return torch.from_numpy(interpreter.get_tensor(answer["index"]))

    return run


# ExecuTorch ---------------------------------------------------------------------------------------------------------


def _write_executorch(program: ExportedProgram, path: Path) -> None:
    exir: Any = importlib.import_module("executorch.exir")
    partitioner: Any = importlib.import_module("executorch.backends.xnnpack.partition.xnnpack_partitioner")
    configs: Any = importlib.import_module("executorch.backends.xnnpack.partition.config").ALL_PARTITIONER_CONFIGS
    parts = partitioner.XnnpackPartitioner(configs=[_of_few_axes(config) for config in configs])
    path.write_bytes(exir.to_edge_transform_and_lower(program, partitioner=[parts]).to_executorch().buffer)


def _of_few_axes(config: Any) -> Any:
    """Keep a kind of operation from XNNPACK where a tensor has more axes than XNNPACK allows, as tubelets have."""

    def check_constraints(self: Any, node: Any, program: Any) -> bool:
        tensors = [one.meta.get("val") for one in (node, *node.all_input_nodes)]
        few = all(one.dim() <= _XNNPACK_AXES for one in tensors if isinstance(one, Tensor))
        return few and bool(config.check_constraints(self, node, program))

    return type(config.__name__, (config,), {"check_constraints": check_constraints})


def _load_executorch(path: Path) -> Run:
    runtime: Any = importlib.import_module("executorch.runtime").Runtime.get()
    method = runtime.load_program(str(path)).load_method("forward")

    def run(clips: Tensor) -> Tensor:
        answer: Tensor = method.execute([clips.cpu()])[0]
        return answer.clone()  # its memory is used again by the next call

    return run


# Core ML ------------------------------------------------------------------------------------------------------------


def _write_coreml(program: ExportedProgram, path: Path) -> None:
    """Write a package of Core ML, which is a folder, as one zip file."""
    tools: Any = importlib.import_module("coremltools")
    model = tools.convert(
        program.run_decompositions({}),
        outputs=[tools.TensorType(name="probabilities")],
        minimum_deployment_target=tools.target.iOS17,
        compute_precision=tools.precision.FLOAT32,
    )
    with tempfile.TemporaryDirectory() as folder:
        model.save(str(Path(folder, "model.mlpackage")))
        made = shutil.make_archive(str(Path(folder, "model")), "zip", folder, "model.mlpackage")
        shutil.copyfile(made, path)


def _load_coreml(path: Path) -> Run:
    tools: Any = importlib.import_module("coremltools")
    with tempfile.TemporaryDirectory() as folder:
        shutil.unpack_archive(path, folder, "zip")
        model = tools.models.MLModel(str(Path(folder, "model.mlpackage")))
    return lambda clips: torch.from_numpy(model.predict({"clips": clips.cpu().int().numpy()})["probabilities"])


FORMATS = {
    "pt2": Format("model.pt2", torch.export.save, _load_pt2, int8=True),
    "onnx": Format(
        "model.onnx", write_onnx, _load_onnx, "export", ("onnx", "onnxscript", "onnxruntime"), int8=True
    ),
    "aoti": Format("model_aoti.pt2", _write_aoti, _load_aoti, int8=True),
    "openvino": Format(
        "model_openvino.xml", _write_openvino, _load_openvino, "openvino", ("openvino",), beside=(".bin",)
    ),
    "litert": Format(
        "model.tflite", _write_litert, _load_litert, "litert", ("litert_torch", "ai_edge_litert"), any_batch=False
    ),
    "executorch": Format(
        "model.pte", _write_executorch, _load_executorch, "executorch", ("executorch",), any_batch=False
    ),
    "coreml": Format(
        "model.mlpackage.zip", _write_coreml, _load_coreml if sys.platform == "darwin" else None, "coreml",
        ("coremltools",), any_batch=False, dtype=torch.int32,
    ),
}  # fmt: skip


def write(program: ExportedProgram, kind: str, path: Path) -> None:
    """Write an exported program in one format, without the reports of its tools."""
    with _quiet():
        FORMATS[kind].write(program, path)


def load_exported(path: str | Path, kind: str) -> Run:
    """Load an exported model, with torch's number of threads (but ExecuTorch, which takes its own).

    Load only files that you trust, since those of torch contain code.

    Raises:
        UserError: no runtime on this machine takes the format.
    """
    load = FORMATS[kind].load
    if load is None:
        raise UserError(f"{path}: {kind} runs on macOS only")
    with _quiet():
        return load(Path(path))


def check_format(kind: str, *, batch: int | None = None, int8: bool = False) -> None:
    """Raise UserError where a format is unknown, does not have what is asked for, or its tools are missing.

    Args:
        batch: clips per call; None: any number.
    """
    if kind not in FORMATS:
        raise UserError(f"format {kind!r}: choose from {', '.join(FORMATS)}")
    if batch is None and not FORMATS[kind].any_batch:
        raise UserError(f"format {kind}: its models take a fixed number of clips; say how many, for example --batch 1")
    if int8 and not FORMATS[kind].int8:
        with_int8 = ", ".join(name for name, one in FORMATS.items() if one.int8)
        raise UserError(f"format {kind} has no --int8: choose from {with_int8}")
    for name in FORMATS[kind].needs:
        try:
            with _quiet():
                importlib.import_module(name)
        except ImportError:
            raise UserError(f"{kind} needs {name}: pip install -e .[{FORMATS[kind].extra}]") from None
    if kind == "aoti":
        require_compiler("format aoti", "cpu", "pt2 and onnx need none")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep off the terminal what the tools print, log and warn of; their errors are raised."""
    disabled = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with open(os.devnull, "w") as nowhere, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
                yield
    finally:
        logging.disable(disabled)
