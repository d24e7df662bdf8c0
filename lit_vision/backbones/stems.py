"""Stems of CNNs for images of about 32 pixels.

A ResNet with `stem_type: deep` keeps its three 3x3 convolutions, the first with stride 2, and loses only the max-pool: with
narrow channels it is 4 to 9 times faster than the plain small stem, whose 64 channels at full resolution take most of the time.
"""

from torch import nn

from lit_vision.errors import UserError

# First convolution, max-pool (both as module paths) and by how much the strides of the first map and of the others fall.
# VGG's convolutions are small already; what does not fit small images is its 7x7 fully connected part, which is left out.
SMALL_STEMS: dict[str, tuple[str | None, str | None, int, int]] = {
    "ResNet": ("conv1", "maxpool", 2, 4),
    "DenseNet": ("features.conv0", "features.pool0", 2, 4),
    "EfficientNet": ("conv_stem", None, 2, 2),  # timm's class of MobileNet v1, v2 and EfficientNet
    "MobileNetV3": ("conv_stem", None, 2, 2),
    "ConvNeXt": ("stem.0", None, 4, 4),
    "VGG": (None, None, 1, 1),
}


def make_stem_small(name: str, model: nn.Module, reductions: list[int]) -> list[int]:
    """Changes the stem of a timm CNN in place.

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
        mend = (
            "use img_size and patch_size" if hasattr(model, "patch_embed") else "use stem='imagenet' on larger images"
        )
        raise UserError(f"stem: {name} has no small stem (ResNet, VGG, DenseNet, MobileNet, ConvNeXt have); {mend}")
    conv_path, pool_path, first, others = SMALL_STEMS[kind]
    if kind == "VGG":
        model.pre_logits = nn.Identity()
        model.head_hidden_size = model.num_features
    if conv_path is not None:
        conv = model.get_submodule(conv_path)
        if kind == "ResNet" and isinstance(
            conv, nn.Sequential
        ):  # a deep stem has 3x3 convolutions already: only the pool goes
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
    return [r // (first if i == 0 else others) for i, r in enumerate(reductions)]
