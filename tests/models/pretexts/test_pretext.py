"""What is left of a pre-training is its encoder; what all pretexts share."""

import pytest
import torch

from lookupvit_video.distributed.parallel import compile_blocks
from lookupvit_video.models.lookupvit import LookupViT
from lookupvit_video.models.pretexts.masked import MaskedModel
from lookupvit_video.models.pretexts.moving import MovingModel
from lookupvit_video.models.pretexts.pretext import Pretext, encoder_weights
from lookupvit_video.models.vit import ViT

SIZES = {"num_classes": 3, "num_frames": 4, "size": 32, "tubelet": (2, 8, 8), "dim": 24, "depth": 2, "num_heads": 3}


def test_the_encoders_weights_have_their_own_names():
    model = Pretext(LookupViT(**SIZES, compressed_grid=(1, 2, 2)))
    weights = encoder_weights(model.state_dict())
    assert weights.keys() == {name for name in model.encoder.state_dict() if not name.startswith("heads.")}
    assert encoder_weights(weights).keys() == weights.keys()


def test_heads_do_not_train():
    model = Pretext(LookupViT(**SIZES, compressed_grid=(1, 2, 2), exits=(1,)))
    still = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    heads = ("encoder.heads.", "encoder.exits.")
    assert still == {name for name, _ in model.named_parameters() if name.startswith(heads)}


PRETEXTS = {
    "masked LookupViT": lambda: MaskedModel(
        LookupViT(**SIZES, compressed_grid=(1, 2, 2)), ratio=0.75, width=32, depth=1
    ),
    "masked ViT": lambda: MaskedModel(ViT(**SIZES), ratio=0.75, width=32, depth=1),
    "moving LookupViT": lambda: MovingModel(LookupViT(**SIZES, compressed_grid=(1, 2, 2))),
}


@pytest.mark.parametrize("kind", PRETEXTS)
def test_compiled_blocks_have_the_same_gradients(kind):
    def make():
        torch.manual_seed(0)
        model = PRETEXTS[kind]()
        for parameter in model.decoder.parameters():  # the last layer is zero at first
            torch.nn.init.normal_(parameter, std=0.1)
        return model

    def gradients(model):
        torch.manual_seed(1)  # the masks
        predicted = model(clips)
        (predicted if kind.startswith("moving") else predicted.changes).square().mean().backward()
        return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}

    torch._dynamo.reset()
    clips, compiled = torch.randn(2, 3, 4, 32, 32), make()
    compile_blocks([block for part in compiled.parts for block in part.blocks], "aot_eager")
    expected, found = gradients(make()), gradients(compiled)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= len(compiled.parts)
    assert expected.keys() == found.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6, msg=name)
    torch._dynamo.reset()
