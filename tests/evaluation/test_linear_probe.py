"""A probe from cached features is the probe through the encoder, at every learning rate of the pass."""

import pytest
import torch
from torch.nn import functional as F

from lookupvit_video.data.dataset import Batch
from lookupvit_video.data.transforms import IGNORED, normalize
from lookupvit_video.errors import UserError
from lookupvit_video.evaluation.linear_probe import accuracies, cache_features, put_into, train_probes
from lookupvit_video.models.build import build_model
from tests.models.test_models import config

MEAN, STD = [0.4, 0.5, 0.6], [0.2, 0.3, 0.2]


def batches(count=3):
    generator = torch.Generator().manual_seed(0)
    for first in range(count):
        clips = torch.randint(0, 256, (4, 3, 4, 32, 32), dtype=torch.uint8, generator=generator)
        labels = torch.tensor([0, 1, 2, 3 if first else IGNORED])
        yield Batch(clips, labels, torch.arange(4), [])


def model_of(name):
    torch.manual_seed(0)
    model = build_model(config(name, "MODEL.FREEZE_ENCODER True"))
    for head in model.classifiers():  # as pretrained ones
        torch.nn.init.normal_(head.norm.weight, 1, 0.2)
        torch.nn.init.normal_(head.norm.bias, 0, 0.2)
    return model


@pytest.mark.parametrize("name", ["lookupvit", "average_norm", "vit class", "vit factorised"])
def test_it_is_the_probe_through_the_encoder(name):
    model = model_of(name)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    cache = cache_features(model, batches(), MEAN, STD)
    assert len(cache.labels_V) == 11  # one could not be read
    rates = [1e-3, 1e-2, 0.1]
    probes = train_probes(model, cache, rates, steps=12, batch=11)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())

    clips = torch.cat([batch.clips[batch.labels != IGNORED] for batch in batches()])
    inputs, labels = normalize(clips, MEAN, STD), cache.labels_V
    for number, rate in enumerate(rates):
        through = model_of(name).train()
        trains = {key: p for key, p in through.named_parameters() if p.requires_grad and key in before}
        if name == "vit factorised":  # the temporal stage is frozen too
            assert not any(key.startswith("temporal") for key in trains)
        optimizer = torch.optim.AdamW(trains.values(), rate, weight_decay=0)
        for _ in range(12):
            outputs = through(inputs)
            loss = sum(F.cross_entropy(part, labels) for part in outputs) / len(outputs)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        put_into(model, cache, probes, number)
        with torch.no_grad():
            torch.testing.assert_close(model.eval()(inputs), through.eval()(inputs), rtol=1e-4, atol=1e-4)
            right = (model(inputs).argmax(-1) == labels).float().mean().item()
        assert accuracies(probes, cache)[number] == pytest.approx(100 * right)
    alone = train_probes(model_of(name), cache, rates[1:2], steps=12, batch=11)
    torch.testing.assert_close(alone[0].weight_RKD[0], probes[0].weight_RKD[1])


def test_attentive_pooling_is_refused():
    with pytest.raises(UserError, match=r"needs MODEL\.POOL average, average_norm or class"):
        cache_features(model_of("attentive"), batches(), MEAN, STD)
