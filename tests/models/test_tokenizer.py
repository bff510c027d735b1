import math

import pytest
import torch
from torch.nn import functional as F

from lookupvit_video.models.tokenizer import GridResize, TubeletTokenizer, interpolation_matrix, sine_cosine_positions


def tokenizer():
    return TubeletTokenizer(num_frames=4, size=12, tubelet=(2, 4, 6), dim=5).double()


def test_each_token_is_one_tubelet_in_t_h_w_order():
    model = tokenizer()
    clip = torch.randn(2, 3, 4, 12, 12, dtype=torch.float64)
    tokens = model(clip)
    assert model.grid == (2, 3, 2)
    row = 0
    for t in range(2):
        for h in range(3):
            for w in range(2):
                tubelet = clip[:, :, 2 * t : 2 * t + 2, 4 * h : 4 * h + 4, 6 * w : 6 * w + 6]
                by_hand = torch.einsum("bcthw,dcthw->bd", tubelet, model.projection.weight) + model.projection.bias
                torch.testing.assert_close(tokens[:, row], by_hand + model.positions[0, row])
                row += 1
    assert tokens.shape[1] == row


def test_changes_amplify_what_differs_from_the_average_frame():
    plain, changes = tokenizer(), TubeletTokenizer(num_frames=4, size=12, tubelet=(2, 4, 6), dim=5, input="changes")
    changes.double().load_state_dict(plain.state_dict())
    still = torch.randn(1, 3, 1, 12, 12, dtype=torch.float64).expand(-1, -1, 4, -1, -1)
    moving = torch.randn(1, 3, 4, 12, 12, dtype=torch.float64)
    moving = moving - moving.mean(2, keepdim=True)
    torch.testing.assert_close(changes(still + moving), plain(3 * moving))


def convolutional(seed=0, **changed):
    torch.manual_seed(seed)
    arguments = {"num_frames": 4, "size": 24, "tubelet": (2, 8, 12), "dim": 5, "convolutional": True}
    return TubeletTokenizer(**arguments | changed).double()


def test_convolutions_come_before_the_projection_frame_by_frame():
    model = convolutional()
    first, second = (model.stem.layers[i] for i in (0, 2))
    clip = torch.randn(2, 3, 4, 24, 24, dtype=torch.float64)
    frames = []
    for frame in clip.unbind(2):
        half = F.gelu(F.conv2d(frame, first.weight, first.bias, stride=2, padding=1))
        frames.append(F.gelu(F.conv2d(half, second.weight, second.bias, stride=2, padding=1)))
    features = torch.stack(frames, dim=2)
    assert features.shape == (2, 64, 4, 6, 6)
    tokens = F.conv3d(features, model.projection.weight, model.projection.bias, stride=(2, 2, 3))
    wanted = tokens.flatten(2).transpose(1, 2) + model.positions
    assert model.grid == (2, 3, 2)
    torch.testing.assert_close(model(clip), wanted)
    rows = torch.tensor([[4, 1], [0, 11]])
    torch.testing.assert_close(model(clip, rows), wanted.gather(1, rows[..., None].expand(-1, -1, 5)))
    still = torch.randn(2, 3, 1, 24, 24, dtype=torch.float64)
    moving = clip - clip.mean(2, keepdim=True)
    torch.testing.assert_close(convolutional(input="changes")(still + moving), model(3 * moving))


def test_pixels_are_pixels_whatever_comes_before_the_projection():
    clip = torch.randn(2, 3, 4, 24, 24, dtype=torch.float64)
    linear, model = convolutional(convolutional=False), convolutional()
    assert torch.equal(model.fold(clip), linear.fold(clip))
    assert torch.equal(model.unfold(model.fold(clip)), clip)
    assert torch.equal(model.pixel_variance(clip), linear.pixel_variance(clip))


