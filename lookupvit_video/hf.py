"""Let transformers' own calls load saved models.

    import lookupvit_video.hf
    from transformers import pipeline

    print(pipeline("video-classification", model="my-model")("video.mp4"))

``my-model`` is a folder of ``Predictor.save_pretrained`` (or an id of the Hub). No code in it is executed: the classes
are this package's. Where the package is not installed, ``trust_remote_code=True`` takes the copies in the folder.
"""

from transformers import AutoConfig, AutoModelForVideoClassification, AutoVideoProcessor

from lookupvit_video.inference.huggingface.modeling import LookupViTVideoConfig, LookupViTVideoForVideoClassification
from lookupvit_video.inference.huggingface.video_processing import LookupViTVideoProcessor

__all__ = ["LookupViTVideoConfig", "LookupViTVideoForVideoClassification", "LookupViTVideoProcessor"]
AutoConfig.register(LookupViTVideoConfig.model_type, LookupViTVideoConfig)
AutoModelForVideoClassification.register(LookupViTVideoConfig, LookupViTVideoForVideoClassification)
AutoVideoProcessor.register(LookupViTVideoConfig, LookupViTVideoProcessor)
