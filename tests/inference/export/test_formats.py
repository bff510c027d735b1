"""Each format's file against the checkpoint, where its tools are installed; what is refused where they are not."""

import logging
import sys
import zipfile
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from lookupvit_video.inference.export import formats, reference
from lookupvit_video.inference.export.export import deployed_model, example_clips, export_model
from lookupvit_video.inference.export.formats import FORMATS, check_format, load_exported
from tests.inference.export.test_export import ALL, MODELS, predictor

PACKAGES = {
    "pt2": [],
    "onnx": ["onnx", "onnxscript", "onnxruntime"],
    "aoti": [],
    "openvino": ["openvino"],
    "litert": ["litert_torch", "ai_edge_litert"],
    "executorch": ["executorch"],
    "coreml": ["coremltools"],
}
FILES = {
    "pt2": "model.pt2",
    "onnx": "model.onnx",
    "aoti": "model_aoti.pt2",
    "openvino": "model_openvino.xml",
    "litert": "model.tflite",
    "executorch": "model.pte",
    "coreml": "model.mlpackage.zip",
}


def test_each_format_has_a_file_and_all_but_that_of_macos_are_run_by_the_reference():
    assert {kind: one.file for kind, one in FORMATS.items()} == FILES
    assert set(reference.RUNTIMES) == set(FILES.values()) - {FILES["coreml"]}


@pytest.mark.parametrize("kind", [kind for kind, packages in PACKAGES.items() if packages])
def test_a_package_that_is_missing_is_told_with_its_extra(monkeypatch, kind):
    extra = "export" if kind == "onnx" else kind
    for missing in PACKAGES[kind]:
        with monkeypatch.context() as changed:
            for name in PACKAGES[kind]:
                changed.setitem(sys.modules, name, SimpleNamespace())
            check_format(kind, batch=1)
            changed.setitem(sys.modules, missing, None)
            with pytest.raises(ValueError, match=rf"^{kind} needs {missing}: pip install -e \.\[{extra}\]$"):
                check_format(kind, batch=1)
            check_format("pt2")


@pytest.mark.parametrize("kind", FORMATS)
def test_what_a_format_does_not_have_is_told(monkeypatch, kind):
    for name in PACKAGES[kind]:
        monkeypatch.setitem(sys.modules, name, SimpleNamespace())
    fixed = kind in ("litert", "executorch", "coreml")
    with pytest.raises(ValueError, match=f"{kind}: its models take a fixed .* --batch 1") if fixed else nullcontext():
        check_format(kind)
    small = kind in ("pt2", "onnx", "aoti")
    with (
        nullcontext()
        if small
        else pytest.raises(ValueError, match=f"{kind} has no --int8: choose from pt2, onnx, aoti")
    ):
        check_format(kind, batch=1, int8=True)


def test_an_unknown_format_and_a_missing_compiler_are_told():
    with pytest.raises(ValueError, match="format 'tflite': choose from pt2, onnx, aoti, openvino, litert"):
        check_format("tflite")
    with (
        torch._inductor.config.patch({"cpp.cxx": ("/no/such/compiler",)}),
        pytest.raises(ValueError, match=r"format aoti needs a C\+\+ compiler: install g\+\+"),
    ):
        check_format("aoti")


def test_onnx_is_written_into_one_file_without_a_word(monkeypatch):
    given = []
    for name in ("onnxscript", "onnx_ir"):
        monkeypatch.setattr(logging.getLogger(name), "level", logging.DEBUG)
    monkeypatch.setattr(torch.onnx, "export", lambda *args, **options: given.append((args, options)))
    formats.write_onnx("program", Path("x.onnx"))
    names = {"input_names": ["clips"], "output_names": ["probabilities"]}  # as docs/export.md uses them
    table = {torch.ops.aten._int_mm.default: formats._onnx_int_mm}
    options = {"dynamo": True, "external_data": False, "verbose": False, "custom_translation_table": table, **names}
    assert given == [(("program", (), "x.onnx"), options)]
    assert [logging.getLogger(name).level for name in ("onnxscript", "onnx_ir")] == [logging.WARNING] * 2