def test_convolutions_keep_the_scale_of_the_pixels_and_shift_no_random_numbers():
    linear = convolutional(convolutional=False, dim=96)
    after = torch.rand(1)
    model = convolutional(dim=96)
    assert torch.equal(torch.rand(1), after)
    assert torch.equal(model.positions, linear.positions)
    clip = torch.randn(4, 3, 4, 24, 24, dtype=torch.float64)
    scales = [(each(clip) - each.positions).std().item() for each in (linear, model)]
    assert 0.5 < scales[1] / scales[0] < 2
    assert not any(layer.bias.any() for layer in (*model.stem.layers[::2], model.projection))
    bound = math.sqrt(6 / (96 + 64 * 2 * 2 * 3))
    assert 0.95 * bound < model.projection.weight.abs().max() <= bound


@pytest.mark.parametrize("tubelet", [(2, 6, 12), (2, 12, 6)])
def test_convolutions_need_sides_that_they_can_halve_twice(tubelet):
    with pytest.raises(ValueError, match="a height and width divisible by 4"):
        convolutional(tubelet=tubelet)


def test_wrong_geometry_is_a_clear_error():
    with pytest.raises(ValueError, match="cannot be cut into tubelets"):
        TubeletTokenizer(num_frames=5, size=12, tubelet=(2, 4, 6), dim=5)
    with pytest.raises(ValueError, match=r"expected clips of shape \(B, 3, 4, 12, 12\)"):
        tokenizer()(torch.zeros(1, 3, 4, 12, 18, dtype=torch.float64))


@pytest.mark.parametrize(("n_in", "n_out"), [(8, 4), (14, 5), (14, 7), (7, 14), (9, 9), (16, 1)])
@pytest.mark.parametrize("antialias", [True, False])
def test_interpolation_matrix_equals_torchs_resize(n_in, n_out, antialias):
    # Torch antialiases in 2-D only, so each axis is compared there, with the other one left alone.
    image = torch.randn(1, 1, n_in, 3, dtype=torch.float64)
    by_torch = F.interpolate(image, size=(n_out, 3), mode="bilinear", antialias=antialias, align_corners=False)
    by_matrix = interpolation_matrix(n_in, n_out, antialias=antialias) @ image[0, 0]
    torch.testing.assert_close(by_matrix, by_torch[0, 0])


@pytest.mark.parametrize("grid_out", [(4, 7, 7), (2, 5, 3), (8, 14, 12), (1, 1, 1)])
def test_resize_trilinear_equals_torchs(grid_out):
    grid_in = (8, 14, 12)
    tokens = torch.randn(2, 8 * 14 * 12, 3)
    volume = tokens.transpose(1, 2).unflatten(2, grid_in)
    by_torch = F.interpolate(volume, size=grid_out, mode="trilinear", align_corners=False).flatten(2).transpose(1, 2)
    torch.testing.assert_close(GridResize(grid_in, grid_out, "trilinear")(tokens), by_torch, rtol=1e-4, atol=1e-5)


def test_resize_is_linear_and_keeps_constants():
    resize = GridResize((4, 6, 6), (2, 3, 3))
    a, b = torch.randn(1, 144, 4), torch.randn(1, 144, 4)
    torch.testing.assert_close(resize(a + b), resize(a) + resize(b))  # so T(F) + T(pos) = T(F + pos), as the paper says
    torch.testing.assert_close(resize(torch.ones(1, 144, 4)), torch.ones(1, 18, 4))


def test_resize_triangle_equals_torchs_antialiasing_within_each_time_index():
    tokens = torch.randn(2, 3 * 14 * 12, 5, dtype=torch.float64)
    images = tokens.unflatten(1, (3, 14, 12)).flatten(0, 1).permute(0, 3, 1, 2)
    by_torch = F.interpolate(images, size=(5, 7), mode="bilinear", antialias=True, align_corners=False)
    by_torch = by_torch.permute(0, 2, 3, 1).reshape(2, 3 * 5 * 7, 5)
    torch.testing.assert_close(GridResize((3, 14, 12), (3, 5, 7))(tokens), by_torch, rtol=1e-5, atol=1e-6)


def test_resize_to_the_same_grid_changes_nothing_and_weighs_nothing():
    tokens = torch.randn(2, 24, 5)
    assert torch.equal(GridResize((2, 3, 4), (2, 3, 4))(tokens), tokens)
    assert not GridResize((2, 3, 4), (1, 2, 2)).state_dict()  # so that weights do not depend on the grid


