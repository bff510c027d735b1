import csv
import json
import shutil

import numpy as np
import pytest
import torch

from lookupvit_video.checkpoints.checkpoint import save_checkpoint
from lookupvit_video.config import load_config
from lookupvit_video.models.build import build_model
from tests.small import call_tool, run_net, settings

TOOL = "tools/robustness.py"
GRIDS = {"MODEL__COMPRESSED_GRIDS": "[[1,2,2],[1,1,1]]"}


def save(folder, data, seed=0, classes=3, **changes):
    cfg = load_config("tests/small.yaml", settings(data, folder, MODEL__NUM_CLASSES=classes, **changes))
    torch.manual_seed(seed)
    names = [f"class {label}" for label in range(classes)]
    save_checkpoint(folder / "model.pt", cfg=cfg, classes=names, model=build_model(cfg))
    return folder


def run(*arguments):
    return call_tool(TOOL, *arguments, "--workers", 0, "--device", "cpu")


def test_tables_files_and_a_second_call_that_reads_nothing(data, tmp_path):
    folder = save(tmp_path / "a", data, **GRIDS)
    wanted = ["--checkpoint", folder, "--suite", "contrast", "freeze", "--severity", 5, 2, "--budget", "all"]
    files = ["--json", tmp_path / "r.json", "--csv", tmp_path / "r.csv", "--plot", tmp_path / "r.png"]
    done = run(*wanted, *files)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "r.json").read_text())
    assert [of["grid"] for of in report["grids"]] == ["1x1x1", "1x2x2"]
    assert report["severities"] == [2, 5]
    assert [row["corruption"] for row in report["grids"][0]["corruptions"]] == ["contrast", "freeze"]
    with (tmp_path / "r.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 8
    assert (tmp_path / "r.png").read_bytes().startswith(b"\x89PNG")
    assert "grid 1x1x1\ncorruption  severity 2  severity 5" in done.stdout
    assert [of["compared_with"] for of in report["grids"]] == ["1x2x2", ""]
    assert done.stdout.count("difference to 1x2x2: clean") == 1
    assert "together (2 corruptions): clean " in done.stdout
    kept = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "a" / "model.robustness").iterdir()}
    assert set(kept) == {"settings.json", "clean.npz", "contrast.npz", "freeze.npz"}
    again = run(*wanted)
    assert again.stdout == done.stdout
    assert kept == {path.name: path.stat().st_mtime_ns for path in (tmp_path / "a" / "model.robustness").iterdir()}


def test_every_budget_of_a_checkpoint(data, tmp_path):
    changes = {"MODEL__DEPTH": 2, "MODEL__EXITS": "[1]", "MODEL__KEEPS": "[[1,0.5]]"}
    folder = save(tmp_path / "a", data, **GRIDS, **changes)
    wanted = [
        "--checkpoint",
        folder,
        "--suite",
        "contrast",
        "--severity",
        5,
        "--videos",
        3,
        "--json",
        tmp_path / "r.json",
    ]
    done = run(*wanted, "--budget", "all", "--plot", tmp_path / "r.png")
    assert done.returncode == 0, done.stderr
    grids = json.loads((tmp_path / "r.json").read_text())["grids"]
    names = [of["grid"] for of in grids]
    assert {"1x2x2", "1x1x1,b1", "1x2x2,k1-0.5"} < set(names)
    assert [of["gmacs_per_view"] for of in grids] == sorted(of["gmacs_per_view"] for of in grids)
    done = run(*wanted, "--budget", "1x1x1,b1", "1x2x2", "--out", tmp_path / "two")
    assert done.returncode == 0, done.stderr
    two = json.loads((tmp_path / "r.json").read_text())["grids"]
    assert two == [of for of in grids if of["grid"] in ("1x1x1,b1", "1x2x2")]
    done = run("--checkpoint", folder, save(tmp_path / "b", data, **GRIDS), "--suite", "contrast", "--budget", "all")
    assert done.returncode == 2
    assert "its budgets are not those of" in done.stderr


