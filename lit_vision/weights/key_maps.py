"""Key maps from other projects to the common form (`backbone.<timm name>`, `decoder.*`, `head.*`).

A layout is here only if a test builds it with the other project's code and the outputs agree. A key that no rule knows
keeps its name, so that loading names it in the table of keys that do not fit.
"""

import re

from torch import Tensor

from lit_vision.errors import UserError
from lit_vision.weights.compatibility import (
    CLIP,
    DINOV2,
    EFFICIENTNET_LITE,
    LIGHTLY_MAE,
    LIGHTLY_SIMCLR,
    MOBILENET,
    TORCHVISION,
    TRANSFORMERS,
)
from lit_vision.weights.mobile_key_maps import (
    from_efficientnet_lite,
    from_torchvision_mobilenet,
    is_efficientnet_lite,
    is_torchvision_mobilenet,
)
from lit_vision.weights.vit_key_maps import from_clip, from_dinov2, is_clip, is_dinov2, join

State = dict[str, Tensor]

SUPPORTED = (
    "timm; torchvision's ResNet, DenseNet, MobileNetV2 and ViT; transformers' ViT-MAE, DINOv2 and CLIP (image tower); "
    "open_clip's ViTs; EfficientNet-Lite; lightly's SimCLR and MAE; facebookresearch/mae and dinov2"
)
IMAGENET_PIXELS = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # mean and std per channel in [0, 1]
PIXELS = {  # of layouts trained with others
    CLIP: ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    EFFICIENTNET_LITE: ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}

# (pattern that a key matches, project whose layout has not been tested here)
_UNSUPPORTED = (
    (r"(encoder_[qk]|base_encoder|momentum_encoder)\.", "MoCo"),
    (r"(student|teacher)\.", "DINO or another of teacher and student"),
    (r"backbone\.(bottom_up|simfp_\d+|fpn_\w+)\.|proposal_generator\.|roi_heads\.", "detectron2"),
    (r"backbone\.layers\.\d+\.(ln1|attn)\.|data_preprocessor\.", "mmpretrain"),
    (r"(projector|momentum_backbone)\.", "solo-learn"),
    (r"(visual|transformer\.resblocks)\.", "CLIP without a ViT as its image tower"),
    (r"net\.\d+\.|contrastive_head\.", "SimCLR's TensorFlow weights, converted"),
)

_TRANSFORMERS = (  # in this order; within a block, decoder and encoder use the same names
    (r"^vit\.", ""),
    (r"^decoder\.decoder_(?:layers|encoder\.layer)\.(\d+)\.", r"decoder.blocks.\1."),
    (r"^decoder\.decoder_(embed|norm|pred|pos_embed)", r"decoder.\1"),
    (r"^embeddings\.cls_token", "cls_token"),
    (r"^embeddings\.position_embeddings", "pos_embed"),
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^(?:encoder\.layer|layers)\.(\d+)\.", r"blocks.\1."),
    (r"^layernorm\.", "norm."),
)
_TRANSFORMERS_BLOCK = (
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.attention\.attention\.(query|key|value)\.", r".attn.\1."),
    (r"\.attention\.q_proj\.", ".attn.query."),
    (r"\.attention\.k_proj\.", ".attn.key."),
    (r"\.attention\.v_proj\.", ".attn.value."),
    (r"\.attention\.(?:output\.dense|o_proj)\.", ".attn.proj."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"\.output\.dense\.", ".mlp.fc2."),
)
_TORCHVISION = (
    (r"^class_token$", "cls_token"),
    (r"^encoder\.pos_embedding$", "pos_embed"),
    (r"^conv_proj\.", "patch_embed.proj."),
    (r"^encoder\.ln\.", "norm."),
    (r"^encoder\.layers\.encoder_layer_(\d+)\.", r"blocks.\1."),
    (r"\.ln_([12])\.", r".norm\1."),
    (r"\.self_attention\.in_proj_", ".attn.qkv."),
    (r"\.self_attention\.out_proj\.", ".attn.proj."),
    (r"\.mlp\.(?:0|linear_1)\.", ".mlp.fc1."),
    (r"\.mlp\.(?:3|linear_2)\.", ".mlp.fc2."),
    (r"^heads\.head\.", "head."),
)
# torchvision.resnet's children in order, for bodies saved as nn.Sequential(*list(resnet.children())[:-1])
_RESNET_CHILDREN = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"}


