"""The video of a live source: pictures of any size, times that ascend, frames after the end."""

import av
import numpy as np

from lookupvit_video.inference.streaming.recorder import Recorder


def frames_of(path):
    with av.open(str(path)) as container:
        return [(frame.time, frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]


def test_pictures_of_another_size_fit_and_times_ascend(tmp_path):
    recorder = Recorder(tmp_path / "x.mkv", ["a", "b"])
    light, dark = np.full((48, 64, 3), 220, np.uint8), np.full((99, 33, 3), 20, np.uint8)
    for picture, seconds in ((light, 0.0), (dark, 0.5), (light, 0.5), (light, 0.2), (dark, 1.25)):
        recorder.add(picture, seconds, 25.0)
    assert not (tmp_path / "x.mkv").exists()
    recorder.close()
    recorder.add(light, 2.0, 25.0)  # a thread that notices the end late
    found = frames_of(tmp_path / "x.mkv")
    assert [time for time, _ in found] == [0.0, 0.5, 1.25]
    assert [round(float(picture[:384].mean()), -1) for _, picture in found] == [220, 20, 20]
    assert {picture.shape[1] for _, picture in found} == {512}


def test_without_a_frame_there_is_no_file(tmp_path):
    Recorder(tmp_path / "x.mp4", ["a"]).close()
    assert not list(tmp_path.iterdir())
