"""Key maps of DINOv2 and of CLIP's image tower, ViTs both, to timm's names.

DINOv2: transformers' Dinov2Model and Dinov2WithRegistersModel, and the files of facebookresearch/dinov2 (Apache-2.0).
With registers, timm's model has no position for the cls token, so cls and its position are added up.
CLIP: transformers' CLIPVisionModel, alone or in a CLIPModel, and OpenAI's and open_clip's names (`visual.*`). The
projection to the space of texts and the text tower are left out: features are the cls token's after the last norm.
"""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

State = dict[str, Tensor]
Rules = tuple[tuple[str, str], ...]

_DINOV2: Rules = (  # in this order
    (r"^dinov2(?:_with_registers)?\.", ""),
    (r"^embeddings\.", ""),
    (r"^position_embeddings$", "pos_embed"),
    (r"^register_tokens$", "reg_token"),
    (r"^patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^encoder\.layer\.(\d+)\.", r"blocks.\1."),
    (r"^layernorm\.", "norm."),
    (r"\.attention\.attention\.(query|key|value)\.", r".attn.\1."),
    (r"\.attention\.q_proj\.", ".attn.query."),
    (r"\.attention\.k_proj\.", ".attn.key."),
    (r"\.attention\.v_proj\.", ".attn.value."),
    (r"\.attention\.(?:output\.dense|o_proj)\.", ".attn.proj."),
    (r"\.layer_scale([12])\.lambda1$", r".ls\1.gamma"),
    (r"\.mlp\.(?:weights_in|w12)\.", ".mlp.fc1."),
    (r"\.mlp\.(?:weights_out|w3|down_proj)\.", ".mlp.fc2."),
)
_CLIP_TRANSFORMERS: Rules = (
    (r"^vision_model\.", ""),
    (r"^embeddings\.class_embedding$", "cls_token"),
    (r"^embeddings\.position_embedding\.weight$", "pos_embed"),
    (r"^embeddings\.patch_embedding\.", "patch_embed.proj."),
    (r"^encoder\.layers\.(\d+)\.", r"blocks.\1."),
    (r"^pre_layrnorm\.", "norm_pre."),  # sic
    (r"^post_layernorm\.", "norm."),
    (r"\.layer_norm([12])\.", r".norm\1."),
    (r"\.self_attn\.q_proj\.", ".attn.query."),
    (r"\.self_attn\.k_proj\.", ".attn.key."),
    (r"\.self_attn\.v_proj\.", ".attn.value."),
    (r"\.self_attn\.out_proj\.", ".attn.proj."),
)
_CLIP_OPENAI: Rules = (
    (r"^visual\.", ""),
    (r"^class_embedding$", "cls_token"),
    (r"^positional_embedding$", "pos_embed"),
    (r"^conv1\.", "patch_embed.proj."),
    (r"^transformer\.resblocks\.(\d+)\.", r"blocks.\1."),
    (r"^ln_pre\.", "norm_pre."),
    (r"^ln_post\.", "norm."),
    (r"\.ln_([12])\.", r".norm\1."),
    (r"\.attn\.in_proj_", ".attn.qkv."),
    (r"\.attn\.out_proj\.", ".attn.proj."),
    (r"\.mlp\.c_fc\.", ".mlp.fc1."),
    (r"\.mlp\.c_proj\.", ".mlp.fc2."),
)
# keys, in the common form, that belong to the match of images and texts
CLIP_UNUSED = ("backbone.visual_projection.weight", "backbone.proj", "backbone.position_ids", "text.*")
DINOV2_UNUSED = ("backbone.mask_token", "backbone.classifier.*")  # its classifier reads cls and the mean of patches
_TEXT = r"text_model\.|text_projection|logit_(scale|bias)|token_embedding\.|ln_final\.|attn_mask$"


def is_dinov2(state: Mapping[str, Tensor]) -> bool:
    """True for keys of DINOv2: of transformers, or of its authors, whose files have a mask token or registers."""
    if any(re.search(r"\.layer_scale[12]\.lambda1$|embeddings\.register_tokens$", key) for key in state):
        return True
    scaled = any(re.match(r"blocks\.\d+\.ls[12]\.gamma$", key) for key in state)
    return scaled and ("mask_token" in state or "register_tokens" in state)


def is_clip(state: Mapping[str, Tensor]) -> bool:
    """True for keys of CLIP whose image tower is a ViT."""
    return _is_clip_of_transformers(state) or any(
        re.match(r"visual\.(transformer\.resblocks\.|class_embedding$|ln_pre\.)|class_embedding$", key) for key in state
    )


def _is_clip_of_transformers(state: Mapping[str, Tensor]) -> bool:
    pattern = r"(vision_model\.)?(embeddings\.(class_embedding$|p\w+_embedding\.)|pre_layrnorm\.|post_layernorm\.)"
    return any(re.match(pattern, key) for key in state)


def from_dinov2(state: State) -> State:
    """Return DINOv2's tensors in the common form."""
    named = {_apply(_DINOV2, key): value for key, value in state.items()}
    named = join(join(named, ".attn.", ("query", "key", "value"), "qkv"), ".mlp.", ("gate_proj", "up_proj"), "fc1")
    cls, position = named.get("cls_token"), named.get("pos_embed")
    registers = any(key.endswith("register_tokens") for key in state)
    if registers and cls is not None and position is not None and position.ndim == 3 and cls.ndim == 3:
        if cls.shape[-1] == position.shape[-1]:  # otherwise loading names the one of another shape
            named["cls_token"] = cls + position[:, :1]
        named["pos_embed"] = position[:, 1:]
    return {f"backbone.{key}": value for key, value in named.items()}


def from_clip(state: State) -> State:
    """Return the tensors of CLIP's image tower in the common form; those of texts begin with `text.`."""
    rules = _CLIP_TRANSFORMERS if _is_clip_of_transformers(state) else _CLIP_OPENAI
    tower = "visual." if any(key.startswith("visual.") for key in state) else ""
    out: State = {}
    for key, value in state.items():
        if re.match(_TEXT, key) or not key.startswith(tower):
            out[f"text.{key}"] = value
            continue
        name = _apply(rules, key)
        if name == "cls_token" and value.ndim == 1:
            value = value[None, None]  # (D,) -> (1, 1, D)
        elif name == "pos_embed" and value.ndim == 2:
            value = value[None]  # (1 + L, D) -> (1, 1 + L, D)
        out[f"backbone.{name.removeprefix('embeddings.')}"] = value
    return join(out, ".attn.", ("query", "key", "value"), "qkv")


def join(state: State, module: str, parts: tuple[str, ...], joined: str) -> State:
    """Return the state with the tensors of `parts` stacked in this order under one name.

    Where one of them is missing or has another shape they keep their names, so that loading names what is there.

    Args:
        state: tensors by name.
        module: part of a name before theirs, such as ".attn.".
        parts: names of the modules, such as ("query", "key", "value").
        joined: name of the module that takes their place, such as "qkv".
    """
    out: State = {}
    for key, value in state.items():
        found = next((part for part in parts if f"{module}{part}." in key), None)
        keys = [key.replace(f"{module}{found}.", f"{module}{part}.") for part in parts] if found else []
        if found is None or not all(name in state and state[name].shape == value.shape for name in keys):
            out[key] = value
        elif found == parts[0]:
            out[key.replace(f"{module}{found}.", f"{module}{joined}.")] = torch.cat([state[name] for name in keys])
    return out


def _apply(rules: Rules, key: str) -> str:
    for pattern, new in rules:
        key = re.sub(pattern, new, key)
    return key