def test_tools_write_nothing_to_the_terminal(monkeypatch, tmp_path, capsys, caplog):
    def loud(program, path):
        print(program)
        print(program, file=sys.stderr)
        logging.getLogger("tool").error(program)
        path.write_text(program)

    monkeypatch.setitem(FORMATS, "pt2", replace(FORMATS["pt2"], write=loud))
    formats.write("a report", "pt2", tmp_path / "x")
    assert (tmp_path / "x").read_text() == "a report"
    assert capsys.readouterr() == ("", "")
    assert not caplog.records
    logging.getLogger("tool").error("again")
    assert caplog.records


@pytest.mark.parametrize("name", MODELS if ALL else ["lookupvit", "factorised"])
def test_openvino_answers_as_the_checkpoint_does(tmp_path, name):
    pytest.importorskip("openvino")
    model = predictor(tmp_path, MODELS[name])
    path = tmp_path / FILES["openvino"]
    found = export_model(deployed_model(model), example_clips(model), path, "openvino")
    assert found["bytes"] == path.stat().st_size + path.with_suffix(".bin").stat().st_size
    assert found["is_run"]
    run = load_exported(path, "openvino")
    for size in (1, 4):
        clips = example_clips(model, size, seed=1)
        torch.testing.assert_close(run(clips), model.predict_clips(clips), rtol=0, atol=1e-4)


def test_neither_file_of_a_wrong_model_stays(monkeypatch, tmp_path):
    pytest.importorskip("openvino")
    model = predictor(tmp_path, MODELS["vit"])
    load = FORMATS["openvino"].load
    monkeypatch.setitem(
        FORMATS, "openvino", replace(FORMATS["openvino"], load=lambda path: lambda x: load(path)(x) + 0.1)
    )
    with pytest.raises(ValueError, match=r"of the openvino model differs by 0\.1, .*nothing was written"):
        export_model(deployed_model(model), example_clips(model), tmp_path / FILES["openvino"], "openvino")
    assert [file.name for file in tmp_path.iterdir()] == ["model.pt"]


@pytest.mark.parametrize("name", MODELS if ALL else ["lookupvit"])
@pytest.mark.parametrize("kind", ["litert", "executorch"])
@pytest.mark.parametrize("size", [1, 2])
def test_formats_of_a_fixed_batch_answer_as_the_checkpoint_does(tmp_path, kind, name, size):
    for package in PACKAGES[kind]:
        pytest.importorskip(package)
    model = predictor(tmp_path, MODELS[name])
    path = tmp_path / FILES[kind]
    export_model(deployed_model(model), example_clips(model, size), path, kind, any_batch=False)
    run = load_exported(path, kind)
    first, second = (example_clips(model, size, seed=seed) for seed in (1, 2))
    answer = run(first)
    torch.testing.assert_close(run(second), model.predict_clips(second), rtol=0, atol=1e-4)
    torch.testing.assert_close(answer, model.predict_clips(first), rtol=0, atol=1e-4)


@pytest.mark.skipif(sys.platform == "darwin", reason="macOS runs it")
def test_core_ml_is_compared_as_far_as_this_machine_can(tmp_path):
    pytest.importorskip("coremltools")
    model = predictor(tmp_path, MODELS["lookupvit"])
    path = tmp_path / FILES["coreml"]
    found = export_model(deployed_model(model), example_clips(model, 1), path, "coreml", any_batch=False)
    assert not found["is_run"]
    assert found["max_difference"] < 1e-4
    assert any(name.endswith("/Manifest.json") for name in zipfile.ZipFile(path).namelist())
    with pytest.raises(ValueError, match="coreml runs on macOS only"):
        load_exported(path, "coreml")


def test_xnnpack_is_not_given_tensors_of_more_axes_than_it_takes():
    class Config:
        def check_constraints(self, node, program):
            return node.fine

    def node(axes, *inputs, fine=True):
        return SimpleNamespace(meta={"val": torch.zeros([1] * axes)}, all_input_nodes=inputs, fine=fine)

    config = formats._of_few_axes(Config)()
    assert type(config).__name__ == "Config"
    constant = SimpleNamespace(meta={}, all_input_nodes=())
    assert config.check_constraints(node(6, node(6), constant), None)
    assert not config.check_constraints(node(7, node(6)), None)
    assert not config.check_constraints(node(3, node(8)), None)
    assert not config.check_constraints(node(3, fine=False), None)