def test_a_reference_on_the_same_videos_and_seeds(data, tmp_path):
    own = [save(tmp_path / str(seed), data, seed) for seed in (0, 1)]
    other = save(tmp_path / "vit", data, MODEL__ARCH="vit")
    done = run("--checkpoint", *own, "--reference", other, "--suite", "contrast", "--severity", 5, "--videos", 4,
               "--json", tmp_path / "r.json")  # fmt: skip
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["videos"] == 4
    assert set(report["grids"][0]["summaries"][0]["difference"]) == {"clean", "mPC", "rPC"}
    assert "difference to reference: clean" in done.stdout


def test_probes_an_attack_and_a_temperature(data, tmp_path):
    folder = save(tmp_path / "a", data)
    done = run("--checkpoint", folder, "--suite", "probes", "--severity", 5, "--attack", 2, "--attack-steps", 2,
               "--temperature", 2, "--json", tmp_path / "r.json")  # fmt: skip
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "r.json").read_text())
    assert [row["corruption"] for row in report["grids"][0]["corruptions"]][2] == "shuffled_blocks"
    assert report["grids"][0]["summaries"][0]["suite"] == "probes"
    assert report["attacks"][0]["clips"] == 9
    assert "attack on 2 tubelets, 2 steps:" in done.stdout
    done = run("--checkpoint", folder, "--suite", "probes", "--severity", 5)
    assert done.returncode == 2
    assert "holds answers with other temperature" in done.stderr


def test_adaptation_keeps_statistics_that_predict_and_test_use(data, tmp_path):
    folder = save(tmp_path / "a", data)
    wanted = ["--suite", "brightness", "--severity", 5, "--json", tmp_path / "r.json"]
    assert run("--checkpoint", folder, *wanted, "--out", tmp_path / "plain").returncode == 0
    done = run("--checkpoint", folder, *wanted, "--adapt")
    assert done.returncode == 0, done.stderr
    kept = {
        name: np.load(tmp_path / name / "brightness.npz")["confidences"] for name in ("plain", "a/model.robustness")
    }
    assert not np.array_equal(*kept.values())
    assert (folder / "model.tokens.npz").exists()
    answers = []
    for number, options in enumerate(([], ["--adapt"])):
        file = tmp_path / f"{number}.jsonl"
        done = call_tool(
            "tools/predict.py", data / "0.mp4", "--checkpoint", folder, "--json", file, "--workers", 0, *options
        )
        assert done.returncode == 0, done.stderr
        answers.append(json.loads(file.read_text()))
    test = settings(data, tmp_path / "test", TEST__CHECKPOINT_FILE_PATH=folder / "model.pt", TRAIN__ENABLE=False)
    for adapt in ("False", "True"):
        done = run_net([*test, "TEST.ADAPT", adapt])
        assert done.returncode == 0, done.stderr
    (folder / "model.tokens.npz").unlink()
    done = run_net([*test, "TEST.ADAPT", "True"])
    assert done.returncode == 2
    assert "model.tokens.npz: missing; lookupvit robustness --adapt" in done.stderr


def test_a_bad_video_counts_as_wrong_and_is_named(data, tmp_path):
    shutil.copytree(data, tmp_path / "data")
    (tmp_path / "data" / "3.mp4").write_bytes(b"")
    folder = save(tmp_path / "a", tmp_path / "data")
    done = run("--checkpoint", folder, "--suite", "contrast", "--severity", 5)
    assert done.returncode == 1
    assert done.stderr.count("3.mp4: is empty") == 1


@pytest.mark.parametrize(("options", "message"), [
    (["--suite", "snow"], "suite 'snow': choose all, minikinetics-c"),
    (["--severity", "6"], "argument --severity: must be 1 to 5, got 6"),
    (["--grid", "2x2x2"], "grid 2x2x2: this checkpoint has 1x2x2"),
    (["--budget", "1x2x2,b1"], "grid 1x2x2,b1: this checkpoint has 1x2x2"),
    (["--reference", "VIT4", "--suite", "fog"], "its classes are not those of"),
    (["--reference", "VIT4", "--out", "x"], "--out is for a single checkpoint"),
    (["--list", "no.csv"], "no.csv: the list of videos cannot be read"),
])  # fmt: skip
def test_mistakes_are_one_line(data, tmp_path, options, message):
    save(tmp_path / "vit4", data, classes=4)
    words = [tmp_path / "vit4" if option == "VIT4" else option for option in options]
    done = run("--checkpoint", save(tmp_path / "a", data), "--videos", 1, *words)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
