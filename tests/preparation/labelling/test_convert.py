"""Files as the tools write them -> lists, lists -> files, round trips, and mistakes in one line."""

import json

import pytest

from lookupvit_video.errors import UserError
from lookupvit_video.preparation.labelling.clock import Span
from lookupvit_video.preparation.labelling.convert import TOOLS, Choices, export_labels, import_labels, read_spans
from tests.labelled import KINDS, boundaries, make_videos, random_spans, round_trip
from tests.videos import write_video

CVAT_VIDEO = """<annotations><version>1.1</version><meta><task><id>7</id><name>t</name><size>48</size>
<start_frame>0</start_frame><stop_frame>47</stop_frame><source>v.mp4</source></task></meta>
<track id="0" label="run"><box frame="6" outside="0" keyframe="1"/><box frame="9" outside="0" keyframe="1"/>
<box frame="12" outside="1" keyframe="1"/><box frame="36" outside="0" keyframe="1"/></track></annotations>"""
CVAT_TAGS = """<annotations><meta><task><id>7</id><name>v.mp4</name><size>24</size><start_frame>0</start_frame>
<stop_frame>46</stop_frame><frame_filter>step=2</frame_filter></task></meta>
<image id="0" name="frame_000006"><tag label="run"/></image>
<image id="1" name="frame_000008"><tag label="run"/></image>
<image id="2" name="frame_000010"><tag label="run"/></image><image id="9" name="f_20"/></annotations>"""
ELAN = """<ANNOTATION_DOCUMENT><HEADER>
<MEDIA_DESCRIPTOR MEDIA_URL="file:///elsewhere/v.mp4" TIME_ORIGIN="100"/></HEADER>
<TIME_ORDER><TIME_SLOT TIME_SLOT_ID="t1" TIME_VALUE="150"/><TIME_SLOT TIME_SLOT_ID="t2" TIME_VALUE="400"/></TIME_ORDER>
<TIER TIER_ID="x"><ANNOTATION><ALIGNABLE_ANNOTATION TIME_SLOT_REF1="t1" TIME_SLOT_REF2="t2"><ANNOTATION_VALUE>run
</ANNOTATION_VALUE></ALIGNABLE_ANNOTATION></ANNOTATION></TIER></ANNOTATION_DOCUMENT>"""
RESULT = {"type": "timelinelabels", "value": {"ranges": [{"start": 7, "end": 12}], "timelinelabels": ["run"]}}
STUDIO = [
    {"data": {"video": "/data/upload/1/0a1b2c3d-v.mp4"},
     "annotations": [{"was_cancelled": True}, {"result": [RESULT]}]},
    {"data": {"video": "/data/local-files/?d=x/w.mp4"}, "annotations": [{"result": [
        {"type": "choices", "value": {"choices": ["jump"]}}]}]},
]  # fmt: skip
VIA = {
    "file": {"1": {"fname": "v.mp4"}}, "view": {"1": {"fid_list": ["1"]}},
    "attribute": {"1": {"options": {"0": "run", "1": "jump"}}, "2": {"options": {}}},
    "metadata": {"a": {"vid": "1", "z": [0.25, 0.5], "xy": [], "av": {"1": "0"}},
                 "b": {"vid": "1", "z": [0.25], "xy": [2, 1, 1, 5, 5], "av": {"1": "1"}}},
}  # fmt: skip
FIFTYONE = {"classes": ["jump", "run"], "labels": {"v": [{"label": 1, "support": [7, 12]}], "w": None}}
SAMPLES = {"samples": [{"filepath": "data/v.mp4", "events": {"_cls": "TemporalDetections", "detections": [
    {"_cls": "TemporalDetection", "label": "run", "support": [7, 12]},
    {"_cls": "TemporalDetection", "label": "jump", "support": [1, 2], "confidence": 0.4}]}}]}  # fmt: skip
ACTIVITYNET = {"database": {"v": {"subset": "training", "annotations": [{"segment": [0.25, 0.5], "label": "run"}]}}}


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    write_video(folder / "v.mp4", frames=48, fps=24)
    write_video(folder / "w.mp4", frames=8, fps=24)
    return folder


