"""Splits: no group in two of them, each class in each, the same for the same seed."""

import random
from collections import Counter, defaultdict
from dataclasses import replace

import pytest

from lookupvit_video.data.manifest import Video, read_class_list, read_manifest
from lookupvit_video.own_videos.split import complete_splits, imbalance, shared_names, split_by_group, write_splits

THREE = {"train": 0.7, "val": 0.15, "test": 0.15}
TWO = {"train": 0.75, "val": 0.25}


def videos(count, classes=2, per_group=1):
    return [Video(f"/v/{i}.mp4", i % classes, group=f"g{i // per_group}") for i in range(count)]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("shares", [TWO, THREE])
def test_shares_of_each_class(seed, shares):
    labels = [0] * 200 + [1] * 100 + [2] * 20
    names = split_by_group([(label,) for label in labels], [str(i) for i in range(320)], shares, seed)
    for label, total in Counter(labels).items():
        got = Counter(name for name, of in zip(names, labels, strict=True) if of == label)
        assert {split: got[split] for split in shares} == pytest.approx(
            {split: share * total for split, share in shares.items()}, abs=1.01
        )


@pytest.mark.parametrize("seed", range(20))
def test_groups_stay_together_and_training_has_each_class(seed):
    draw = random.Random(seed)
    groups = [f"g{draw.randrange(12)}" for _ in range(60)]
    labels = [draw.randrange(4) for _ in groups]
    names = split_by_group([(label,) for label in labels], groups, TWO, seed)
    of_group = defaultdict(set)
    for group, name in zip(groups, names, strict=True):
        of_group[group].add(name)
    assert all(len(found) == 1 for found in of_group.values())
    assert {label for label, name in zip(labels, names, strict=True) if name == "train"} == set(labels)
    assert 5 <= names.count("val") <= 25


def test_a_rare_class_is_in_training_first_then_in_validation():
    labels = [0] * 20 + [1]
    assert split_by_group([(label,) for label in labels], list(map(str, range(21))), TWO, 0)[-1] == "train"
    labels = [0] * 20 + [1, 1]
    assert set(split_by_group([(label,) for label in labels], list(map(str, range(22))), TWO, 0)[-2:]) == {
        "train",
        "val",
    }


@pytest.mark.parametrize("seed", range(3))
def test_the_smallest_group_that_can_fills_what_a_split_lacks(seed):
    labels = [(0,), (0,), (1,), (1,), (1,), (1,), (0,), (1,)]  # both large groups have both classes
    assert split_by_group(labels, list("aaabbbbc"), TWO, seed) == ["val"] * 3 + ["train"] * 4 + ["val"]


def test_the_seed_decides():
    labels, groups = [0, 1] * 20, list(map(str, range(40)))
    assert split_by_group([(label,) for label in labels], groups, TWO, 3) == split_by_group(
        [(label,) for label in labels], groups, TWO, 3
    )
    assert split_by_group([(label,) for label in labels], groups, TWO, 3) != split_by_group(
        [(label,) for label in labels], groups, TWO, 4
    )


def test_few_videos_share_validation_and_test():
    splits, said = complete_splits({"all": videos(12)}, 0)
    assert [len(splits[name]) for name in ("train", "val", "test")] == [8, 4, 4]
    assert splits["val"] == splits["test"]
    assert said[0].startswith("split 12 videos by")
    assert "serve as test too" in said[1]


def test_many_videos_make_three_splits():
    splits, _ = complete_splits({"all": videos(400, per_group=4)}, 0)
    assert [len(splits[name]) for name in ("train", "val", "test")] == [280, 60, 60]
    assert not {v.group for v in splits["train"]} & {v.group for v in splits["val"] + splits["test"]}


def test_given_splits_stay():
    train, val, test = videos(8), videos(3), videos(4)
    assert complete_splits({"train": train, "val": val, "test": test}, 0) == (
        {"train": train, "val": val, "test": test}, [],
    )  # fmt: skip
    splits, _ = complete_splits({"train": train, "test": test}, 0)
    assert splits["test"] == test
    assert sorted(splits["train"] + splits["val"], key=lambda video: video.path) == train
    assert complete_splits({"train": train, "val": val}, 0)[0]["test"] == val


def test_one_group_cannot_be_split():
    splits, said = complete_splits({"all": videos(4, per_group=4)}, 0)
    assert splits["val"] == splits["train"]
    assert "prove nothing" in " ".join(said)


def test_the_hint_on_parts_of_recordings():
    def named(*names):
        return [Video(f"/v/{name}.mp4", int(name[-1] == "9"), group=f"/v/{name}.mp4") for name in names]

    assert "3 videos are named /v/x_NUMBER" not in shared_names(named("a", "b", "c9"))
    assert "3 videos are named x_NUMBER" in shared_names(named("x_1", "x_2", "x_3", "y_1", "y_2", "z_19"))
    assert shared_names(named("x_1", "x_2", "x_3", "y_9", "y_19")) == ""  # a name for each class


@pytest.mark.parametrize(("many", "hint"), [(9, False), (10, True)])
def test_the_hint_on_a_class_that_is_answered_always(many, hint):
    train = [Video(f"{n}", 0) for n in range(many)] + [Video("x", 2)] * 2 + [Video("y", 1)] * 5
    splits = {"train": train, "test": [Video("t", label) for label in (0, 0, 0, 1)]}
    assert imbalance(["run", "sit", "jump"], splits) == (
        "'run' has 10 training videos and 'jump' 2: always answering the former gives 75 % top-1 in the test; compare "
        "mean_class_accuracy, or try DATA.SAMPLER balanced"
        if hint else ""
    )  # fmt: skip
    assert ("gives 0 % top-1" in imbalance(["run", "sit", "jump"], {**splits, "test": []})) == hint
    several = [replace(video, labels=(video.label,)) for video in train]
    assert imbalance(["run", "sit", "jump"], {**splits, "train": several}) == ""


def test_from_200_videos_on_there_are_three_splits():
    for count, shared in ((199, True), (200, False)):
        splits, said = complete_splits({"all": videos(count)}, 4)
        assert (splits["val"] == splits["test"]) == shared
        assert said[0] == f"split {count} videos by file, with RNG_SEED 4"
        assert len(said) == 1 + shared


def test_written_splits_are_read_again(tmp_path):
    rows = [Video("/v/a b,c.mp4", 0, 1.25, 1234.5678), Video("/v/走.mp4", 1, None, None)]
    write_splits(tmp_path, ["run, fast", "3"], {"train": rows})
    classes = read_class_list(tmp_path / "classes.txt")
    again = read_manifest(tmp_path / "train.csv", classes)
    assert [(v.path, classes[v.label], v.start, v.end) for v in again] == [
        ("/v/a b,c.mp4", "run, fast", 1.25, 1234.5678), ("/v/走.mp4", "3", None, None),
    ]  # fmt: skip
