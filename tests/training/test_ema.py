"""The average of the weights in plain numbers."""

import contextlib

import torch
from torch import nn

from lookupvit_video.training.ema import Ema


def model_of(value):
    model = nn.Sequential(nn.Linear(2, 1), nn.BatchNorm1d(1), nn.Linear(1, 1))
    model[2].requires_grad_(False)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(value)
    return model


def fill(model, value):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(value)


def test_the_average_begins_as_the_weights_and_moves_by_one_minus_decay():
    model = model_of(2.0)
    ema = Ema(model, 0.9)
    with ema.in_place():
        assert model[0].weight.eq(2).all()
    fill(model, 12.0)
    ema.update()
    fill(model, 32.0)
    ema.update()
    with ema.in_place():  # 0.9 (0.9 * 2 + 0.1 * 12) + 0.1 * 32
        torch.testing.assert_close(model[0].weight.detach(), torch.full((1, 2), 5.9))
        torch.testing.assert_close(model[1].bias.detach(), torch.full((1,), 5.9))
        assert model[2].weight.eq(32).all()  # what is not trained is not averaged
    assert all(parameter.eq(32).all() for parameter in model.parameters())


def test_weights_and_averages_come_back_also_after_an_error():
    model = model_of(1.0)
    ema = Ema(model, 0.5)
    fill(model, 3.0)
    ema.update()
    for _ in range(2):
        with contextlib.suppress(KeyError), ema.in_place():
            assert model[0].weight.eq(2).all()
            raise KeyError
        assert model[0].weight.eq(3).all()


def test_what_is_loaded_inside_becomes_the_average():
    model = model_of(1.0)
    ema = Ema(model, 0.5)
    with ema.in_place():
        fill(model, 8.0)
    assert model[0].weight.eq(1).all()
    ema.update()
    with ema.in_place():
        assert model[0].weight.eq(4.5).all()
        assert model[0].weight.requires_grad


def test_buffers_are_not_averaged():
    model = model_of(1.0)
    ema = Ema(model, 0.5)
    model[1].running_mean.fill_(7.0)
    ema.update()
    with ema.in_place():
        assert model[1].running_mean.eq(7).all()
