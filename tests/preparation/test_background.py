"""What lies between spans becomes rows of a class; short pauses do not."""

import pytest

from lookupvit_video.data.manifest import read_class_list, read_manifest
from lookupvit_video.errors import UserError
from lookupvit_video.preparation.background import add_background, gaps
from tests.videos import write_video


def test_gaps():
    assert gaps([(5, 7), (1, 2), (1.5, 3)], 10, 1.0) == [(0.0, 1), (3, 5), (7, 10)]
    assert gaps([(0, 10)], 10, 0.1) == []
    assert gaps([(0.5, 9.8)], 10, 1.0) == []


@pytest.fixture
def spans(tmp_path):
    write_video(tmp_path / "v.mp4", frames=48)  # 2 s
    (tmp_path / "classes.txt").write_text("run\njump\n")
    (tmp_path / "list.csv").write_text("path,label,start,end\nv.mp4,run,0.5,0.75\nv.mp4,jump,0.8,1.0\n")
    return tmp_path


@pytest.mark.parametrize(("window", "wanted"), [(0, [(0, 0.5), (1, 2)]), (0.4, [(0, 0.5), (1, 1.5), (1.5, 2)])])
def test_rows_between_the_spans(spans, window, wanted):
    counts = add_background(spans / "list.csv", spans / "out", "none", shortest=0.2, window=window, follow=list)
    assert counts == (2, len(wanted))
    classes = read_class_list(spans / "out" / "classes.txt")
    assert classes == ["run", "jump", "none"]
    rows = read_manifest(spans / "out" / "all.csv", classes)
    assert [(row.start, row.end) for row in rows if row.label == 2] == wanted
    assert [(row.start, row.end) for row in rows if row.label < 2] == [(0.5, 0.75), (0.8, 1.0)]


def test_a_class_of_that_name_is_refused(spans):
    with pytest.raises(UserError, match="choose another --label"):
        add_background(spans / "list.csv", spans, "run", shortest=1, window=0, follow=list)
