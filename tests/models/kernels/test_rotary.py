"""Rotary positions against formulas written out one number at a time, and what they are good for."""

import math

import pytest
import torch

from lookupvit_video.errors import UserError
from lookupvit_video.models.kernels.rotary import FORMS, Rotary, RotaryTable, rotate

GRID, PATCH, DIM = (3, 4, 5), (16, 16), 28


def place_of(form, axis, at, length):
    """What a token at number ``at`` of an axis is turned by, as the published code says."""
    if form == "dinov3":
        return 2 * math.pi * (2 * (at + 0.5) / length - 1)
    if form == "pe":
        return at + 1
    return at * 15 / (length - 1) if form == "vjepa2_1" and axis else at


def pairs_of(form):
    """(first channel, second channel, axis, number of its frequency, of the second channel), of one head."""
    if form == "dinov3":  # 7 frequencies for height, 7 for width; the second half of the head is the partner
        return [(i, i + 14, 1 + i // 7, i % 7, i % 7) for i in range(14)]
    axes, pairs = ((2, 1), 7) if form == "pe" else ((0, 1, 2), 4)
    found = []
    for part, axis in enumerate(axes):
        for i in range(pairs):
            first = 2 * pairs * part + 2 * i
            ks = (2 * i % pairs, (2 * i + 1) % pairs) if form == "vjepa2" else (i, i)
            found.append((first, first + 1, axis, *ks))
    return found


@pytest.mark.parametrize("form", FORMS)
def test_each_channel_turns_as_published(form):
    x = torch.randn(2, 3, math.prod(GRID), DIM, dtype=torch.float64)
    found = rotate(x, RotaryTable(form, GRID, DIM, PATCH)())
    expected, base = x.clone(), 100 if form == "dinov3" else 10000
    for number in range(math.prod(GRID)):
        at = (number // 20, number // 5 % 4, number % 5)
        for a, b, axis, k, k_second in pairs_of(form):
            frequencies = 7 if form in ("dinov3", "pe") else 4
            angle, second = (
                place_of(form, axis, at[axis], GRID[axis]) * base ** -(i / frequencies) for i in (k, k_second)
            )
            first, other = x[:, :, number, a], x[:, :, number, b]
            expected[:, :, number, a] = first * math.cos(angle) - other * math.sin(angle)
            expected[:, :, number, b] = other * math.cos(second) + first * math.sin(second)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert rotate(x.bfloat16(), RotaryTable(form, GRID, DIM, PATCH)()).dtype == torch.bfloat16
    assert rotate(x, None) is x


@pytest.mark.parametrize("form", [form for form in FORMS if form != "vjepa2"])  # its pairs turn by two angles
def test_products_depend_on_the_distance_alone(form):
    q, k = torch.randn(2, 1, 1, 1, DIM, dtype=torch.float64).expand(2, 1, 1, 60, DIM)
    rotary = RotaryTable(form, GRID, DIM, PATCH)()
    products = (rotate(q, rotary) @ rotate(k, rotary).mT)[0, 0].unflatten(0, GRID).unflatten(-1, GRID)
    for h, w in ((1, 0), (0, 1), (1, 1)):
        torch.testing.assert_close(products[0, h, w, 0, 2 + h, 3 + w], products[0, 0, 0, 0, 2, 3], rtol=1e-5, atol=1e-5)
    assert (products[0, 0, 0, 0, 0] - products[0, 0, 0, 0, 0, :1]).abs().max() > 0.01


@pytest.mark.parametrize("form", FORMS)
def test_coarse_tokens_are_at_the_centers_of_their_cells(form):
    """Between two tokens, at their middle: the turn there is the square root of both turns."""
    fine, coarse = RotaryTable(form, (2, 4, 4), DIM, PATCH), RotaryTable(form, (2, 4, 4), DIM, PATCH, (1, 2, 2))
    angles = torch.atan2(*(torch.as_tensor(part).double() for part in (fine.sine, fine.cosine)))
    if form != "dinov3":  # whose angles pass half a turn
        mean = angles.unflatten(0, (1, 2, 2, 2, 2, 2)).mean((1, 3, 5)).flatten(0, 2)
        slow = angles.abs().amax(0) < 1  # angles above half a turn do not have a mean
        torch.testing.assert_close(coarse.sine.double()[:, slow], mean.sin()[:, slow], rtol=1e-4, atol=1e-5)
    same = RotaryTable(form, (2, 4, 4), DIM, PATCH, (2, 4, 4))
    assert torch.equal(same.cosine, fine.cosine)


def test_tokens_without_a_place_stay_and_rows_can_be_chosen():
    table = RotaryTable("dinov3", (1, 2, 2), 8, PATCH, prefix=3)
    x = torch.randn(2, 1, 7, 8)
    turned = rotate(x, table())
    assert torch.equal(turned[:, :, :3], x[:, :, :3])
    assert not torch.equal(turned[:, :, 3:], x[:, :, 3:])
    rows = torch.tensor([[0, 4], [5, 6]])
    some = rotate(torch.stack([x[0, :, rows[0]], x[1, :, rows[1]]]), table().of(rows))
    assert torch.equal(some, torch.stack([turned[0, :, rows[0]], turned[1, :, rows[1]]]))
    assert isinstance(table().of(None), Rotary)


def test_what_cannot_be_turned_is_refused():
    with pytest.raises(UserError, match="rotary positions 'x': choose vjepa2, vjepa2_1, dinov3, pe"):
        RotaryTable("x", GRID, DIM, PATCH)
    for dim in (4, 7):
        with pytest.raises(UserError, match=rf"heads of {dim} channels are too narrow; set MODEL\.NUM_HEADS"):
            RotaryTable("vjepa2", GRID, dim, PATCH)