@pytest.mark.parametrize(
    ("tool", "text", "more"),
    [
        ("cvat", CVAT_VIDEO, [("v.mp4", "run", 1.5, 2.0)]),
        ("cvat", CVAT_TAGS, []),
        ("elan", ELAN, []),
        ("label-studio", json.dumps(STUDIO), [("w.mp4", "jump", None, None)]),
        ("via", json.dumps(VIA), []),
        ("fiftyone", json.dumps(FIFTYONE), []),
        ("fiftyone", json.dumps(SAMPLES), []),
        ("activitynet", json.dumps(ACTIVITYNET), []),
    ],
)
def test_what_tools_write(videos, tmp_path, tool, text, more):
    """Frames 6 to 11 of v.mp4, 0.25 to 0.5 s, in each."""
    (tmp_path / "in").write_text(text)
    import_labels(tool, [tmp_path / "in"], videos, tmp_path, Choices(rate=24 if tool == "label-studio" else None), list)
    wanted = [Span(str(videos / name), *rest) for name, *rest in [("v.mp4", "run", 0.25, 0.5), *more]]
    assert read_spans(tmp_path / "all.csv") == wanted


@pytest.mark.parametrize("tool", TOOLS)
def test_round_trips_move_no_boundary(tmp_path, tool):
    paths = make_videos(tmp_path, len(KINDS))
    choices = Choices(
        rate=1000.0 if tool == "label-studio" else None, origin="" if tool in ("cvat", "fiftyone") else "file"
    )
    spans = [span for number, path in enumerate(paths) for span in random_spans(path, number)]
    assert boundaries(round_trip(tool, spans, tmp_path, tmp_path / "out", choices)) == boundaries(spans)


@pytest.mark.parametrize("tool", TOOLS)
def test_answers_and_timelines_go_out_as_predictions(videos, tmp_path, tool):
    video = str(videos / "v.mp4")
    answers = [{"path": video, "classes": {"run": 0.75, "jump": 0.25}}, {"path": "gone.mp4", "error": "missing"}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(answer) + "\n" for answer in answers))
    part = {"start": 0.25, "end": 0.5, "label": "run", "probability": 0.75}
    (tmp_path / "t.json").write_text(json.dumps({"path": video, "segments": [part]}, indent=1))
    choices = Choices(rate=24 if tool == "label-studio" else None)
    for source in ("a.jsonl", "t.json"):
        out = tmp_path / f"{source}.out"
        assert export_labels(tool, tmp_path / source, out, choices, list) == 1
        if tool in ("label-studio", "fiftyone", "activitynet"):  # their files have a place for scores
            assert "0.75" in out.read_text()
            with pytest.raises(UserError, match=r"no labels of .* but predictions"):
                import_labels(tool, [out], videos, tmp_path, choices, list)


@pytest.mark.parametrize(
    ("tool", "text", "choices", "message"),
    [
        ("label-studio", "[]", Choices(), "--rate"),
        ("elan", "<a/>", Choices(rate=24), "elan has seconds"),
        ("cvat", "{}", Choices(), "not a file of cvat"),
        ("cvat", "<annotations/>", Choices(), "not a file of cvat .no task"),
        ("via", "{}", Choices(), "not a file of via .no 'file'"),
        ("elan", '<!DOCTYPE a [<!ENTITY b "c">]><a/>', Choices(), "entities"),
        ("activitynet", '{"database": {}}', Choices(), "activitynet"),
        ("activitynet", json.dumps(ACTIVITYNET).replace('"v"', '"u"'), Choices(), "'u' of the labels is not there"),
    ],
)
def test_mistakes_name_file_and_fix(videos, tmp_path, tool, text, choices, message):
    (tmp_path / "in").write_text(text)
    with pytest.raises(UserError, match=message):
        import_labels(tool, [tmp_path / "in"], videos, tmp_path, choices, list)


def test_videos_of_the_same_name_are_told_apart_by_their_folders(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write_video(tmp_path / name / "v.mp4", frames=8)
    content = {"database": {name: {"annotations": [{"segment": [0, 0.25], "label": "x"}]} for name in ("b/v.mp4",)}}
    (tmp_path / "in").write_text(json.dumps(content))
    import_labels("activitynet", [tmp_path / "in"], tmp_path, tmp_path / "out", Choices(), list)
    assert [span.path for span in read_spans(tmp_path / "out" / "all.csv")] == [str(tmp_path / "b" / "v.mp4")]
    (tmp_path / "in").write_text(json.dumps(content).replace("b/v", "v"))
    with pytest.raises(UserError, match=r"a/v\.mp4, .*b/v\.mp4"):
        import_labels("activitynet", [tmp_path / "in"], tmp_path, tmp_path / "out", Choices(), list)
