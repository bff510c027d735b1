"""What all pre-training without labels has: an encoder, whose weights are the result. B batch, D width."""

from collections.abc import Mapping, Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from lookupvit_video.models.contract import Features, VideoModel
from lookupvit_video.models.lookupvit import LookupViT
from lookupvit_video.models.vit import ViT

_ENCODER = "encoder."


class Pretext(VideoModel):
    """A model, and what it is trained with until there are labels.

    Args:
        encoder: a LookupViT or a dense ViT, with a joint encoder and without a class token. Its heads do not train.
    """

    def __init__(self, encoder: LookupViT | ViT):
        super().__init__()
        self.encoder = encoder
        for head in encoder.classifiers():
            head.requires_grad_(False)

    @property
    def parts(self) -> Sequence[nn.Module]:
        """The modules with blocks."""
        return (self.encoder,)


def mean_tokens(features: Features) -> list[Tensor]:
    """Return the mean (B, D) of each token set, compressed tokens first; tokens are normalized, without weights."""
    sets = [tokens for tokens in (features.compressed, features.tokens) if tokens is not None]
    return [F.layer_norm(tokens.float(), tokens.shape[-1:]).mean(1) for tokens in sets]


def encoder_weights(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights that a ``Pretext`` has trained of its encoder, under their own names; of others, all."""
    own = {name.removeprefix(_ENCODER): value for name, value in weights.items() if name.startswith(_ENCODER)}
    return {name: value for name, value in own.items() if not name.startswith("head")} or dict(weights)
