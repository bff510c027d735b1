"""A saved model behind transformers' ``AutoConfig`` and ``AutoModelForVideoClassification``.

``Predictor.save_pretrained`` copies this file into the folder it writes, so ``trust_remote_code=True`` needs torch and
transformers only; ``import lookupvit_video.hf`` registers the same classes.
Shape letters: B batch, V views, T frames, C channels, H W pixels, K classes.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import ImageClassifierOutput

from lookupvit_video.models.adapters import add_adapters
from lookupvit_video.models.blocks import BlockOptions
from lookupvit_video.models.lookupvit import LookupViT
from lookupvit_video.models.vit import ViT

CLASSES = {"LookupViT": LookupViT, "ViT": ViT}


class LookupViTVideoConfig(PreTrainedConfig):
    """config.json of a saved model.

    Args:
        network: the class in ``CLASSES``, its arguments, those of its ``BlockOptions``, and its adapters.
        num_frames: T; transformers' pipeline passes it to the video processor.
        calibration_temperature: of the logits, as calibration found it, one number or one a class; empty: 1.
        lookupvit_video: all settings of the training, which ``lookupvit_video.load_model`` reads.
    """

    model_type = "lookupvit_video"

    def __init__(
        self,
        network: dict[str, Any] | None = None,
        num_frames: int = 16,
        calibration_temperature: list[float] | None = None,
        lookupvit_video: dict[str, Any] | None = None,
        **kwargs: Any,
    ):
        self.network, self.lookupvit_video = network or {}, lookupvit_video or {}
        self.num_frames, self.calibration_temperature = num_frames, calibration_temperature or []
        super().__init__(**kwargs)


def build_network(config: LookupViTVideoConfig) -> nn.Module:
    """Build the network that a config describes, with random weights, in eval mode.

    Raises:
        ValueError: the folder was saved without a description, or of a model that transformers' calls do not load.
    """
    found = config.network
    if found.get("class") not in CLASSES:
        raise ValueError(
            f"config.json describes no network of {', '.join(CLASSES)}: save the model again with "
            "Predictor.save_pretrained; other models load with lookupvit_video.load_model"
        )
    arguments = {name: _as_tuple(value) for name, value in found["arguments"].items()}
    options = BlockOptions(**{name: _as_tuple(value) for name, value in found["options"].items()})
    network: nn.Module = CLASSES[found["class"]](**arguments, num_classes=config.num_labels, options=options)
    for stage in found["adapted_stages"]:
        add_adapters(network.get_submodule(stage), *found["adapter"])
    return network.eval()


def _as_tuple(value: Any) -> Any:
    return tuple(map(_as_tuple, value)) if isinstance(value, list) else value


class LookupViTVideoForVideoClassification(PreTrainedModel):
    """LookupViT, or the dense ViT, with transformers' inputs and outputs."""

    config_class = LookupViTVideoConfig
    base_model_prefix = "network"  # weights are stored without it
    main_input_name = "pixel_values"
    input_modalities = "video"

    def __init__(self, config: LookupViTVideoConfig):
        super().__init__(config)
        self.network = build_network(config)
        self._new: list[nn.Module] = []  # not a part of this module; only while weights are loaded
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Fill what a file does not hold as a new network has it: buffers, and heads for other classes."""
        name = next((name for name, own in self.network.named_modules() if own is module), None)
        if name is None:
            return  # this class, which holds nothing itself
        if not self._new:
            with torch.device("cpu"):  # transformers builds on the meta device, without values
                self._new = [build_network(self.config)]
        new = self._new[0].get_submodule(name)
        for own, value in (
            *zip(module.parameters(recurse=False), new.parameters(recurse=False), strict=True),
            *zip(module.buffers(recurse=False), new.buffers(recurse=False), strict=True),
        ):
            if not getattr(own, "_is_hf_initialized", False):
                with torch.no_grad():
                    own.copy_(value)

    def save_pretrained(self, folder: Any, *, state_dict: dict[str, Tensor] | None = None, **kwargs: Any) -> None:
        """Save the weights under the names of ``lookupvit_video``, which reads the folder too."""
        state = self.state_dict() if state_dict is None else state_dict
        state = {name.removeprefix(f"{self.base_model_prefix}."): tensor for name, tensor in state.items()}
        super().save_pretrained(folder, state_dict=state, **kwargs)

    def forward(
        self, pixel_values: Tensor, labels: Tensor | None = None, return_dict: bool | None = None
    ) -> ImageClassifierOutput | tuple[Tensor, ...]:
        """Classify clips.

        Args:
            pixel_values: normalized, (B, T, C, H, W); or (B, V, T, C, H, W), whose probabilities are averaged.
            labels: (B,) classes, or (B, K) of 0 and 1 where ``config.problem_type`` is multi_label_classification;
                with views, each view learns them.

        Returns:
            logits (B, K) and, with labels, the loss: in training mode the mean over the heads.
        """
        multi_label = self.config.problem_type == "multi_label_classification"
        views = pixel_values.shape[1] if pixel_values.dim() == 6 else 1
        clips_BCTHW = pixel_values.flatten(0, pixel_values.dim() - 5).transpose(1, 2)
        self._new.clear()
        outputs = self.network(clips_BCTHW)
        heads = outputs if isinstance(outputs, tuple) else (outputs,)
        loss = None
        if labels is not None:
            losses = [_loss(logits, labels.repeat_interleave(views, 0), multi_label) for logits in heads]
            weights = self.network.output_weights if len(heads) > 1 else None
            loss = (torch.stack(losses) * torch.tensor(weights or [1 / len(heads)] * len(heads)).to(losses[0])).sum()
        logits_BK = torch.stack(heads).mean(0)
        if self.training:
            self.config.calibration_temperature = []  # it was of other weights
        elif self.config.calibration_temperature:
            logits_BK = logits_BK / logits_BK.new_tensor(self.config.calibration_temperature)
        if pixel_values.dim() == 6:
            logits_BK = _average(logits_BK.unflatten(0, (-1, views)), multi_label)
        if return_dict is False:
            return (logits_BK,) if loss is None else (loss, logits_BK)
        return ImageClassifierOutput(loss=loss, logits=logits_BK)


def _loss(logits_BK: Tensor, labels: Tensor, multi_label: bool) -> Tensor:
    if multi_label:
        return F.binary_cross_entropy_with_logits(logits_BK, labels.to(logits_BK.dtype))
    return F.cross_entropy(logits_BK, labels)


def _average(logits_BVK: Tensor, multi_label: bool) -> Tensor:
    """Return logits (B, K) whose probabilities are the mean of those of the views."""
    if multi_label:
        return logits_BVK.sigmoid().mean(1).logit()
    return logits_BVK.softmax(-1).mean(1).log()
