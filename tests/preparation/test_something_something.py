"""Something-Something V1 and V2 from their official files: labels by template, counts right, nothing invented."""

import csv
import json
import os
from pathlib import Path

import av
import pytest

from lookupvit_video.config import load_config
from lookupvit_video.data.manifest import load_classes, load_split, read_class_list, read_manifest
from lookupvit_video.decoding.backends import open_video
from lookupvit_video.preparation.lists import Options
from lookupvit_video.preparation.reencode import Encoding
from lookupvit_video.preparation.something_something import official_files, prepare_something_something, read_labels
from tests.small import call_tool
from tests.videos import draw_frame, read_number, write_video

# As published for V2: names without brackets, numbers as text; the order is the numbers', not the alphabet's
LABELS = {
    "Approaching something with your camera": "2",
    "Holding something next to something": "0",
    "Pushing something so that it almost falls off but doesn't": "3",
    "Putting something, something and something on the table": "1",
}
ORDER = sorted(LABELS, key=lambda name: int(LABELS[name]))
TEMPLATES = {
    "train": {
        "78687": "Holding [something] next to [something]",
        "42326": "Pushing [something] so that it almost falls off but doesn't",
        "100904": "Putting [something], [something] and [something] on the table",
        "9": "Approaching [something] with your camera",
    },
    "validation": {
        "74225": "Holding [something] next to [something]",
        "116154": "Approaching [something] with your camera",
    },
    "test": {"1420": None, "3": None},
}
ABSENT = {"9", "116154"}
PREFIXES = {"published first": "something-something-v2-", "published later": ""}


def write_v2(folder, prefix="something-something-v2-", answers=False):
    folder.mkdir(parents=True)
    (folder / f"{prefix}labels.json").write_text(json.dumps(LABELS))
    for split, templates in TEMPLATES.items():
        entries = [
            {"id": video} if template is None else
            {"id": video, "label": template.replace("[something]", "a cup").lower(), "template": template,
             "placeholders": ["a cup"] * template.count("[")}
            for video, template in templates.items()
        ]  # fmt: skip
        (folder / f"{prefix}{split}.json").write_text(json.dumps(entries))
    if answers:
        (folder / "test-answers.csv").write_text(f"1420;{ORDER[1]}\n3;{ORDER[3]}\n")
    return folder


