"""The damaged files of tests/damage.py are damaged, and the same at every call."""

import random

import pytest

from tests.damage import (
    BYTE_DAMAGE,
    CONTENTS,
    FEW,
    ORIGINALS,
    pictures,
    write_byte_damage,
    write_no_videos,
    write_originals,
)


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    return write_originals(tmp_path_factory.mktemp("originals"), FEW)


def test_originals_have_thirty_different_pictures(originals):
    for original in originals:
        shown = pictures(original)
        assert len(shown) == len({digest for _, digest in shown}) == 30
        assert [seconds for seconds, _ in shown] == pytest.approx([index / 24 for index in range(30)], abs=2e-3)


def test_damage_follows_from_the_name_and_changes_the_bytes(originals, tmp_path):
    made = write_byte_damage(tmp_path / "one", originals, times=2)
    again = write_byte_damage(tmp_path / "two", originals, times=2)
    assert len({damaged.path.name for damaged in made}) == len(made)
    assert {damaged.damage for damaged in made} == {*BYTE_DAMAGE, "wrong container"}
    for one, two in zip(made, again, strict=True):
        data = one.path.read_bytes()
        assert data == two.path.read_bytes()
        assert (data == one.original.read_bytes()) == (one.damage == "wrong container"), one.path
    turns = [damaged.path.read_bytes() for damaged in made if damaged.damage == "8 bits flipped"]
    assert len(set(turns)) == len(turns) == 2 * FEW


def test_no_videos_are_none(tmp_path):
    made = {damaged.damage: damaged.path for damaged in write_no_videos(tmp_path)}
    assert len(made) == len(CONTENTS) + 10
    assert made["directory"].is_dir()
    assert made["broken link"].is_symlink()
    assert made["pipe"].is_fifo()
    assert not made["missing"].exists()
    assert made["no permission"].stat().st_mode & 0o777 == 0
    assert pictures(made["audio only"]) == []
    assert len(pictures(made["picture"])) == 1
    assert pictures(made["noise"]) is None


def test_the_full_set_holds_more_than_five_hundred_files(tmp_path):
    """Counted, not decoded: `tests/commands/test_check.py` says how to run over all of them."""
    stand_ins = [tmp_path / name for name in ORIGINALS]
    for path in stand_ins:
        path.write_bytes(random.Random(0).randbytes(5000))
    assert len(write_byte_damage(tmp_path / "made", stand_ins, times=3)) + len(CONTENTS) + 10 > 500
