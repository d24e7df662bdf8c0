"""Change the stems of CNNs: small ones for images of about 32 pixels, wide ones for wide ResNets.

Small: a ResNet with `stem_type: deep` keeps its three 3x3 convolutions, the first with stride 2, and loses only the
max-pool: with narrow channels it is 4 to 9 times faster than the plain small stem, whose 64 channels at full resolution
take most of the time.
"""

from typing import Any

from torch import nn

from lit_vision.errors import UserError

# First convolution, max-pool (both as module paths) and by how much the strides of the first map and of the others
# fall. VGG's convolutions are small already; what does not fit small images is its 7x7 fully connected part, which is
# left out.
SMALL_STEMS: dict[str, tuple[str | None, str | None, int, int]] = {
    "ResNet": ("conv1", "maxpool", 2, 4),
    "DenseNet": ("features.conv0", "features.pool0", 2, 4),
    "EfficientNet": ("conv_stem", None, 2, 2),  # timm's class of MobileNet v1, v2 and EfficientNet
    "MobileNetV3": ("conv_stem", None, 2, 2),
    "ConvNeXt": ("stem.0", None, 4, 4),
    "VGG": (None, None, 1, 1),
}


def make_stem_small(name: str, model: nn.Module, reductions: list[int]) -> list[int]:
    """Replace the stem of a timm CNN by one for small images, in place.

    Args:
        name: of the model, for messages.
        model: ResNet, VGG, DenseNet, MobileNet (v1 to v3), EfficientNet or ConvNeXt.
        reductions: strides of its feature maps before.

    Returns:
        The strides after.

    Raises:
        UserError: another family, or a stem of several convolutions that is no ResNet's.
    """
    kind = next((c.__name__ for c in type(model).__mro__ if c.__name__ in SMALL_STEMS), None)
    if kind is None:
        hint = (
            "use img_size and patch_size" if hasattr(model, "patch_embed") else "use stem='imagenet' on larger images"
        )
        raise UserError(f"stem: {name} has no small stem (ResNet, VGG, DenseNet, MobileNet, ConvNeXt have one); {hint}")
    conv_path, pool_path, first_factor, other_factor = SMALL_STEMS[kind]
    if kind == "VGG":
        model.pre_logits = nn.Identity()
        model.head_hidden_size = model.num_features
    if conv_path is not None:
        conv = model.get_submodule(conv_path)
        if kind == "ResNet" and isinstance(conv, nn.Sequential):  # a deep stem has 3x3 convolutions: only the pool goes
            model.set_submodule(pool_path, nn.Identity())
            return [r // (1 if i == 0 else 2) for i, r in enumerate(reductions)]
        overlap = kind == "ConvNeXt" and sum(isinstance(m, nn.Conv2d) for m in model.stem.modules()) > 1
        if overlap or not isinstance(conv, nn.Conv2d):
            raise UserError(f"stem: {name} begins with several convolutions; use the plain model of its family")
        small = nn.Conv2d(conv.in_channels, conv.out_channels, 3, stride=1, padding=1, bias=conv.bias is not None)
        nn.init.kaiming_normal_(small.weight, mode="fan_out", nonlinearity="relu")
        if small.bias is not None:
            nn.init.zeros_(small.bias)
        model.set_submodule(conv_path, small)
    if pool_path is not None:
        model.set_submodule(pool_path, nn.Identity())
    return [r // (first_factor if i == 0 else other_factor) for i, r in enumerate(reductions)]


def make_stem_wide(name: str, model: nn.Module) -> None:
    """Give a ResNet's stem as many channels as its first stage, in place.

    SimCLR's ResNet-50 (2x) and (4x) multiply every width. timm's `channels` widens the stages and leaves the stem at
    64. Changed are the first convolution with its norm and what reads them in the first block. Source: Chen et al.
    2020, arXiv:2002.05709, section 4.2; total with 1000 classes 98,004,072 (2x) and 383,571,176 (4x).

    Args:
        name: of the model, for messages.
        model: a timm ResNet whose first block has a projection (bottleneck blocks) and whose stem is one convolution.

    Raises:
        UserError: another model.
    """
    first: Any = model.layer1[0] if type(model).__name__ == "ResNet" else None
    has_projection = getattr(first, "downsample", None) is not None
    if not isinstance(getattr(model, "conv1", None), nn.Conv2d) or not has_projection:
        raise UserError(
            f"stem: {name} has no wide stem (ResNet-50 and deeper, without deep stem, have one); leave it out"
        )
    width = first.conv1.out_channels
    model.conv1 = _conv_like(model.conv1, model.conv1.in_channels, width)
    model.bn1 = type(model.bn1)(width)
    first.conv1 = _conv_like(first.conv1, width, first.conv1.out_channels)
    first.downsample[0] = _conv_like(first.downsample[0], width, first.downsample[0].out_channels)
    model.feature_info[0]["num_chs"] = width


def _conv_like(conv: nn.Conv2d, inner: int, outer: int) -> nn.Conv2d:
    """Return the same convolution with `inner` input and `outer` output channels, initialised as in timm's ResNet."""
    new = nn.Conv2d(inner, outer, conv.kernel_size, conv.stride, conv.padding, bias=False)
    nn.init.kaiming_normal_(new.weight, mode="fan_out", nonlinearity="relu")
    return new
