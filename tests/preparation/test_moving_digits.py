"""Moving Digits: the files are what they claim to be, and one frame does not give the motion away."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
from sklearn.ensemble import RandomForestClassifier

from lookupvit_video.data.manifest import read_manifest
from lookupvit_video.errors import UserError
from lookupvit_video.preparation import moving_digits as synthetic
from lookupvit_video.preparation.moving_digits import DIGITS, MOTIONS, SPLITS, Settings, make_moving_digits, trajectory

TINY = {"train": 40, "val": 8, "test": 10, "size": 32, "frames": 8, "fps": 4}
PREPARE = Path(__file__).parents[2] / "datasets" / "moving_digits" / "prepare.py"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("digits") / "data"
    assert make_moving_digits(out, **TINY, seed=3, processes=1)
    return out


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def rows(out: Path, name: str, split: str) -> list[dict[str, str]]:
    with open(out / name / f"{split}.csv", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_files_do_not_depend_on_the_processes_but_on_the_seed(made: Path, tmp_path: Path) -> None:
    make_moving_digits(tmp_path / "two", **TINY, seed=3, processes=2)
    assert contents(tmp_path / "two") == contents(made)
    one = make_moving_digits(tmp_path / "seed", **TINY | {"train": 1, "val": 1, "test": 1}, seed=4, processes=1)
    assert one
    assert (tmp_path / "seed/videos/train/00000.mp4").read_bytes() != (made / "videos/train/00000.mp4").read_bytes()


def test_a_video_does_not_depend_on_how_many_there_are(made: Path, tmp_path: Path) -> None:
    make_moving_digits(tmp_path / "few", **TINY | {"train": 3, "val": 1, "test": 1}, seed=3, processes=1)
    few, many = contents(tmp_path / "few"), contents(made)
    videos = [name for name in few if name.endswith(".mp4")]
    assert len(videos) == 5
    assert all(few[name] == many[name] for name in videos)


def test_encoding_is_the_same_every_time(tmp_path: Path) -> None:
    """With x264's mbtree, pictures of this size and content come out different from run to run."""
    frames = synthetic.make_video(Settings(400, 8, 8, 64, 24, 12, 0), "train", 3)
    encoded = set()
    for time in range(8):
        synthetic.write_h264(tmp_path / "video.mp4", frames, fps=12, gop=12)
        encoded.add((tmp_path / "video.mp4").read_bytes())
        np.empty(time * 3777).fill(time)  # leaves other values in the memory that the encoder is given
    assert len(encoded) == 1


@pytest.mark.parametrize(("name", "classes"), [("motion", MOTIONS), ("digit", DIGITS)])
def test_manifests_name_every_video_once_with_a_valid_label(made: Path, name: str, classes: tuple[str, ...]) -> None:
    assert (made / name / "classes.txt").read_bytes() == "".join(f"{label}\n" for label in classes).encode()
    for split in SPLITS:
        raw = (made / name / f"{split}.csv").read_bytes()
        assert raw.startswith(b"path,label\n")
        assert b"\r" not in raw
        found = [(made / name / row["path"]).resolve() for row in rows(made, name, split)]
        assert found == sorted((made / "videos" / split).resolve().glob("*.mp4"))
        assert len(found) == TINY[split]
        assert {int(row["label"]) for row in rows(made, name, split)} <= set(range(len(classes)))


def test_files_decode_as_h264(made: Path) -> None:
    for file in sorted((made / "videos").rglob("*.mp4")):
        with av.open(str(file)) as container:
            stream = container.streams.video[0]
            assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
            assert (stream.width, stream.height, stream.average_rate) == (32, 32, 4)
            frames = list(container.decode(stream))
        assert len(frames) == 8
        assert [i for i, frame in enumerate(frames) if frame.key_frame] == [0, 4]
        assert frames[0].to_ndarray(format="rgb24").std() > 5