def write_v1(folder):
    folder.mkdir(parents=True)
    prefix = "something-something-v1-"
    (folder / f"{prefix}labels.csv").write_text("".join(f"{name}\n" for name in ORDER))
    for split, templates in TEMPLATES.items():
        lines = [
            video if template is None else f"{video};{template.replace('[', '').replace(']', '')}"
            for video, template in templates.items()
        ]
        (folder / f"{prefix}{split}.csv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="session")
def video(tmp_path_factory):
    """A real video as V2 holds them, but smaller."""
    codec = "libvpx-vp9" if "libvpx-vp9" in av.codecs_available else "libvpx"
    return write_video(tmp_path_factory.mktemp("video") / "a.webm", frames=24, fps=12, codec=codec)


def lay(video, folder, names):
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        os.link(video, folder / name)


def present(*splits):
    return [video for split in splits or TEMPLATES for video in TEMPLATES[split] if video not in ABSENT]


def rows_of(path):
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def labels_found(out, name):
    classes = read_class_list(out / "classes.txt")
    videos = read_manifest(out / name, classes)
    assert all(Path(v.path).is_file() for v in videos)
    return {Path(v.path).stem: classes[v.label] for v in videos}


def expected(split):
    templates = TEMPLATES[split]
    return {v: templates[v].replace("[", "").replace("]", "") for v in present(split)}


@pytest.mark.parametrize("published", PREFIXES)
@pytest.mark.parametrize("suffix", ["webm", "mp4"])
def test_version_2(tmp_path, video, capsys, published, suffix):
    folder, out = tmp_path / "20bn-something-something-v2", tmp_path / "lists"
    lay(video, folder, [*(f"{v}.{suffix}" for v in present()), "555.webm", "78687x.webm"])
    annotations = write_v2(tmp_path / "labels", PREFIXES[published])
    assert prepare_something_something(2, annotations, [folder], Options(out)) == 0
    assert read_class_list(out / "classes.txt") == ORDER
    assert labels_found(out, "train.csv") == expected("train")
    assert labels_found(out, "val.csv") == expected("validation")
    assert (out / "test.csv").read_bytes() == (out / "val.csv").read_bytes()
    assert not (out / "test_official.csv").exists()
    unlabelled = (out / "test_unlabelled.txt").read_text().splitlines()
    assert unlabelled == [str(folder / f"{v}.{suffix}") for v in ("1420", "3")]
    assert {(r["video"], r["split"], r["reason"]) for r in rows_of(out / "missing.csv")} == {
        ("9", "train", "no file"), ("116154", "val", "no file"),
    }  # fmt: skip
    extra = {(Path(r["path"]).name, r["reason"]) for r in rows_of(out / "extra.csv")}
    assert extra == {("555.webm", "not annotated"), ("78687x.webm", "not annotated")}
    printed = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["train", "168,913", "4", "3", "1"] in printed
    assert ["val", "24,777", "2", "1", "1"] in printed
    assert ["test", "27,157", "2", "2", "0"] in printed


def test_the_lists_are_what_the_configs_ask_for(tmp_path, video):
    lay(video, tmp_path / "v", [f"{v}.webm" for v in present()])
    prepare_something_something(2, write_v2(tmp_path / "labels"), [tmp_path / "v"], Options(tmp_path / "lists"))
    overrides = ["DATA.PATH_TO_DATA_DIR", str(tmp_path / "lists"), "MODEL.NUM_CLASSES", "4"]
    cfg = load_config(Path(__file__).parents[2] / "configs" / "ssv2_lvit.yaml", overrides)
    classes = load_classes(cfg)
    assert [len(load_split(cfg, split, classes)) for split in ("train", "val", "test")] == [3, 1, 1]


@pytest.mark.parametrize("test_on", ["val", "test"])
def test_published_answers_label_the_test_split(tmp_path, video, test_on):
    lay(video, tmp_path / "v", [f"{v}.webm" for v in present()])
    options = Options(tmp_path / "lists", test_on=test_on)
    prepare_something_something(2, write_v2(tmp_path / "labels", answers=True), [tmp_path / "v"], options)
    answers = {"1420": ORDER[1], "3": ORDER[3]}
    assert labels_found(tmp_path / "lists", "test_official.csv") == answers
    assert labels_found(tmp_path / "lists", "test.csv") == (answers if test_on == "test" else expected("validation"))
    assert not (tmp_path / "lists" / "test_unlabelled.txt").exists()


def write_pictures(folder, count):
    folder.mkdir(parents=True)
    for number in range(1, count + 1):
        with av.open(str(folder / f"{number:05d}.jpg"), "w", format="image2", options={"update": "1"}) as container:
            stream = container.add_stream("mjpeg", rate=1)
            stream.width, stream.height, stream.pix_fmt = 64, 48, "yuvj420p"
            container.mux(stream.encode(av.VideoFrame.from_ndarray(draw_frame(number), format="rgb24")))
            container.mux(stream.encode(None))


def test_version_1_pictures_become_videos(tmp_path, capsys):
    for video in present():
        write_pictures(tmp_path / "v1" / video, 6)
    write_pictures(tmp_path / "v1" / "555", 2)
    annotations = write_v1(tmp_path / "labels")
    with pytest.raises(ValueError, match=r"v1/78687 and 5 more are folders of pictures; .*--short-side 240"):
        prepare_something_something(1, annotations, [tmp_path / "v1"], Options(tmp_path / "lists"))
    (tmp_path / "v1" / "42326" / "00003.jpg").unlink()
    options = Options(tmp_path / "lists", Encoding(48, gop=4), processes=2)
    assert prepare_something_something(1, annotations, [tmp_path / "v1"], options) == 1
    assert labels_found(tmp_path / "lists", "train.csv") == {v: t for v, t in expected("train").items() if v != "42326"}
    with open_video(tmp_path / "lists" / rows_of(tmp_path / "lists" / "train.csv")[0]["path"]) as reader:
        assert reader.times.tolist() == pytest.approx([i / 12 for i in range(6)])
        assert [read_number(p.numpy()) for p in reader.frames_at(reader.times.tolist())] == list(range(1, 7))
    missing = {r["video"]: r["reason"] for r in rows_of(tmp_path / "lists" / "missing.csv")}
    assert set(missing) == {"9", "116154", "42326"}
    assert "00003.jpg is missing" in missing["42326"]
    printed = capsys.readouterr().out
    assert ["train", "86,017", "4", "2", "2"] in [line.split() for line in printed.splitlines()]
    assert "could not be re-encoded: 42326" in printed
    assert len((tmp_path / "lists" / "test_unlabelled.txt").read_text().splitlines()) == 2


# Mistakes ---------------------------------------------------------------------------------------------------------


def change(name, text):
    def apply(folder):
        path = next(folder.glob(f"*{name}"))
        path.write_text(text if isinstance(text, str) else json.dumps(text))

    return apply


def answers(text):
    return lambda folder: (folder / "test-answers.csv").write_text(text)


def entry(**fields):
    return change("train.json", [{"id": "1", "template": "Holding [something] next to [something]"} | fields])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (entry(template="Holding [something] up"), r"train\.json, entry 1: 'Holding something up' is not in the list"),
        (entry(template=None), r"train\.json, entry 1: no label; only the test split has none"),
        (entry(template=3), r"train\.json, entry 1: the template is not text"),
        (entry(id=" "), r"train\.json, entry 1: no id"),
        (entry(id=None), r"train\.json, entry 1: expected"),
        (change("train.json", {"a": 1}), r"train\.json: expected a list"),
        (change("train.json", []), r"train\.json: holds no annotation"),
        (change("train.json", "[{"), r"train\.json: not valid JSON .*fetch it again"),
        (change("labels.json", {"a": "0", "b": "2"}), r"labels\.json: 2 classes are not numbered from 0 to 1"),
        (change("labels.json", {"a": "0", "b": "0"}), r"labels\.json: 2 classes are not numbered"),
        (change("labels.json", {"a": "0", "b": "x"}), r"labels\.json: expected .* one of the numbers"),
        (change("labels.json", {"[a] b": "0", "a b": "1"}), r"labels\.json: class 'a b' occurs twice"),
        (change("labels.json", ["a"]), r"labels\.json: expected"),
        (change("labels.json", {}), r"labels\.json: holds no class"),
        (lambda f: next(f.glob("*labels*")).unlink(), r"expected the official labels and train"),
        (lambda f: (f / "train.json").write_text("[]"), r"both something-something-v2-train\.json and train\.json"),
        (answers("3;what;ever\n"), r"test-answers\.csv, line 1: expected 'id;label'"),
        (answers("\n3;what\n"), r"test-answers\.csv, line 2: 'what' is not in the list"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_told(tmp_path, video, damage, message):
    lay(video, tmp_path / "v", ["78687.webm"])
    folder = write_v2(tmp_path / "labels")
    damage(folder)
    with pytest.raises(ValueError, match=message):
        prepare_something_something(2, folder, [tmp_path / "v"], Options(tmp_path / "lists"))
    assert not (tmp_path / "lists").exists()


def test_labels_of_version_1_keep_their_order_and_commas(tmp_path):
    assert read_labels(official_files(write_v1(tmp_path / "labels"))["labels"]) == ORDER


def test_the_command(tmp_path, video):
    lay(video, tmp_path / "v", [f"{v}.webm" for v in present()])
    arguments = [
        "--annotations",
        write_v2(tmp_path / "labels"),
        "--out",
        tmp_path / "lists",
        "--short-side",
        32,
        "--gop",
        6,
    ]
    done = call_tool(
        "datasets/something_something/prepare.py", *arguments, "--videos", tmp_path / "v", "--processes", 1
    )
    assert done.returncode == 0, done.stderr
    assert labels_found(tmp_path / "lists", "train.csv") == expected("train")
    assert sorted(p.name for p in (tmp_path / "lists" / "videos").iterdir()) == [
        "encoding.json",
        "test",
        "train",
        "val",
    ]
    done = call_tool("datasets/something_something/prepare.py", *arguments, "--videos", tmp_path / "nowhere")
    assert done.returncode == 2
    assert "no such folder" in done.stderr.splitlines()[-1]
