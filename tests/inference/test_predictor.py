import pytest
import torch

from lookupvit_video.config import load_config
from lookupvit_video.data.transforms import normalize
from lookupvit_video.engine.checkpoint import save_checkpoint
from lookupvit_video.inference.draw import attention_at, draw_prediction, overlay
from lookupvit_video.inference.predictor import Prediction, load_model
from lookupvit_video.models.build import build_model
from tests.models.test_models import SMALL
from tests.videos import write_video

CLASSES = ["a", "b", "c", "d", "e"]


def predictor(folder, *overrides):
    cfg = load_config(None, [*SMALL, *overrides])
    torch.manual_seed(3)
    save_checkpoint(folder / "model.pt", cfg=cfg, classes=CLASSES, model=build_model(cfg))
    return load_model(folder / "model.pt", "cpu")


def test_predict_sorts_classes_and_averages_the_views(tmp_path):
    write_video(tmp_path / "x.mp4", frames=48)
    model = predictor(tmp_path, "DATA.SAMPLING_RATE", "2")
    answer = model.predict(tmp_path / "x.mp4", topk=9, num_views=3, num_crops=3)
    assert sorted(answer.labels) == CLASSES
    assert answer.probabilities == sorted(answer.probabilities, reverse=True)
    assert sum(answer.probabilities) == pytest.approx(1, abs=1e-5)
    assert answer.clip.shape == (3, 4, 32, 32)
    one_by_one = [model.predict(tmp_path / "x.mp4", topk=9, num_views=1), answer]
    assert one_by_one[0].probabilities != answer.probabilities


def test_a_video_shorter_than_the_clip_repeats_its_last_frame(tmp_path):
    write_video(tmp_path / "x.mp4", frames=2)
    answer = predictor(tmp_path).predict(tmp_path / "x.mp4")
    assert torch.equal(answer.clip[:, -1], answer.clip[:, -2])
    assert len(answer.labels) == 5


def test_attention_maps_show_where_the_compressed_tokens_look(tmp_path):
    clip = torch.randint(0, 256, (3, 4, 32, 32), dtype=torch.uint8)
    maps = predictor(tmp_path).attention_maps(clip)
    assert maps.shape == (2, 4, 4)
    assert maps.sum() == pytest.approx(1, abs=1e-5)
    assert predictor(tmp_path, "MODEL.ARCH", "vit").attention_maps(clip) is None


def test_the_sheet_warms_what_is_looked_at(tmp_path):
    frame = torch.full((32, 32, 3), 128, dtype=torch.uint8).numpy()
    attention = torch.zeros(2, 4, 4)
    attention[1, 0, 0] = 0.5
    assert torch.equal(attention_at(attention, frame=3, num_frames=4), attention[1] / 0.5)
    assert attention_at(attention, frame=1, num_frames=4).sum() == 0
    drawn = overlay(frame, attention[1] / 0.5).astype(int)
    assert drawn[0, 0, 0] > 190 > 60 > drawn[31, 31, 0]
    clip = torch.zeros(3, 4, 32, 32, dtype=torch.uint8)
    draw_prediction(Prediction("x.mp4", ["a", "b"], [0.8, 0.2], clip), attention, tmp_path / "s" / "x.png")
    draw_prediction(Prediction("x.mp4", ["a"], [1.0], clip), None, tmp_path / "y.png")
    assert (tmp_path / "s" / "x.png").stat().st_size > 5000
    assert (tmp_path / "y.png").stat().st_size > 3000


def test_a_missing_device_is_a_clear_error(tmp_path):
    predictor(tmp_path)
    with pytest.raises(ValueError, match=r"--device cuda:99"):
        load_model(tmp_path / "model.pt", "cuda:99")
    with pytest.raises(ValueError, match=r"--device abacus"):
        load_model(tmp_path / "model.pt", "abacus")


FACTORISED = "MODEL.ENCODER factorised MODEL.COMPRESSED_GRID [2,2] MODEL.TEMPORAL_DEPTH 1"
MODELS = {
    "lookupvit": "TEST.GRIDS [[2,4,4]]",
    "factorised": FACTORISED,
    "vit": "MODEL.ARCH vit MODEL.POOL class",
    "mvit": "MODEL.ARCH mvit MODEL.VARIANT Ti",
    "x3d": "MODEL.ARCH x3d MODEL.VARIANT XS",
}


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    return write_video(tmp_path_factory.mktemp("video") / "x.mp4", frames=24)


@pytest.mark.parametrize("name", MODELS)
def test_every_model_predicts(tmp_path, video, name):
    model = predictor(tmp_path, *MODELS[name].split(), "DATA.CACHE_VIDEOS", "True")
    answer = model.predict(video, topk=5)
    assert sorted(answer.labels) == CLASSES
    assert not model.model.training
    with torch.no_grad():
        shares = model.model(normalize(answer.clip[None], model.cfg.DATA.MEAN, model.cfg.DATA.STD)).softmax(-1)[0]
    torch.testing.assert_close(torch.tensor(answer.probabilities), shares.sort(descending=True).values)
    assert answer.labels[0] == CLASSES[shares.argmax()]
    maps = model.attention_maps(answer.clip)
    assert (maps is None) == (name not in ("lookupvit", "factorised"))


def test_attention_maps_of_a_factorised_encoder_have_every_time(tmp_path):
    model = predictor(tmp_path, *FACTORISED.split())
    clip = torch.randint(0, 256, (3, 4, 32, 32), dtype=torch.uint8)
    maps = model.attention_maps(clip)
    assert maps.shape == model.model.tokenizer.grid == (2, 4, 4)
    assert maps.min() >= 0
    assert maps.sum() == pytest.approx(1, abs=1e-5)
    assert maps.sum((1, 2)).tolist() == pytest.approx([0.5, 0.5], abs=1e-5)
    clip[:, 2:] = 0  # the second time index sees black, the first what it saw
    dark = model.attention_maps(clip)
    torch.testing.assert_close(dark[0], maps[0])
    assert not torch.allclose(dark[1], maps[1])
