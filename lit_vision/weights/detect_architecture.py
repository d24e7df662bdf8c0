"""Infer the timm architecture of weights: from the shapes of ViTs, ResNets and mobile networks, or a config.json."""

import math
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

from timm.models import is_model

from lit_vision.data.views.image_size import ImageSize, plain_size
from lit_vision.weights.compatibility import EFFICIENTNET_LITE, MOBILENET
from lit_vision.weights.mobile_key_maps import detect_mobile

# (width, depth): timm's name of the size and its heads, which no tensor shows
VITS = {(192, 12): ("tiny", 3), (384, 12): ("small", 6), (768, 12): ("base", 12), (1024, 24): ("large", 16)}
VITS[1280, 32] = ("huge", 16)
DINOV2S = {(384, 12): ("small", 6), (768, 12): ("base", 12), (1024, 24): ("large", 16), (1536, 40): ("giant", 24)}
CLIPS = {(256, 10): ("xsmall", 4), (512, 12): ("medium", 8), (640, 12): ("betwixt", 10), (768, 12): ("base", 12)}
CLIPS |= {(1024, 24): ("large", 16), (1280, 32): ("huge", 16), (1408, 40): ("giant", 16), (1664, 48): ("gigantic", 16)}
_NORMS = ("patch_embed.proj.bias", "blocks.0.norm1.weight", "blocks.0.norm2.weight")  # others of the same width
# (block, layers): ResNets by what their shapes show
RESNETS: dict[tuple[str, tuple[int, ...]], str] = {
    ("basic", (2, 2, 2, 2)): "resnet18",
    ("basic", (3, 4, 6, 3)): "resnet34",
    ("bottleneck", (3, 4, 6, 3)): "resnet50",
    ("bottleneck", (3, 4, 23, 3)): "resnet101",
    ("bottleneck", (3, 8, 36, 3)): "resnet152",
}


def detect_architecture(
    state: Mapping[str, Any],
    config: Mapping[str, Any],
    name: str | None = None,
    backbone_args: Mapping[str, Any] | None = None,
    img_size: ImageSize | None = None,
    layout: str = "",
) -> tuple[str | None, dict[str, Any]]:
    """Return timm's name and Backbone's arguments, from the user's values, a config.json and the shapes, in this order.

    Args:
        state: tensors in the common form (checkpoint_layouts.py).
        config: of timm's or transformers' folders; {} without one.
        name: timm's name, if the user gives it.
        backbone_args: Backbone's arguments that the user gives.
        img_size: pixels, if another size than that of the position embeddings or of the name is wanted.
        layout: of the file; decides what no shape shows.

    Returns:
        The name, None if it cannot be inferred, and the arguments.
    """
    arguments: dict[str, Any] = {}
    name = name or config.get("architecture")
    shapes = {key.removeprefix("backbone."): value.shape for key, value in state.items() if key.startswith("backbone.")}
    if name is None and any(key.startswith("layer1.") for key in shapes):
        name, arguments = _detect_resnet(shapes)
    if name is None and layout in (EFFICIENTNET_LITE, MOBILENET):
        name = detect_mobile(shapes, layout == EFFICIENTNET_LITE)
    parts = sum(key in shapes for key in ("cls_token", "pos_embed", "patch_embed.proj.weight"))
    vit = parts == 3
    if vit or (name is None and parts == 2):  # loading then names the missing one in its table of keys
        vit_name, vit_args = _detect_vit(shapes, config.get("vision_config") or config)
        if name is not None:  # the name implies width, depth and heads
            vit_args = {key: value for key, value in vit_args.items() if key in ("img_size", "pool")}
        name, arguments = (name or vit_name), vit_args
    if isinstance(config.get("model_args"), dict):
        timm_args = {{"global_pool": "pool"}.get(key, key): value for key, value in config["model_args"].items()}
        if _fits_positions(timm_args.get("img_size"), shapes):
            arguments.pop("img_size", None)  # of a square with as many patches
        arguments = {**{key: value for key, value in timm_args.items() if key != "num_classes"}, **arguments}
    if not vit and (input_size := (config.get("pretrained_cfg") or {}).get("input_size")):
        arguments["img_size"] = plain_size(input_size[-2:])
    arguments |= backbone_args or {}
    if img_size is not None:
        arguments["img_size"] = img_size
    return name, arguments