@pytest.mark.parametrize(("name", "classes"), [("motion", 8), ("digit", 10)])
def test_classes_are_balanced_and_the_label_sets_independent(name: str, classes: int) -> None:
    settings = Settings(800, 8, 8, 32, 8, 4, seed=0)
    found = [synthetic.labels(settings, "train", index) for index in range(800)]
    assert np.bincount([label[name] for label in found]).tolist() == [800 // classes] * classes
    table = np.zeros((8, 10))
    np.add.at(table, ([label["motion"] for label in found], [label["digit"] for label in found]), 1)
    chi_squared = ((table - 10) ** 2 / 10).sum()
    assert 30 < chi_squared < 110  # 63 degrees of freedom: far below is a fixed pairing of labels, far above a tie


def test_splits_share_no_digit_image_and_keep_the_class_shares() -> None:
    _, targets = synthetic.load_digits()
    parts = synthetic.split_digits(0)
    assert np.array_equal(np.sort(np.concatenate(list(parts.values()))), np.arange(1797))
    for split, share in zip(SPLITS, synthetic.DIGIT_SHARES, strict=True):
        ratio = np.bincount(targets[parts[split]], minlength=10) / np.bincount(targets)
        assert np.allclose(ratio, share, atol=0.01)


def test_a_video_draws_on_its_own_split_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[np.ndarray] = []

    def spy(
        digits: list[np.ndarray], paths: object, others: np.ndarray, size: int, rng: object, distractors: object
    ) -> np.ndarray:
        used.append(np.concatenate([np.stack(digits), others]))
        return np.zeros((8, size, size, 3), np.uint8)

    monkeypatch.setattr(synthetic, "render", spy)
    settings = Settings(8, 8, 8, 32, 8, 4, seed=0)
    images, _ = synthetic.load_digits()
    for split in SPLITS:
        used.clear()
        for index in range(8):
            synthetic.make_video(settings, split, index)
        own = {image.tobytes() for image in images[synthetic.split_digits(0)[split]]}
        assert {image.tobytes() for image in np.concatenate(used)} == own


@pytest.mark.parametrize("pair", range(4))
def test_opposite_motions_are_time_reversals(pair: int) -> None:
    forth, back = (trajectory(MOTIONS[2 * pair + k], 24, np.random.default_rng(7)) for k in (0, 1))
    assert any(np.ptp(values) > 0.1 for values in forth)
    for values, reversed_values in zip(forth, back, strict=True):
        assert np.array_equal(values, reversed_values[::-1])


def test_each_motion_goes_the_way_its_name_says() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        paths = {motion: trajectory(motion, 24, rng) for motion in MOTIONS}
        # The median step, since a loop that starts anew makes one step the other way.
        steps = {motion: [np.median(np.diff(values)) * 23 for values in path] for motion, path in paths.items()}
        assert steps["left to right"][0] > 0.35
        assert steps["right to left"][0] < -0.35
        assert steps["upward"][1] < -0.35
        assert steps["downward"][1] > 0.35
        growth = np.median(np.diff(np.log(paths["approaching"].scale))) * 23
        assert growth > np.log(1.7)
        assert steps["leaving"][2] < 0
        for motion, sign in (("clockwise", 1), ("counter-clockwise", -1)):
            x, y, _ = paths[motion]
            turn = np.diff(np.unwrap(np.arctan2(np.diff(y), np.diff(x)))).sum()  # y is downward: clockwise is positive
            assert sign * np.degrees(turn) > 180
        for x, y, scale in paths.values():
            assert min(x.min(), y.min()) > 0.14
            assert max(x.max(), y.max()) < 0.86
            assert (scale > 0.2).all()
            assert (scale < 0.55).all()


def test_position_and_size_in_one_frame_do_not_tell_the_motion() -> None:
    """Chance is 12.5 %; for comparison, the same classifier that sees four frames."""
    rng = np.random.default_rng(0)
    label = np.arange(6400) % 8
    paths = np.stack([np.stack(trajectory(MOTIONS[k], 24, rng), axis=1) for k in label])  # (videos, T, 3)

    def accuracy(features: np.ndarray) -> float:
        forest = RandomForestClassifier(60, min_samples_leaf=20, random_state=0)
        return forest.fit(features[:3200], label[:3200]).score(features[3200:], label[3200:])

    random_frame = paths[np.arange(len(paths)), rng.integers(24, size=len(paths))]
    for features in (paths[:, 0], paths[:, 12], paths[:, 23], random_frame):
        assert accuracy(features) < 0.17
    assert accuracy(paths[:, ::6].reshape(len(paths), -1)) > 0.5


@pytest.mark.parametrize("motion", ["upward", "counter-clockwise", "leaving"])
def test_the_digit_is_drawn_where_and_as_large_as_the_path_says(motion: str) -> None:
    path = trajectory(motion, 24, np.random.default_rng(5))
    path = path._replace(x=0.5 + 0.4 * (path.x - 0.5), y=0.5 + 0.4 * (path.y - 0.5))  # wholly inside the frame
    others = np.zeros((1, 8, 8), np.float32)
    drawn, blank = (
        synthetic.render([np.full((8, 8), value, np.float32)], [path], others, 64, np.random.default_rng(2)).astype(
            float
        )
        for value in (1, 0)
    )
    for t, x, y, scale in zip(range(24), *path, strict=True):
        down, across = np.nonzero(np.abs(drawn[t] - blank[t]).max(-1) > 30)
        assert np.allclose([across.mean() + 0.5, down.mean() + 0.5], [64 * x, 64 * y], atol=1.5)  # the camera shakes
        assert np.allclose(len(down) ** 0.5, 64 * scale, rtol=0.15)


def test_a_complete_data_set_is_reused(made: Path) -> None:
    before = {file: file.stat().st_mtime_ns for file in made.rglob("*")}
    assert not make_moving_digits(made, **TINY, seed=3, processes=1)
    assert {file: file.stat().st_mtime_ns for file in made.rglob("*")} == before


def test_other_settings_need_overwrite(tmp_path: Path) -> None:
    few = TINY | {"train": 4, "val": 1, "test": 1}
    make_moving_digits(tmp_path / "d", **few, processes=1)
    with pytest.raises(ValueError, match="--overwrite"):
        make_moving_digits(tmp_path / "d", **few | {"train": 2}, processes=1)
    assert len(rows(tmp_path / "d", "motion", "train")) == 4
    assert make_moving_digits(tmp_path / "d", **few | {"train": 2}, processes=1, overwrite=True)
    assert len(list((tmp_path / "d/videos/train").iterdir())) == len(rows(tmp_path / "d", "motion", "train")) == 2


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_of_something_else_is_left_alone(tmp_path: Path, overwrite: bool) -> None:
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "mine.mp4").write_text("precious")
    with pytest.raises(ValueError, match="something other"):
        make_moving_digits(tmp_path, **TINY, processes=1, overwrite=overwrite)
    assert (tmp_path / "videos" / "mine.mp4").read_text() == "precious"


