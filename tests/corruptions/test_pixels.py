"""Single corruptions against their definitions, computed another way."""

import colorsys

import numpy as np
import pytest

from lookupvit_video.corruptions import blur, pixels
from tests.corruptions.clips import varied_clips

GRAY = np.full((2, 32, 32, 3), 100, np.uint8)


def rng():
    return np.random.default_rng(3)


def colors():
    """All corners of the color cube, grays and some others: (1, 1, N, 3)."""
    corners = np.stack(np.meshgrid(*[[0, 90, 255]] * 3), -1).reshape(1, 1, -1, 3)
    return corners.astype(np.uint8)


@pytest.mark.parametrize("strength", [(0.3, 0), (2, 0), (20, 0.2)])
def test_saturation_is_that_of_hsv(strength):
    def expected(color):
        h, s, v = colorsys.rgb_to_hsv(*color / 255)
        return np.rint(255 * np.array(colorsys.hsv_to_rgb(h, min(s * strength[0] + strength[1], 1), v)))

    found = pixels.saturate(colors(), strength, rng())[0, 0]
    assert np.abs(found - [expected(color) for color in colors()[0, 0]]).max() <= 1


def test_brightness_is_that_of_hsv():
    def expected(color):
        h, s, v = colorsys.rgb_to_hsv(*color / 255)
        return np.rint(255 * np.array(colorsys.hsv_to_rgb(h, s, min(v + 0.3, 1))))

    found = pixels.brightness(colors(), 0.3, rng())[0, 0]
    assert np.abs(found - [expected(color) for color in colors()[0, 0]]).max() <= 1


@pytest.mark.parametrize(("function", "strength", "mean", "deviation"), [
    (pixels.gaussian_noise, 0.08, 100, 0.08 * 255), (pixels.speckle_noise, 0.2, 100, 20),
    (pixels.shot_noise, 60, 100, (100 * 255 / 60) ** 0.5),
])  # fmt: skip
def test_noise_has_the_mean_and_deviation_that_it_says(function, strength, mean, deviation):
    found = function(np.full((8, 64, 64, 3), 100, np.uint8), strength, rng())
    assert found.mean() == pytest.approx(mean, abs=0.5)
    assert found.std() == pytest.approx(deviation, rel=0.02)


def test_impulses_are_as_often_black_as_white():
    found = pixels.impulse_noise(np.full((8, 64, 64, 3), 100, np.uint8), 0.1, rng())
    assert [(found == value).mean() for value in (0, 100, 255)] == pytest.approx([0.05, 0.9, 0.05], abs=0.004)


def test_contrast_keeps_the_mean_of_each_channel_of_each_frame():
    (clip,) = varied_clips(1)
    found = pixels.contrast(clip, 0.1, rng())
    assert np.abs(found.mean((1, 2)) - clip.mean((1, 2))).max() < 0.5
    assert found.std((1, 2)) == pytest.approx(0.1 * clip.std((1, 2)), abs=0.5)


def test_fog_is_one_layer_for_all_frames_and_rain_another_one_in_each():
    fog, rain = pixels.fog(GRAY, (2, 2), rng()), pixels.rain(GRAY, (60, 400, 0.6), rng())
    assert (fog[0] == fog[1]).all()
    assert fog.std() > 3
    assert (rain[0] != rain[1]).any()
    assert rain.max() > 105  # light streaks on gray, blurred and darkened


@pytest.mark.parametrize("function", [pixels.static_rotate, pixels.rotate])
def test_turned_by_so_many_degrees(function):
    (clip,) = varied_clips(1)
    if function is pixels.static_rotate:
        assert (function(clip, 90, rng()) == np.rot90(clip, axes=(1, 2))).all()
    else:
        turned = function(np.repeat(clip[:1], 6, 0), 25, rng())
        assert len({frame.tobytes() for frame in turned}) > 3


def test_moves_are_published_pixels_of_a_picture_of_224():
    clip = np.zeros((3, 112, 112, 3), np.uint8)
    clip[:, 50, 50] = 255
    found = pixels.translate(clip, 40, np.random.default_rng(0))
    places = np.argwhere(found[..., 0] == 255)[:, 1:]
    assert len(places) == 3
    assert (places == places[0]).all()
    assert 0 < np.abs(places[0] - 50).max() <= 20
    assert len({tuple(place) for place in np.argwhere(pixels.shake(clip, 40, rng())[..., 0] == 255)[:, 1:]}) > 1


def test_frame_blur_is_the_mean_of_the_frames_around():
    (clip,) = varied_clips(1, frames=9)
    found = blur.frame_blur(clip, 2, rng())
    for at in range(9):
        around = clip[np.clip(np.arange(at - 2, at + 2), 0, 8)].astype(float).mean(0)
        assert np.abs(found[at] - around).max() <= 0.5


@pytest.mark.parametrize(("function", "strength"), [
    (blur.motion_blur, (15, 8)), (blur.defocus_blur, (6, 0.5)),
])  # fmt: skip
def test_blur_keeps_what_is_even_and_softens_what_is_not(function, strength):
    assert (function(GRAY, strength, rng()) == GRAY).all()
    point = np.zeros((1, 225, 225, 3), np.uint8)
    point[:, 100:125, 100:125] = 255
    found = function(point, strength, rng())
    assert 0 < found[0, 112, 112, 0]
    assert len(np.unique(found)) > 20
    assert found.mean() == pytest.approx(point.mean(), rel=0.1)


def test_zoom_blur_mixes_the_frame_with_views_zoomed_about_its_center():
    assert (blur.zoom_blur(GRAY, (1.16, 0.01), rng()) == GRAY).all()
    square = np.zeros((1, 200, 200, 3), np.uint8)
    square[:, 75:125, 75:125] = 255
    found = blur.zoom_blur(square, (1.5, 0.25), rng())[0, :, 100, 0]  # views of 1, 1.25 and the frame itself
    assert found[100] == 255
    assert found[72] == 85  # in the zoomed view alone, one of three
    assert found[60] == 0


def test_defocus_spreads_a_point_over_a_disk_of_the_published_radius():
    point = np.zeros((1, 224, 224, 3), np.uint8)
    point[0, 112, 112] = 255
    places = np.argwhere(blur.defocus_blur(point, (3, 0.1), rng())[0, ..., 0]) - 112
    assert len(places) == 29  # pixels with x^2 + y^2 <= 9
    assert (places**2).sum(1).max() == 9


def test_motion_blur_smears_along_a_line_within_45_degrees():
    point = np.zeros((1, 224, 224, 3), np.uint8)
    point[0, 112, 112] = 255
    for seed in range(5):
        places = np.argwhere(blur.motion_blur(point, (20, 15), np.random.default_rng(seed))[0, ..., 0]) - 112
        down, right = np.abs(places).max(0)
        assert down <= right + 1
        assert 20 <= np.hypot(down, right) <= 42
