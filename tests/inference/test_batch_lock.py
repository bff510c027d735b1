"""Answer files have one writer at a time."""

import pytest

from lookupvit_video.inference.batch import AnswerFile
from lookupvit_video.processes.lock import InUseError


def test_a_second_writer_of_an_answer_file_is_refused(tmp_path):
    path = tmp_path / "answers.jsonl"
    with AnswerFile(str(path)) as first:
        first.write({"path": "a.mp4"})
        for resume in (False, True):
            with pytest.raises(InUseError, match=r"answers\.jsonl: this process is already writing there"):
                AnswerFile(str(path), resume=resume)
        assert path.read_text() == '{"path": "a.mp4"}\n'  # neither emptied nor written again
    with AnswerFile(str(path), resume=True) as again:
        assert again.done == {"a.mp4"}
    assert [file.name for file in tmp_path.iterdir()] == ["answers.jsonl"]
