"""The white-box attack stays in its tubelet and in range, and raises the loss; the temperature changes the gather."""

import pytest
import torch
from torch.nn import functional as F

from lookupvit_video.config import load_config
from lookupvit_video.data.dataset import Batch
from lookupvit_video.data.transforms import IGNORED, normalize
from lookupvit_video.evaluation.robustness.attack import Attack, adversarial, attack_clips
from lookupvit_video.evaluation.robustness.temperature import tempered
from lookupvit_video.models.attention import using_kernel
from lookupvit_video.models.build import build_model
from lookupvit_video.models.kernels import cpu
from tests.models.test_models import SMALL

MEAN, STD, TUBELET = [0.4, 0.5, 0.6], [0.2, 0.3, 0.2], (2, 8, 8)
OPTIONS = {"mean": MEAN, "std": STD, "tubelet": TUBELET}


def model_of(arch, **changes):
    cfg = load_config(None, [*SMALL, "MODEL.ARCH", arch, *(str(part) for pair in changes.items() for part in pair)])
    torch.manual_seed(0)
    model = build_model(cfg).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("linear.weight"):
            torch.nn.init.normal_(parameter)
    return model


def clips_of(count=3):
    return torch.randint(0, 256, (count, 3, 4, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("arch", ["lookupvit", "vit"])
@pytest.mark.parametrize("count", [1, 3])
def test_only_the_pixels_of_its_tubelets_change_and_they_stay_pixels(arch, count):
    model, clean = model_of(arch), normalize(clips_of(), MEAN, STD)
    labels = model(clean).argmax(-1).detach()
    attacked = adversarial(model, clean, labels, count=count, steps=4, **OPTIONS)
    changed = (attacked != clean).any(1).reshape(3, 2, 2, 4, 8, 4, 8).any(-1).any(4).any(2)
    assert changed.sum((1, 2, 3)).tolist() == [count] * 3
    pixels = attacked * torch.tensor(STD).view(1, -1, 1, 1, 1) + torch.tensor(MEAN).view(1, -1, 1, 1, 1)
    assert pixels.min() > -1e-5
    assert pixels.max() < 1 + 1e-5
    before, after = (F.cross_entropy(model(inputs), labels) for inputs in (clean, attacked))
    assert after > before
    assert all(parameter.grad is None for parameter in model.parameters())


def test_more_steps_fool_more_and_unread_clips_do_not_count():
    model, clips = model_of("lookupvit"), clips_of(4)
    labels = model(normalize(clips, MEAN, STD)).argmax(-1)
    labels[3] = IGNORED
    batch = Batch(clips, labels, torch.arange(4), [(3, "empty")])
    device = torch.device("cpu")
    found = attack_clips(model, [batch], device, count=16, steps=8, **OPTIONS)
    assert (found.clips, found.right) == (3, 3)
    assert found.fooled >= 1
    assert found.success == pytest.approx(100 * found.fooled / 3)
    assert attack_clips(model, [batch], device, count=1, steps=1, **OPTIONS).fooled <= found.fooled
    assert str(Attack(1, 0, 0).success) == "nan"


@pytest.mark.parametrize("kernel", ["eager", "fused"])
@pytest.mark.parametrize("reverse", ["softmax", "transpose"])
def test_a_temperature_spreads_the_gather_alone(kernel, reverse):
    model = model_of("lookupvit", **{"MODEL.REVERSE_WEIGHTS": reverse})
    inputs = normalize(clips_of(1), MEAN, STD)
    with torch.inference_mode(), using_kernel(model, kernel):
        plain = model.forward_features(inputs, return_attention=True)
        with tempered(model, 1.0):
            assert torch.equal(model(inputs), model.forward_head(plain))
        with tempered(model, 1e4):
            flat = model.forward_features(inputs, return_attention=True)
            cross = model.blocks[0].cross_attention
            _, lookup = cross.gather(torch.randn(1, 4, cross.query.in_features), plain.tokens)
        assert torch.equal(model(inputs), model.forward_head(plain))  # nothing is left behind
    uniform = torch.full_like(flat.attention[0], 1 / flat.attention[0].shape[-1])
    torch.testing.assert_close(flat.attention[0], uniform, rtol=1e-2, atol=1e-5)
    assert not torch.allclose(plain.attention[0], uniform, rtol=1e-2)
    assert lookup.queries.abs().max() < 1e-2


@pytest.mark.parametrize("enough", [cpu.ENOUGH, 0])  # 0: logits are shared by both directions on wide processors
def test_the_write_back_keeps_its_own_temperature(enough, monkeypatch):
    monkeypatch.setattr(cpu, "ENOUGH", enough)
    model = model_of("lookupvit")
    cross = model.blocks[0].cross_attention
    compressed, lookups = torch.randn(1, 4, cross.query.in_features), torch.randn(1, 32, cross.query.in_features)
    with torch.inference_mode():
        for kernel in ("eager", "fused"):
            with using_kernel(model, kernel):
                _, lookup = cross.gather(compressed, lookups)
                expected = cross.write_back(compressed, lookup)
                with tempered(model, 3.0):
                    _, lookup = cross.gather(compressed, lookups)
                    torch.testing.assert_close(cross.write_back(compressed, lookup), expected, rtol=1e-4, atol=1e-5)


def test_other_models_take_it_in_their_self_attention():
    model, inputs = model_of("vit"), normalize(clips_of(1), MEAN, STD)
    with torch.inference_mode():
        plain = model(inputs)
        with tempered(model, 5.0):
            assert not torch.equal(model(inputs), plain)
        assert torch.equal(model(inputs), plain)
