"""DeepLab: one dilated trunk, and for each task a head of four atrous branches whose outputs are summed.

The heads and `deeplab-resnet34` follow the network of the DiSparse paper (section 4.1) to the weight:
67,581,120 prunable weights for NYU-v2 with 40 classes and normals.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from mtlprune_bench import Model, Register, UsageError, hookimpl


def setting(default: Any, help: str) -> Any:
    """Return a field with its help text."""
    return field(default=default, metadata={"help": help})


@dataclass(frozen=True)
class DeepLab:
    """What can be chosen of a DeepLab network."""

    width: int = setting(128, "channels inside the heads")
    trunk_width: float = setting(1.0, "factor on the channels of a ResNet trunk, in (0, 1]")
    rates: tuple[int, ...] = setting((6, 12, 18, 24), "dilation of each branch of a head")
    dropout: float = setting(0.5, "probability of dropping a channel value inside the heads")
    output_stride: int = setting(16, "pixels of the image a cell of the predictions stands for")
    ceil_pool: bool = setting(False, "round sizes up in the trunk's pooling: 480x640 gives 61x81, not 60x80")
    normal_init: float = setting(
        0.0, "standard deviation of the trunk's initial weights; 0: the backbone's own initialisation"
    )


class Branch(nn.Sequential):
    """One atrous branch of a head: [B, in, h, w] to [B, out, h, w]."""

    def __init__(self, channels: int, outputs: int, rate: int, settings: DeepLab) -> None:
        super().__init__(
            nn.Conv2d(channels, settings.width, 3, padding=rate, dilation=rate),
            nn.ReLU(inplace=True),
            nn.Dropout(settings.dropout),
            nn.Conv2d(settings.width, settings.width, 1),
            nn.ReLU(inplace=True),
            nn.Dropout(settings.dropout),
            nn.Conv2d(settings.width, outputs, 1),
        )


class Head(nn.ModuleList):
    """The head of one task: the sum of its branches."""

    def __init__(self, channels: int, outputs: int, settings: DeepLab) -> None:
        super().__init__(Branch(channels, outputs, rate, settings) for rate in settings.rates)

    def forward(self, features: Tensor) -> Tensor:
        """Map features [B, in, h, w] to a prediction [B, out, h, w]."""
        return torch.stack([branch(features) for branch in self]).sum(0)


class Network(nn.Module):
    """A trunk and one head a task: images [B, 3, H, W] to a prediction [B, C, h, w] for each."""

    def __init__(self, trunk: nn.Module, width: int, outputs: Mapping[str, int], settings: DeepLab) -> None:
        super().__init__()
        self.trunk = trunk
        self.heads = nn.ModuleDict({task: Head(width, count, settings) for task, count in outputs.items()})

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Return each task's prediction."""
        features = self.trunk(images)[-1]
        return {task: head(features) for task, head in self.heads.items()}


def build(channels: Mapping[str, int], settings: DeepLab, backbone: str) -> Network:
    """Return the network on a timm backbone, untrained. Raises UsageError where timm cannot make it."""
    import timm  # takes seconds to import, and only this needs it

    last = _last_stage(backbone)
    try:
        trunk = timm.create_model(
            backbone,
            pretrained=False,
            features_only=True,
            out_indices=(last,),
            output_stride=settings.output_stride,
            **narrow_resnet(backbone, settings.trunk_width),
        )
    except (RuntimeError, TypeError, AssertionError, NotImplementedError, AttributeError) as error:
        raise UsageError(
            f"timm cannot give backbone '{backbone}' an output stride of {settings.output_stride}: {error}. "
            "Try --set model.output_stride=32, or another backbone."
        ) from error
    _restore_residual_branches(trunk)
    if settings.ceil_pool:
        for layer in trunk.modules():
            if isinstance(layer, nn.MaxPool2d):
                layer.ceil_mode = True
    if settings.normal_init:
        for layer in trunk.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.normal_(layer.weight, std=settings.normal_init)
    features: Any = trunk.feature_info
    return Network(trunk, features.channels()[-1], channels, settings)


def _restore_residual_branches(trunk: nn.Module) -> None:
    """Set to one the batch-norm scales that timm sets to zero at the end of residual branches.

    With zeros no gradient reaches the convolutions before them, so that methods that score untrained weights
    would see nothing of most of the trunk. The released DiSparse code has ones.
    """
    for layer in trunk.modules():
        if isinstance(layer, nn.BatchNorm2d) and not layer.weight.is_meta and not layer.weight.any():
            nn.init.ones_(layer.weight)


def narrow_resnet(backbone: str, factor: float) -> dict[str, Any]:
    """Return timm's arguments for a ResNet with `factor` of the channels. Raises UsageError for another trunk."""
    if factor == 1:
        return {}
    if not backbone.startswith("resnet"):
        raise UsageError(f"Only ResNet trunks can be made narrower, and '{backbone}' is none.")
    return {"channels": tuple(max(1, round(count * factor)) for count in (64, 128, 256, 512))}


def scaled(settings: DeepLab, factor: float) -> DeepLab:
    """Return the settings of a network with `factor` of the channels in trunk and heads."""
    trunk_width = settings.trunk_width * factor
    return replace(settings, width=max(1, round(settings.width * factor)), trunk_width=trunk_width)


def _last_stage(backbone: str) -> int:
    """Return the index of a backbone's last feature map. Raises UsageError for a name timm does not know."""
    import timm

    if not timm.is_model(backbone.split(".")[0]):
        near = difflib.get_close_matches(backbone, timm.list_models(), n=3)
        hint = f" Did you mean {' or '.join(near)}?" if near else ""
        raise UsageError(f"timm has no backbone '{backbone}'.{hint} timm.list_models() lists them all.")
    try:
        features: Any = timm.create_model(backbone, pretrained=False, features_only=True).feature_info
        return len(features) - 1
    except (RuntimeError, TypeError, AssertionError, AttributeError) as error:
        raise UsageError(f"timm backbone '{backbone}' gives no feature maps: {error}.") from error


@hookimpl
def register_models(register: Register) -> None:
    """Register the networks."""
    register(
        Model(
            name="deeplab-resnet34",
            description="dilated ResNet-34 and 1024-channel heads, the network of the DiSparse paper",
            # Rates 6 to 24 as in DeepLab-v2; initialisation and rounding as in the released DiSparse code.
            settings=DeepLab(width=1024, output_stride=8, ceil_pool=True, normal_init=0.01),
            build=lambda channels, settings, argument: build(channels, settings, "resnet34"),
            scaled=scaled,
        )
    )
    register(
        Model(
            name="deeplab-small",
            description="ResNet-10 and 64-channel heads, for small images on a CPU",
            settings=DeepLab(width=64, rates=(1, 2, 4, 6), output_stride=8),
            build=lambda channels, settings, argument: build(channels, settings, "resnet10t"),
            scaled=scaled,
        )
    )
    register(
        Model(
            name="timm",
            description="any timm backbone that gives feature maps, with the same heads",
            settings=DeepLab(),
            build=build,
            scaled=scaled,
            takes="a timm backbone, such as resnet18",
        )
    )
