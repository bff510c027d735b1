"""What `lookupvit flops` prints and writes; tests/models/test_complexity.py checks the figures themselves."""

import json

import pytest

from lookupvit_video.config import load_config
from lookupvit_video.models.build import build_model
from lookupvit_video.models.complexity import count_parameters
from tests.small import SMALL, call_tool

SMALL_WORDS = [str(word) for pair in SMALL.items() for word in pair]  # N = 32 on 2x4x4, M = 4, D = 24
PEERS = {"mvit": "MODEL.VARIANT Ti", "x3d": "MODEL.VARIANT XS"}


def flops(*arguments, options=()):
    return call_tool("tools/flops.py", "--cfg", "tests/small.yaml", *options, *SMALL_WORDS, *arguments)


def facts_of(tmp_path, *arguments, options=()):
    done = flops(*arguments, options=(*options, "--json", tmp_path / "a.json"))
    assert done.returncode == 0, done.stderr
    return json.loads((tmp_path / "a.json").read_text()), done.stdout


def test_the_parts_add_up_to_what_is_measured_and_are_printed(tmp_path):
    facts, text = facts_of(tmp_path)
    parts = facts["macs_by_part"]
    assert sum(parts.values()) == facts["macs"] == facts["measured_macs"]
    lines = [line.split("  ") for line in text.splitlines()]
    printed = {words[0]: [word.strip() for word in words[1:] if word] for words in lines}
    for part, macs in parts.items():
        if macs:
            assert printed[part.replace("_", " ")] == [f"{macs / 1e6:.2f}", f"{100 * macs / facts['macs']:.1f}"]
    assert "temporal encoder" not in printed
    assert printed["total, measured"] == [f"{facts['macs'] / 1e6:.2f}", "100.0"]
    assert printed["dense ViT"][0] == f"{facts['dense_macs'] / 1e6:.2f}"
    assert facts["dense_ratio"] == facts["dense_macs"] / facts["macs"]
    assert f"costs {facts['dense_ratio']:.2f} times as much" in text
    for fact in ("4 frames of 32 x 32 pixels", "tubelet 2x8x8", "N = 32 lookup tokens (2x4x4)",
                 "M = 4 compressed (1x2x2)", "N / M = 8.0", "D = 24", "2 blocks", "MMACs"):  # fmt: skip
        assert fact in text


def test_parameters_are_the_models(tmp_path):
    facts, text = facts_of(tmp_path, options=["--no-measure"])
    model = build_model(load_config("tests/small.yaml", SMALL_WORDS))
    assert facts["measured_macs"] is None
    assert "measured" not in text
    assert facts["parameters"] == count_parameters(model)
    assert facts["parameters_in_blocks"] == count_parameters(model.blocks) < facts["parameters"]
    assert f"parameters: {facts['parameters'] / 1e6:.2f} M" in text


@pytest.mark.parametrize("encoder", ["joint", "factorised"])
def test_a_sweep_has_the_usual_grids_and_the_configs_own(tmp_path, encoder):
    own = "[1,3,1]" if encoder == "joint" else "[3,1]"
    arguments = ("MODEL.ENCODER", encoder, "MODEL.COMPRESSED_GRID", own)
    facts, text = facts_of(tmp_path, *arguments, options=["--sweep"])
    rows = {tuple(row["compressed_grid"]): row for row in facts["sweep"]}
    sides = [(1, 1), (2, 2), (3, 3)]
    if encoder == "joint":
        assert set(rows) == {(1, 3, 1), *((t, h, w) for t in (1, 2) for h, w in sides)}
    else:
        assert set(rows) == {(3, 1), *sides}
    assert [row["macs"] for row in facts["sweep"]] == sorted(row["macs"] for row in facts["sweep"])
    for grid, row in rows.items():
        assert row["measured_macs"] == row["macs"] > facts["floor_macs"]
        assert "x".join(map(str, grid)) in text
        alone, _ = facts_of(tmp_path, *arguments, "MODEL.COMPRESSED_GRID", str(list(grid)))
        assert alone["macs"] == row["macs"]
        assert alone["compressed_tokens"] == row["compressed_tokens"]
        assert alone["dense_ratio"] == row["dense_ratio"]
    assert rows[tuple(json.loads(own))]["macs"] == facts["macs"]


def test_controls_in_a_sweep_are_those_that_a_vit_config_builds(tmp_path):
    facts, text = facts_of(tmp_path, options=["--grids", "1x2x2", "2x3x3"])
    assert [row["compressed_grid"] for row in facts["sweep"]] == [[1, 2, 2], [2, 3, 3]]
    assert facts["sweep"][0]["merge_tokens"] is None  # two blocks cannot merge that much
    assert text.split("1x2x2")[-1].splitlines()[0].endswith("-")
    for row in facts["sweep"]:
        for tokens, key in (("resize", None), ("random", "keep_tokens"), ("merge", "merge_tokens")):
            if key and row[key] is None:
                continue
            arguments = ["MODEL.ARCH", "vit", "MODEL.TOKENS", tokens, "MODEL.COMPRESSED_GRID", row["compressed_grid"]]
            left_open, _ = facts_of(tmp_path, *arguments)
            if key:
                given, _ = facts_of(tmp_path, *arguments, f"MODEL.{key.upper()}", row[key])
                assert left_open["macs"] == given["macs"] <= row["macs"]
            else:
                assert left_open["macs"] == left_open["measured_macs"] == row["resize_macs"]


def test_settings_may_follow_the_grids_at_once():
    done = flops(options=["--grids", "1x2x2", "2x2x2"])
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("grid ")[1].splitlines()[2].startswith("1x2x2")


@pytest.mark.parametrize("arch", PEERS)
def test_other_families_are_measured_only(tmp_path, arch):
    arguments = ["MODEL.ARCH", arch, *PEERS[arch].split()]
    facts, text = facts_of(tmp_path, *arguments)
    assert facts["measured_macs"] > 0
    assert facts["macs"] is None
    assert "closed form" not in text
    assert facts["parameters"] > facts["parameters_in_blocks"] > 0
    facts, text = facts_of(tmp_path, *arguments, options=["--no-measure"])
    assert facts["measured_macs"] is None
    assert "parameters:" in text


@pytest.mark.parametrize(("options", "arguments", "parts"), [
    (["--sweep"], ["MODEL.ARCH", "vit"], ["--sweep", "vit has no compressed tokens"]),
    (["--grids", "1x9x9"], [], ["[1, 9, 9] is larger than the grid of lookup tokens [2, 4, 4]"]),
    (["--grids", "2x2"], [], ["[2, 2] has 2 numbers", "t x h x w"]),
    (["--grids", "0x2x2"], [], ["at least 1"]),
    ([], ["MODEL.COMPRESED_GRID", "[1,1,1]"], ["did you mean MODEL.COMPRESSED_GRID"]),
])  # fmt: skip
def test_mistakes_give_one_line(options, arguments, parts):
    done = flops(*arguments, options=options)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("flops.py: error: ")
    for part in parts:
        assert part in done.stderr


def test_help_shows_an_example():
    done = call_tool("tools/flops.py", "--help")
    assert done.returncode == 0
    assert "lookupvit flops --cfg k400_lvit" in done.stdout.split("examples:")[1]