def test_resize_kind_is_checked():
    with pytest.raises(ValueError, match="choose triangle or trilinear"):
        GridResize((2, 2, 2), (1, 1, 1), "nearest")


@pytest.mark.parametrize("dim", [96, 100])
def test_starting_positions_tell_every_place_apart(dim):
    positions = sine_cosine_positions((3, 4, 5), dim)
    assert positions.shape == (60, dim)
    distance = torch.cdist(positions, positions) + 10 * torch.eye(60)
    assert distance.min() > 0.5
    grid = positions.view(3, 4, 5, dim)
    third = dim // 6 * 2
    assert torch.equal(grid[:, 0, 0, :third], grid[:, 3, 4, :third])  # the first third is t's alone
    assert torch.equal(grid[0, :, 0, third : 2 * third], grid[2, :, 4, third : 2 * third])
    assert torch.equal(grid[0, 0, :, 2 * third : 3 * third], grid[2, 3, :, 2 * third : 3 * third])


@pytest.mark.parametrize("dim", [12, 24, 27, 4])
def test_starting_positions_are_sines_and_cosines_of_frequencies_falling_to_one_in_ten_thousand(dim):
    """MAE's and VideoMAE's formula for each of three axes: sin and cos of place / 10000^(i / n), for i below n."""
    grid = (3, 4, 5)
    positions = sine_cosine_positions(grid, dim)
    n = dim // 6
    row = 0
    for place in ((t, h, w) for t in range(3) for h in range(4) for w in range(5)):
        wanted = []
        for axis in place:
            angles = [axis / 10000 ** (i / n) for i in range(n)]
            wanted += [math.sin(angle) for angle in angles] + [math.cos(angle) for angle in angles]
        wanted += [0.0] * (dim - 6 * n)
        torch.testing.assert_close(positions[row], torch.tensor(wanted))
        row += 1
    assert positions.shape == (row, dim)


def test_the_tokenizer_begins_as_a_linear_layer_on_flattened_tubelets():
    torch.manual_seed(0)
    model = TubeletTokenizer(num_frames=4, size=16, tubelet=(2, 4, 4), dim=48)
    bound = math.sqrt(6 / (48 + 3 * 2 * 4 * 4))  # Xavier, uniform
    assert 0.98 * bound < model.projection.weight.abs().max() <= bound
    assert model.projection.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.05)
    assert not model.projection.bias.any()
    assert torch.equal(model.positions[0], sine_cosine_positions((2, 4, 4), 48))
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert model.clip_shape == (3, 4, 16, 16)  # three channels unless said otherwise
    grey = TubeletTokenizer(num_frames=4, size=16, tubelet=(2, 4, 4), dim=48, in_channels=1)
    assert grey(torch.zeros(2, 1, 4, 16, 16)).shape == (2, 32, 48)
    assert grey.num_tokens == 32


@pytest.mark.parametrize("tubelet", [(3, 4, 4), (2, 3, 4), (2, 4, 5)])
def test_each_side_must_be_a_multiple(tubelet):
    with pytest.raises(ValueError, match="cannot be cut into tubelets"):
        TubeletTokenizer(num_frames=4, size=16, tubelet=tubelet, dim=6)


def test_a_reduction_by_half_in_plain_numbers():
    """The triangle filter of 8 to 4 spans four samples at distances 1/2 and 3/2 of 2; at the ends what is there."""
    wide, narrow = (interpolation_matrix(8, 4, antialias=antialias) for antialias in (True, False))
    torch.testing.assert_close(wide[1], torch.tensor([0, 1, 3, 3, 1, 0, 0, 0], dtype=torch.float64) / 8)
    torch.testing.assert_close(wide[0], torch.tensor([3, 3, 1, 0, 0, 0, 0, 0], dtype=torch.float64) / 7)
    torch.testing.assert_close(narrow[1], torch.tensor([0, 0, 1, 1, 0, 0, 0, 0], dtype=torch.float64) / 2)
    up = interpolation_matrix(2, 4, antialias=True)
    torch.testing.assert_close(up, torch.tensor([[4, 0], [3, 1], [1, 3], [0, 4]], dtype=torch.float64) / 4)
