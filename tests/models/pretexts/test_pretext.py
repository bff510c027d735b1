"""What is left of a pre-training is its encoder."""

from lookupvit_video.models.lookupvit import LookupViT
from lookupvit_video.models.pretexts.pretext import Pretext, encoder_weights

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
