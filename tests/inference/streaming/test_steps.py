"""A streaming checkpoint on files and live sources: one tubelet after the other, a state for each source."""

import itertools
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch

from lookupvit_video.config import load_config
from lookupvit_video.errors import UserError
from lookupvit_video.inference.explain import explain_attention
from lookupvit_video.inference.predictor import Predictor
from lookupvit_video.inference.streaming.events import LabelEvents
from lookupvit_video.inference.streaming.frames import CUT, Window
from lookupvit_video.inference.streaming.source import Source
from lookupvit_video.inference.streaming.stream import Streamer, StreamOptions
from lookupvit_video.inference.timeline import find_segments, read_timeline
from lookupvit_video.models.build import build_model
from tests.inference.streaming.servers import write_colors
from tests.models.test_models import SMALL, STREAMING

RATES = "DATA.SAMPLING_RATE 2 DATA.TARGET_FPS 16".split()  # a tubelet of two frames lasts 0.25 s
NAMES = ["a", "b", "c", "d", "e"]


@pytest.fixture(scope="module")
def predictor():
    cfg = load_config(None, [*SMALL, *STREAMING.split(), *RATES])
    torch.manual_seed(0)
    model = build_model(cfg)
    with torch.no_grad():
        for gate in (model.memory.cut, model.memory.gate_new, model.memory.gate_state):
            gate.weight.normal_(std=0.3)
        model.heads["compressed"].linear.weight.normal_()
    return Predictor(model, cfg, NAMES, torch.device("cpu"))


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    return [
        write_colors(folder / "x.mp4", ["red", "green", "blue"]), write_colors(folder / "y.mp4", ["blue", "red"]),
    ]  # fmt: skip


def decided(predictor, *videos, **options):
    """(source, start, end, label, probability) of every decision."""
    events = []
    sources = [Source(video, "file") for video in videos]
    options = StreamOptions(decisions=True, **options)
    Streamer(predictor, sources, options, events.append, threading.Event()).run()
    return [tuple(event[key] for key in ("source", "start", "end", "label", "probability"))
            for event in events if event["event"] == "window"]  # fmt: skip


def test_a_timeline_is_the_steps_of_one_stream(predictor, videos, monkeypatch):
    found, clips = read_timeline(predictor, videos[0]), []
    assert found.window == 0.25
    assert found.starts.tolist() == [i * 0.25 for i in range(24)]
    step = predictor.predict_step
    monkeypatch.setattr(predictor, "predict_step", lambda clip, state: clips.append(clip) or step(clip, state))
    read_timeline(predictor, videos[0])
    monkeypatch.undo()
    model = predictor.model
    with torch.no_grad():
        unrolled = model(predictor.inputs(torch.cat(clips, dim=2))).softmax(-1)
    torch.testing.assert_close(torch.from_numpy(found.probabilities[-1:]), unrolled, rtol=0, atol=1e-5)


def test_sources_have_states_of_their_own_and_answer_as_their_timelines(predictor, videos):
    together = decided(predictor, *videos)
    for video in videos:
        line = read_timeline(predictor, video)
        best = line.probabilities.argmax(1)
        wanted = [
            (pytest.approx(start), NAMES[label], pytest.approx(row[label], abs=2e-4))
            for start, label, row in zip(line.starts, best, line.probabilities, strict=True)
        ]
        own = [(start, label, share) for source, start, _, label, share in together if source == video]
        assert own == wanted[: len(own)]
        assert len(own) >= len(wanted) - 1
    assert all(end - start == 0.25 for _, start, end, _, _ in together)


def test_a_cut_of_the_source_begins_a_new_state(predictor, videos):
    streamer = Streamer(predictor, [Source(videos[0], "file")], StreamOptions(), [].append, threading.Event())
    (watch,) = streamer.watches
    clips = torch.randint(0, 256, (3, 3, 2, 32, 32), dtype=torch.uint8)
    windows = [Window(0.25 * i, clip, 0.0, after_cut=i == 2) for i, clip in enumerate(clips)]
    answers = torch.cat([streamer._probabilities([(watch, window)]) for window in windows])
    fresh = [predictor.predict_step(clip[None])[0] for clip in clips]
    assert torch.equal(answers[0], fresh[0][0])
    assert not torch.allclose(answers[1], fresh[1][0])
    assert torch.equal(answers[2], fresh[2][0])
    assert CUT  # what sets after_cut, see test_frames


def test_a_pass_has_one_tubelet_of_each_source(predictor, videos):
    streamer = Streamer(predictor, [Source(video, "file") for video in videos], StreamOptions(batch_size=8),
                        [].append, threading.Event())  # fmt: skip
    for watch in streamer.watches:
        watch.waiting.extend(Window(0.25 * i, torch.zeros(3, 2, 32, 32), 0.0, after_cut=False) for i in range(5))
    assert [watch.source.name for watch, _ in streamer._next_batch()] == videos


def test_strides_and_windows_follow_from_the_tubelet(predictor, videos):
    with pytest.raises(UserError, match=r"--stride: this model answers after each of its tubelets, every 0.25 s"):
        read_timeline(predictor, videos[0], stride=0.5)
    with pytest.raises(UserError, match="--stride: this model answers"):
        decided(predictor, videos[0], stride=0.5)
    with pytest.raises(UserError, match="--window"):
        read_timeline(predictor, videos[0], window=0.5)


def test_other_checkpoints_have_no_state():
    cfg = load_config(None, SMALL)
    plain = Predictor(build_model(cfg), cfg, NAMES, torch.device("cpu"))
    assert plain.window_plan is plain.plan
    with pytest.raises(UserError, match=r"has no state to step with; train with MODEL.STREAMING True"):
        plain.predict_step(torch.zeros(1, 3, 2, 32, 32, dtype=torch.uint8))


def test_there_is_no_map_of_a_clip(predictor):
    with pytest.raises(UserError, match=r"^MODEL.STREAMING: attention is of one tubelet at a time"):
        explain_attention(predictor, torch.zeros(3, 4, 32, 32, dtype=torch.uint8))


def test_the_state_of_a_predictor_is_kept_by_the_caller(predictor):
    clips = torch.randint(0, 256, (2, 3, 8, 32, 32), dtype=torch.uint8)
    state, answers = None, []
    for tubelet in clips.split(2, dim=2):
        answer, state = predictor.predict_step(tubelet, state)
        answers.append(answer)
    torch.testing.assert_close(answers[-1], predictor.predict_clips(clips), rtol=0, atol=1e-5)
    assert all(not torch.allclose(a, b) for a, b in itertools.pairwise(answers))


def test_events_are_segments_and_leave_out_the_tubelet_across_a_change(predictor, videos):
    line = read_timeline(predictor, videos[0])
    assert line.apart == 0.5
    answers = np.full((24, 5), 0.05)
    answers[:9, 0] = answers[10:, 1] = 0.8
    answers[9, 2] = 0.8  # the one across the change
    line = replace(line, probabilities=answers)
    found = [(each.label, each.start, each.end) for each in find_segments(line, change_cost=0.5)]
    assert found == [("a", 0.0, 2.375), ("b", 2.375, 6.0)]
    events = LabelEvents(NAMES, 0.25, 0.5, apart=0.5)
    reported = [event for i in range(24) for event in events.add(0.25 * i, answers[i])] + events.finish(6.0)
    ended = [event.segment for event in reported if event.kind == "end"]
    assert [(each.label, each.start, each.end) for each in ended] == found
    streamer = Streamer(predictor, [Source(videos[0], "file")], StreamOptions(), [].append, threading.Event())
    assert streamer.watches[0].events._apart == 0.5