def _fits_positions(img_size: Any, shapes: Mapping[str, Any]) -> bool:
    """True if an image size of timm's arguments is [height, width] and a ViT's positions are for it."""
    patch, positions = shapes.get("patch_embed.proj.weight", ()), shapes.get("pos_embed", ())
    if not isinstance(img_size, list | tuple) or len(img_size) != 2 or len(patch) != 4 or len(positions) != 3:
        return False
    patches = (img_size[0] // patch[2]) * (img_size[1] // patch[3])
    return bool(patches <= positions[1] <= patches + 1)


def _detect_vit(shapes: Mapping[str, Any], config: Mapping[str, Any]) -> tuple[str | None, dict[str, Any]]:
    """Return name and arguments of a ViT; the name is None where the number of heads cannot be known."""
    widths = Counter(shapes[key][-1] for key in ("cls_token", "pos_embed", *_NORMS) if len(shapes.get(key, ())))
    width = widths.most_common(1)[0][0]
    patch = shapes.get("patch_embed.proj.weight", (14,) if width == 1280 else (16,))[-1]
    family, sizes, usual_patch = _vit_family(shapes, config)
    blocks = {int(m[1]) for key in shapes if (m := re.match(r"blocks\.(\d+)\.", key))}
    # in a damaged file a block may be missing or have another name
    depth = len(blocks) if (width, len(blocks)) in sizes else 1 + max(blocks, default=-1)
    arguments: dict[str, Any] = {"pool": "avg" if any(key.startswith("fc_norm.") for key in shapes) else "token"}
    if len(shapes.get("pos_embed", ())) == 3:
        cls = "reg_token" not in shapes  # with registers, timm's models have positions of patches only
        arguments["img_size"] = round(max(0, shapes["pos_embed"][1] - cls) ** 0.5) * patch
    size, known_heads = sizes.get((width, depth), (None, None))
    heads = config.get("num_attention_heads", known_heads)
    name = family.format(size, patch)
    same_patch = sizes is not VITS or patch == 16 or (size, patch) == ("huge", 14)
    if size is not None and heads == known_heads and same_patch and is_model(name):
        return name, arguments
    if heads is None:
        return None, arguments
    arguments |= {"patch_size": patch, "embed_dim": width, "depth": depth, "num_heads": heads}
    return family.format("base", usual_patch), arguments


def _vit_family(
    shapes: Mapping[str, Any], config: Mapping[str, Any]
) -> tuple[str, dict[tuple[int, int], tuple[str, int]], int]:
    """Return timm's name with places for size and patch, the sizes, and a patch of the base size: CLIP, DINOv2, ViT."""
    if any(key.startswith("norm_pre.") for key in shapes):
        # a config.json of transformers leaves out what is its default
        act = config.get("hidden_act", "quick_gelu" if str(config.get("model_type", "")).startswith("clip") else "gelu")
        return f"vit_{{}}_patch{{}}_clip_{'quickgelu_' if act == 'quick_gelu' else ''}224", CLIPS, 16
    registers = "reg_token" in shapes
    rows = shapes["pos_embed"][1] if len(shapes.get("pos_embed", ())) == 3 else 0
    scaled = any(re.search(r"\.ls[12]\.", key) for key in shapes)
    if registers or (scaled and math.isqrt(rows) ** 2 != rows):  # DeiT III has no position for its cls token
        return f"vit_{{}}_patch{{}}_{'reg4_' if registers else ''}dinov2", DINOV2S, 14
    return "vit_{}_patch{}_224", VITS, 16


def _detect_resnet(shapes: Mapping[str, Any]) -> tuple[str | None, dict[str, Any]]:
    """Return name and arguments of a plain ResNet; the name is None for wider, grouped or deep-stemmed ones."""
    layers = tuple(len({m[1] for key in shapes if (m := re.match(rf"layer{i}\.(\d+)\.", key))}) for i in range(1, 5))
    block = "bottleneck" if any(re.match(r"layer1\.\d+\.conv3\.", key) for key in shapes) else "basic"
    stem, norm = shapes.get("conv1.weight", ()), shapes.get("bn1.weight", (64,))
    inner = Counter(tuple(shapes[key])[:2] for key in shapes if re.fullmatch(r"layer1\.\d+\.conv2\.weight", key))
    deep = any(re.match(r"conv1\.\d", key) for key in shapes)
    plain = bool(inner) and not deep and 64 in (*stem[:1], *norm) and inner.most_common(1)[0][0] == (64, 64)
    arguments = {"stem": "small"} if stem and stem[-1] == 3 else {}
    return (RESNETS.get((block, layers)) if plain else None), arguments
