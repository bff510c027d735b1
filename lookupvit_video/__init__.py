"""LookupViT for video: train, test and use an efficient two-stream video transformer."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    __version__: str
    from lookupvit_video.config import load_config
    from lookupvit_video.inference.prediction import Prediction
    from lookupvit_video.inference.predictor import Predictor, load_model
    from lookupvit_video.inference.views import Failure
    from lookupvit_video.models.build import build_model, create_model
    from lookupvit_video.registry import list_models

__all__ = [
    "Failure", "Prediction", "Predictor", "__version__", "build_model", "create_model", "list_models", "load_config",
    "load_model",
]  # fmt: skip
_PLACES = {
    "config": ("load_config",),
    "inference.prediction": ("Prediction",),
    "inference.predictor": ("Predictor", "load_model"),
    "inference.views": ("Failure",),
    "models.build": ("build_model", "create_model"),
    "registry": ("list_models",),
}


def __getattr__(name: str) -> Any:
    # On first use only: --help and the data scripts need not wait for torch, or for reading the version.
    if name == "__version__":
        from importlib.metadata import PackageNotFoundError, version

        try:
            return version("lookupvit_video")
        except PackageNotFoundError:  # the sources alone, not installed
            return "0.1.0"
    for place, names in _PLACES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{place}"), name)
    raise AttributeError(f"module {__name__} has no attribute {name}")


def __dir__() -> list[str]:
    return __all__
