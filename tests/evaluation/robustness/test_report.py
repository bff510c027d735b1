import numpy as np
import pytest

from lookupvit_video.corruptions.table import suite
from lookupvit_video.evaluation.robustness.answers import Answers
from lookupvit_video.evaluation.robustness.report import (
    CSV_COLUMNS,
    Side,
    csv_rows,
    report_text,
    rows_of,
    summaries_of,
    summary_text,
)

LABELS = np.array([0, 1, 2, 0])
CLEAN = Answers(np.array([[[0, 1, 2, 1], [0, 1, 2, 0]]]), np.full((1, 2, 4), 0.75, np.float32))
NOISY = Answers(np.array([[[0, 1, 0, 1], [0, 1, 2, 1]], [[1, 0, 0, 1], [0, 0, 0, 1]]]), np.full((2, 2, 4), 0.75))
SIDE = Side([CLEAN], [[NOISY, NOISY]])
CORRUPTIONS = suite("fog", "jumble")


def test_a_row_for_each_corruption():
    row, other = rows_of(SIDE, CORRUPTIONS, LABELS)
    assert row["top1"] == [50, 0]
    assert row["mean"] == 25
    assert row["absolute"] == [0.75, 0.25]
    assert row["relative"] == [pytest.approx(0.6667), 0]
    assert row["calibration_error"] == [25, 75]
    assert (row["corruption"], row["suites"]) == ("fog", ["minikinetics-c", "minissv2-c"])
    assert other["corruption"] == "jumble"
    assert rows_of(Side([CLEAN], [[NOISY, NOISY]], 1), CORRUPTIONS, LABELS)[0]["top1"] == [75, 25]


def test_summaries_over_complete_suites_only():
    (summary,) = summaries_of(SIDE, CORRUPTIONS, LABELS)
    assert (summary["suite"], summary["corruptions"]) == ("together", 2)
    assert (summary["clean"]["value"], summary["mPC"]["value"], summary["rPC"]["value"]) == (75, 25, 33.33)
    many = suite("minikinetics-c", "schiappa-p")
    side = Side([CLEAN], [[NOISY] * len(many)])
    names = [found["suite"] for found in summaries_of(side, many, LABELS)]
    assert names == ["minikinetics-c", "schiappa-p", "together"]
    assert [found["suite"] for found in summaries_of(Side([CLEAN], [[NOISY] * 12]), suite("minissv2-c"), LABELS)] == [
        "minissv2-c"
    ]


def test_the_difference_to_a_reference_and_several_seeds():
    reference = Side([CLEAN, CLEAN], [[NOISY, NOISY]] * 2, 1)
    (summary,) = summaries_of(SIDE, CORRUPTIONS, LABELS, reference)
    assert summary["difference"]["mPC"]["value"] == -25
    assert summary["difference"]["clean"]["value"] == -25
    assert summary["mCE"] == 150
    line = summary_text(summary, "2x4x4")
    assert "mPC 25.0 (" in line
    assert "mCE 150.0 %; difference to 2x4x4: clean -25.0 (" in line


def test_tables_for_people_and_programs():
    attack = {"checkpoint": "a.pt", "tubelets": 2, "steps": 10, "fooled": 3, "right": 4, "success": 75.0}
    grids = [
        {"grid": name, "compared_with": "",
         "corruptions": rows_of(Side([CLEAN], [[NOISY, NOISY]], at), CORRUPTIONS, LABELS),
         "summaries": summaries_of(SIDE, CORRUPTIONS, LABELS)}
        for at, name in enumerate(("1x2x2", ""))
    ]  # fmt: skip
    report = {"severities": [2, 5], "videos": 4, "grids": grids, "attacks": [attack]}
    lines = report_text(report).splitlines()
    assert lines[:3] == [
        "grid 1x2x2", "corruption  severity 2  severity 5  mean", "fog               50.0         0.0  25.0",
    ]  # fmt: skip
    assert lines[4].startswith("together (2 corruptions): clean 75.0 (")
    assert lines[5] == "4 videos"
    assert lines[7] == "fog               75.0        25.0  50.0"
    assert lines[-1] == "a.pt: attack on 2 tubelets, 10 steps: 3 of 4 right answers turned, 75.0 %"
    table = csv_rows(report)
    assert len(table) == 8
    assert dict(zip(CSV_COLUMNS, table[1], strict=True)) == {
        "grid": "1x2x2", "corruption": "fog", "severity": 5, "top1": 0, "absolute": 0.25, "relative": 0,
        "calibration_error": 75,
    }  # fmt: skip
    assert table[4][0] == ""
