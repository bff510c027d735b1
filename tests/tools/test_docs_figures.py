"""Figures of docs/: each table says with what it was measured, and the command that measures it prints such tables."""

import json
import re
import runpy
import shlex
from itertools import pairwise
from pathlib import Path

import pytest

from tests.small import ROOT, call_tool

TOOL = "tools/docs_figures.py"
FIGURES = runpy.run_path(str(ROOT / TOOL))
PAGES = FIGURES["PAGES"]
USED = {
    "commit": "abcdef0", "torch": "2.0", "torchvision": "0.2", "av": "17.0", "numpy": "1.26", "processor": "AMD (AVX2)",
    "threads": 1,
}  # fmt: skip
MEASURED = "commit abcdef0, torch 2.0, torchvision 0.2, av 17.0, AMD (AVX2), 1 thread, float32"


def tables(page):
    """(header, text that follows) of each table of figures of a page."""
    blocks = (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8").split("\n\n")
    found = []
    for block, following in pairwise(blocks):
        header = block.splitlines()[0] if block.strip() else ""
        if header.startswith("|") and ("top-1" in header or ", s |" in header):
            found.append((header, " ".join(following.split())))
    return found


@pytest.mark.parametrize("page", PAGES)
def test_every_table_says_with_what_it_was_measured(page):
    found = tables(page)
    assert len(found) >= len(PAGES[page])
    for header, following in found:
        names_versions = re.search(
            r"^Measured: commit [0-9a-f]{7}, torch \S+, torchvision \S+, av \S+, .+, \d+ threads?, float32", following
        )
        is_old = re.search(
            r"^Measured: commit [0-9a-f]{7}, versions not recorded, .+\. Not yet remeasured since\.", following
        )
        assert names_versions or is_old, (page, header, following[:100])


def test_every_table_of_speed_names_its_commit():
    blocks = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8").split("\n\n")
    below = [
        following for block, following in pairwise(blocks)
        if block.startswith("|") and not block.startswith("| kernel | what")  # that one has no figures
    ]  # fmt: skip
    assert len(below) >= 14
    assert all(re.match(r"Measured at commit [0-9a-f]{7}[.,]", text) for text in below)


@pytest.mark.parametrize("page", PAGES)
def test_a_page_names_its_command_and_the_commands_are_there(page):
    text = (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8")
    assert f"python tools/docs_figures.py {page}" in text
    for table in PAGES[page]:
        for step in table.steps:
            words = shlex.split(step.command)
            assert (ROOT / words[0]).is_file()
            for word in words:
                assert not word.endswith(".yaml") or (ROOT / word).is_file()
                assert not word.startswith("configs/studies/") or Path(word).name in text
    assert "docs_figures.py $(PAGES)" in (ROOT / "Makefile").read_text()


def write_run(folder, top1, **changes):
    folder.mkdir(parents=True)
    result = {"top1": top1, "gmacs_per_view": 0.00125, "parameters": 12345, "videos": 50, "precision": "float32",
              "measured_with": USED, **changes}  # fmt: skip
    (folder / "test_results.json").write_text(json.dumps(result))


@pytest.mark.parametrize(("kind", "labels", "a_class"), [("motion", 16, 2), ("digit", 500, 50)])
def test_pretraining_is_compared_at_the_better_rate_of_each_start(tmp_path, kind, labels, a_class):
    folder = tmp_path / "studies" / f"pretrained_{kind}"
    rows = [f"{start}, rate {rate}" for start in ("random weights", "pre-trained") for rate in ("1e-3", "3e-3")]
    for draw, top1 in {0: [30.0, 40.0, 60.0, 65.0], 1: [50.0, 50.0, 70.0, 61.0], 2: [1.0, 2.0, 3.0]}.items():
        write_run(folder / f"{labels}_{draw}" / kind / "random" / "0", 0.0)
        table = [{"row": row, "top1": {"0": value - 1, "1": value + 1}} for row, value in zip(rows, top1, strict=False)]
        (folder / f"{labels}_{draw}" / "table.json").write_text(json.dumps(table))
    printed = FIGURES["pretraining_table"](tmp_path, kind)  # the third draw has no rate of its second start yet
    assert f"| {a_class} | LookupViT | **45.0** ± 7.1 | **65.0** ± 7.1 | +20.0 | +20.0, +20.0 |\n\n" in printed
    assert f"Measured: {MEASURED} (3 runs)." in printed
    assert (folder / "curves.png").stat().st_size > 1000


def test_a_study_is_printed_with_what_its_runs_were_measured_with(tmp_path):
    rows = tmp_path / "studies" / "resolution" / "motion"
    write_run(rows / "1x2x2_alone" / "0", 40.0)
    write_run(rows / "1x2x2_alone" / "1", 46.0)
    write_run(rows / "2x2x2_alone" / "0", 50.0, measured_with=USED | {"commit": "1234567", "threads": 2})
    write_run(rows / "2x3x3_alone" / "0", 60.0)
    text = (rows / "2x3x3_alone" / "0" / "test_results.json").read_text()  # of a run before all this was recorded
    (rows / "2x3x3_alone" / "0" / "test_results.json").write_text(text.replace("measured_with", "other"))
    printed = FIGURES["study_table"]("resolution", tmp_path)
    assert "| motion | 1x2x2 alone |  | 1.25 | 12 | **43.0** ± 4.2 | 40.0, 46.0 |" in printed
    other = MEASURED.replace("abcdef0", "1234567").replace("1 thread,", "2 threads,")
    assert printed.endswith(
        f"\n\nMeasured: {MEASURED} (2 runs); {other} (1 run); commit and versions not recorded (1 run)."
    )


def test_the_page_of_thresholds_is_printed(tmp_path):
    check = {"cascade": "1x2x2 (0.9) 2x2x2", "top1": 98.1, "top1_of_largest": 98.4, "share_of_largest": 0.471}
    for seed in (0, 1):
        folder = tmp_path / "studies" / "resolution" / "motion" / "one_model_for_all" / str(seed)
        write_run(folder, 98.4)
        (folder / "model.adaptive.json").write_text(json.dumps({"check": check}))
    done = call_tool(TOOL, "inference", "--print-only", "--runs", tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("# docs/inference.md\n\n## adaptive\n\n| seed | chosen")
    assert "| 1 | 1x2x2 (0.9) 2x2x2 | 98.10 | 98.40 | 47.1 |" in done.stdout
    assert f"Measured: {MEASURED} (2 runs)." in done.stdout


def test_comparisons_on_corrupted_videos_are_printed(tmp_path):
    gap = {"value": -0.5, "interval_95": [-2.0, 1.0]}
    summary = {"suite": "minikinetics-c", "mCE": 105.12, "difference": {"mPC": gap, "rPC": gap},
               **{name: {"value": 98.61} for name in ("clean", "mPC", "rPC")}}  # fmt: skip
    (tmp_path / "robustness").mkdir()
    report = {"grids": [{"summaries": [summary]}], "measured_with": USED, "videos": 480}
    (tmp_path / "robustness" / "motion_dense_ViT.json").write_text(json.dumps(report))
    printed = FIGURES["robustness_table"](tmp_path)
    shown = "-0.5 (-2.0 to +1.0)"
    line = f"| motion | dense ViT | minikinetics-c | 98.6 | 98.6 | 98.6 | 105.1 | {shown} | {shown} |"
    assert line in printed.splitlines()
    assert printed.endswith("Measured: commit abcdef0, torch 2.0, torchvision 0.2, av 17.0, AMD (AVX2), 1 thread, "
                            "float32, 480 videos.")  # fmt: skip


def test_invalid_use_and_commands_that_fail(tmp_path):
    for arguments, message in (
        (["performance"], "performance is no page with figures; choose from ablations, inference, finetuning"),
        (["--runs", tmp_path], "--runs: the commands of the pages write to runs/"),
    ):
        done = call_tool(TOOL, *arguments)
        assert done.returncode == 2
        assert message in done.stderr
    done = call_tool(TOOL, "finetuning", "--print-only", "--runs", tmp_path)
    assert done.stdout.endswith("\n\nNot measured.\n\n")
    with pytest.raises(RuntimeError, match=r"exit code 2 of: python tools/none\.py --x"):
        FIGURES["call"]("tools/none.py --x")
