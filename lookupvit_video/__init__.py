"""LookupViT for video: train, test and use an efficient two-stream video transformer."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lookupvit_video.inference.predictor import Prediction, Predictor, load_model

__all__ = ["Prediction", "Predictor", "load_model"]


def __getattr__(name: str) -> Any:
    # On first use only: the data scripts should not wait for torch to be imported.
    if name not in __all__:
        raise AttributeError(f"module {__name__} has no attribute {name}")
    from lookupvit_video.inference import predictor

    return getattr(predictor, name)