def convert_third_party_keys(state: State) -> tuple[State, str] | None:
    """Return the state in the common form and the name of its layout, or None if it is of none of these projects.

    Raises:
        UserError: a layout that is known and not supported yet.
    """
    # Any one of a project's names is enough: a file that lacks some keys is still its file, and loading names them.
    if is_dinov2(state):
        return from_dinov2(state), DINOV2
    if is_clip(state):
        return from_clip(state), CLIP
    if is_efficientnet_lite(state):
        return from_efficientnet_lite(state), EFFICIENTNET_LITE
    if is_torchvision_mobilenet(state):
        return from_torchvision_mobilenet(state), MOBILENET
    if any(re.search(r"(^|\.)embeddings\.(cls_token$|position_embeddings$|patch_embeddings\.)", key) for key in state):
        return _from_transformers(state), TRANSFORMERS
    if any(re.match(r"class_token$|conv_proj\.|encoder\.layers\.encoder_layer_\d", key) for key in state):
        return _rename(state, _TORCHVISION), TORCHVISION
    if any(key.startswith("backbone.vit.") for key in state):
        return _from_lightly_mae(state), LIGHTLY_MAE
    if any(key.startswith("projection_head.layers.") for key in state):
        return _from_lightly_simclr(state), LIGHTLY_SIMCLR
    for pattern, project in _UNSUPPORTED:
        if found := next((key for key in state if re.match(pattern, key)), None):
            raise UserError(
                f"the layout of {project} ({found}) is not supported yet; supported: {SUPPORTED}. "
                "Rename the encoder's keys as timm's, or take a module whose keys are: lit-vision import --state NAME "
                "--backbone_only"
            )
    return None


def _rename(state: State, rules: tuple[tuple[str, str], ...], block_rules: tuple[tuple[str, str], ...] = ()) -> State:
    """Apply the rules to each key, `block_rules` to keys of blocks only; then prefix encoder keys with `backbone.`."""
    out = {}
    for key, value in state.items():
        name = key
        for pattern, new in rules:
            name = re.sub(pattern, new, name)
        if "blocks." in name:
            for pattern, new in block_rules:
                name = re.sub(pattern, new, name)
        out[name if name.startswith(("decoder.", "head.")) else f"backbone.{name}"] = value
    return out


def _from_transformers(state: State) -> State:
    """Convert ViTMAEForPreTraining or ViTMAEModel; names in memory, in newer and in the Hub's files differ."""
    named = _rename(state, _TRANSFORMERS, _TRANSFORMERS_BLOCK)
    return join(named, ".attn.", ("query", "key", "value"), "qkv")


def _from_lightly_mae(state: State) -> State:
    """Convert lightly's MAE: `backbone` is a MaskedVisionTransformerTIMM, `decoder` a MAEDecoderTIMM.

    Keys of another decoder stay as they are; loading drops them where the target has no decoder.
    """
    out = {}
    for key, value in state.items():
        if key.startswith("backbone.vit."):
            key = f"backbone.{key.removeprefix('backbone.vit.')}"
        elif key.startswith("decoder.decoder_"):
            key = f"decoder.{key.removeprefix('decoder.decoder_')}"
        out[key] = value
    return out


def _from_lightly_simclr(state: State) -> State:
    """Convert lightly's SimCLR: `backbone` is a torchvision ResNet (fc Identity) or the Sequential of its children."""
    out = {}
    for key, value in state.items():
        if match := re.match(r"backbone\.([014567])\.", key):
            key = f"backbone.{_RESNET_CHILDREN[match[1]]}.{key[len(match[0]) :]}"
        elif key.startswith("projection_head."):
            key = f"projection.{key.removeprefix('projection_head.')}"
        out[key] = value
    return out