def test_an_interrupted_run_leaves_no_manifest_and_is_gone_on_with(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = synthetic.write_h264, []

    def failing(path: Path, *args: object, **kwargs: object) -> None:
        calls.append(path)
        if len(calls) > 5:
            raise KeyboardInterrupt
        real(path, *args, **kwargs)

    out = tmp_path / "d"
    monkeypatch.setattr(synthetic, "write_h264", failing)
    with pytest.raises(KeyboardInterrupt):
        make_moving_digits(out, **TINY, seed=3, processes=1)
    monkeypatch.setattr(synthetic, "write_h264", real)
    assert sorted(contents(out)) == ["settings.partial.json"] + [f"videos/train/{i:05d}.mp4" for i in range(5)]
    first = (out / "videos/train/00000.mp4").stat().st_mtime_ns
    assert make_moving_digits(out, **TINY, seed=3, processes=1)
    assert (out / "videos/train/00000.mp4").stat().st_mtime_ns == first
    assert contents(out) == contents(made)


def test_a_failed_encoding_leaves_nothing(tmp_path: Path) -> None:
    frames = np.zeros((4, 32, 32, 3), np.float16)  # not a kind of frame that PyAV takes
    with pytest.raises(ValueError, match="float16"):
        synthetic.write_h264(tmp_path / "video.mp4", frames, fps=4, gop=4)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"size": 33}, "size must be even"),
        ({"frames": 2}, "frames must be at least 8"),
        ({"val": 0}, "val must be at least 1"),
        ({"seed": -1}, "seed must be at least 0"),
        ({"distractors": -1}, "distractors must be at least 0"),
        ({"processes": 0}, "processes must be at least 1"),
    ],
)
def test_settings_that_cannot_be(tmp_path: Path, setting: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_moving_digits(tmp_path / "d", **{"processes": 1} | setting)
    assert not (tmp_path / "d").exists()


def test_unknown_motion() -> None:
    with pytest.raises(ValueError, match="sideways"):
        trajectory("sideways", 24, np.random.default_rng(0))


def test_command_reports_user_errors_in_one_line(tmp_path: Path) -> None:
    command = [sys.executable, str(PREPARE), "--out", str(tmp_path / "d"), "--processes", "1"]
    wrong = subprocess.run([*command, "--size", "31"], capture_output=True, text=True, check=False, timeout=120)
    assert wrong.returncode == 2
    assert wrong.stderr.startswith("prepare.py: error: size must be")
    assert wrong.stderr.count("\n") == 1
    small = [*command, "--size", "32", "--frames", "8", "--train", "2", "--val", "1", "--test", "1"]
    for said in ("wrote", "reused"):
        right = subprocess.run(small, capture_output=True, text=True, check=True, timeout=120)
        assert right.stdout.startswith(said)
    assert json.loads((tmp_path / "d" / "settings.json").read_text())["train"] == 2


def test_several_digits_a_video_with_all_of_them_as_labels(tmp_path: Path) -> None:
    make_moving_digits(tmp_path, **TINY | {"train": 30, "val": 1, "test": 1}, digits=3, processes=1)
    videos = read_manifest(tmp_path / "digits/train.csv", synthetic.DIGITS, multi_label=True)
    assert {len(video.every_label) for video in videos} == {2, 3}
    assert {label for video in videos for label in video.every_label} == set(range(10))
    settings = Settings(30, 1, 1, TINY["size"], TINY["frames"], TINY["fps"], 0, digits=3)
    for index in (0, 7):
        assert tuple(synthetic.digits_present(settings, "train", index)) == videos[index].every_label
    assert not (tmp_path / "motion").exists()
    with pytest.raises(UserError, match="made with other settings"):
        make_moving_digits(tmp_path, **TINY | {"train": 30, "val": 1, "test": 1}, processes=1)


def test_distractors_are_as_bright_as_digits_and_change_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[tuple[object, ...]] = []
    real = synthetic.render

    def spy(*arguments: object) -> np.ndarray:
        drawn.append(arguments)
        return real(*arguments)

    monkeypatch.setattr(synthetic, "render", spy)
    both = [Settings(40, 1, 1, 64, 24, 12, seed=0, distractors=count) for count in (0, 4)]
    images, _ = synthetic.load_digits()
    means = {image.mean() for image in images}
    motions, changed = set(), []
    for index in range(40):
        plain, crowded = (synthetic.make_video(settings, "train", index).astype(int) for settings in both)
        one, other = drawn[-2:]
        assert all(map(np.array_equal, one[0] + list(one[1][0]), other[0] + list(other[1][0])))
        assert (one[5], len(other[5])) == ([], 4)
        for sprite in other[5]:
            assert sprite.image.mean() in means  # a digit's pixels ...
            assert not any(np.array_equal(sprite.image, digit) for digit in other[2])  # ... but no digit
            assert sprite.tint.max() > 0.75
            motions.add(tuple(round(float(np.ptp(values)), 1) > 0.1 for values in sprite.path))
        changed.append((np.abs(plain - crowded).max(-1) > 30).mean())
    assert len(motions) > 2
    assert 0.05 < np.mean(changed) < 0.4


def test_a_digit_covers_the_distractors() -> None:
    still = trajectory("approaching", 8, np.random.default_rng(0))._replace(scale=np.full(8, 0.4))
    full, others = np.ones((8, 8), np.float32), np.zeros((1, 8, 8), np.float32)
    behind = synthetic.Sprite(full, still, np.zeros(3, np.float32))
    plain, covered = (
        synthetic.render([full], [still], others, 64, np.random.default_rng(0), sprites).astype(int)
        for sprites in ([], [behind])
    )
    x, y = int(64 * still.x[0]), int(64 * still.y[0])
    assert np.array_equal(plain[:, y - 6 : y + 7, x - 6 : x + 7], covered[:, y - 6 : y + 7, x - 6 : x + 7])
    beside = still._replace(x=1 - still.x, y=1 - still.y)
    moved = synthetic.render([full], [still], others, 64, np.random.default_rng(0), [behind._replace(path=beside)])
    assert (np.abs(plain - moved) > 20).mean() > 0.05


def test_data_sets_of_before_are_known_by_their_settings(tmp_path: Path) -> None:
    make_moving_digits(tmp_path, **TINY | {"train": 1, "val": 1, "test": 1}, processes=1)
    known = json.loads((tmp_path / "settings.json").read_text())
    del known["digits"], known["distractors"]
    (tmp_path / "settings.json").write_text(json.dumps(known))
    assert not make_moving_digits(tmp_path, **TINY | {"train": 1, "val": 1, "test": 1}, processes=1)


# The order of two motions ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ordered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("order") / "data"
    assert make_moving_digits(out, **TINY | {"train": 12, "val": 1, "test": 13}, seed=3, labels="order", processes=1)
    return out


@pytest.mark.parametrize("order", synthetic.ORDERS)
def test_an_order_is_one_direction_and_then_another(order: str) -> None:
    path = synthetic.ordered_trajectory(order, 24, np.random.default_rng(1))
    moves = np.stack([np.diff(path.x), np.diff(path.y)], axis=1)
    moves[np.abs(moves) > 0.3] = 0  # where a loop restarts
    sides = [tuple(int(side) for side in np.sign(np.round(move, 6))) for move in moves if move.any()]
    seen = list(dict.fromkeys(sides))
    assert seen == [synthetic.DIRECTIONS[motion] for motion in order.split(", then ")]
    assert sides == sorted(sides, key=seen.index)
    assert 8 <= sides.count(seen[0]) <= 15
    assert np.ptp(path.scale) == 0


def test_a_moment_of_an_order_says_nothing_about_it() -> None:
    """Places are uniform at any moment, so half of them lie on either side of the middle, in every class."""
    for order in synthetic.ORDERS:
        paths = [synthetic.ordered_trajectory(order, 24, np.random.default_rng(i)) for i in range(2000)]
        for moment in (0, 12, 23):
            for values in ([path.x[moment] for path in paths], [path.y[moment] for path in paths]):
                assert np.mean(np.array(values) > 0.5) == pytest.approx(0.5, abs=0.04)


def test_order_is_a_balanced_label_set_in_place_of_motion(ordered: Path) -> None:
    assert sorted(row["label"] for row in rows(ordered, "order", "train")) == sorted(map(str, range(12)))
    assert (ordered / "order/classes.txt").read_text().splitlines() == list(synthetic.ORDERS)
    assert not (ordered / "motion").exists()
    assert len(rows(ordered, "digit", "test")) == 13
    assert not make_moving_digits(ordered, **TINY | {"train": 12, "val": 1, "test": 13}, seed=3, labels="order")


def test_the_test_videos_joined_and_what_is_when_in_them(ordered: Path) -> None:
    joined, single = rows(ordered, "order", "joined"), rows(ordered, "order", "test")
    with av.open(str(ordered / "order" / joined[0]["path"])) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    fps, before = TINY["fps"], 0
    labels = [row["label"] for row in single]
    assert [row["label"] for row in joined] == [label for i, label in enumerate(labels) if labels[i - 1 : i] != [label]]
    assert {row["path"] for row in joined} == {"../videos/joined.mp4"}
    lengths = []
    for row in joined:
        start, end = (round(float(row[name]) * fps) for name in ("start", "end"))
        assert start == before
        lengths.append(end - start)
        before = end
    assert before == len(frames)
    settings = Settings(12, 1, 13, TINY["size"], TINY["frames"], 12, 3, labels="order")
    if lengths[0] in (TINY["frames"], TINY["frames"] - 1):
        first = synthetic.make_video(settings, "test", 0)[TINY["frames"] - lengths[0] :]
        assert np.abs(np.stack(frames[: len(first)]).astype(int) - first).mean() < 12
        second = synthetic.make_video(settings, "test", 1)[-1]
        assert np.abs(frames[lengths[0] + lengths[1] - 1].astype(int) - second).mean() < 12
    assert set(lengths) <= {TINY["frames"], TINY["frames"] - 1, *range(2 * TINY["frames"] - 2, 2 * TINY["frames"] + 1)}


def test_orders_are_of_one_digit(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="labels order are of one digit a video, not 2"):
        make_moving_digits(tmp_path / "x", **TINY, labels="order", digits=2)
    with pytest.raises(UserError, match="labels must be motion or order, not 'size'"):
        make_moving_digits(tmp_path / "x", **TINY, labels="size")
