"""Convert an MAE to transformers' ViTMAEForPreTraining."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lit_vision.convert.to_hub import license_lines
from lit_vision.errors import UserError
from lit_vision.io.atomic import atomic_write

if TYPE_CHECKING:
    from torch import Tensor

    from lit_vision.methods.mae.network import MAENetwork

# this project's names of an MAE: those in the Hub's files; q, k and v are one matrix here and three there
_TO_TRANSFORMERS = (
    (r"^backbone\.model\.(cls_token)$", r"vit.embeddings.\1"),
    (r"^backbone\.model\.pos_embed$", "vit.embeddings.position_embeddings"),
    (r"^backbone\.model\.patch_embed\.proj\.", "vit.embeddings.patch_embeddings.projection."),
    (r"^backbone\.model\.blocks\.", "vit.encoder.layer."),
    (r"^backbone\.model\.norm\.", "vit.layernorm."),
    (r"^decoder\.blocks\.", "decoder.decoder_layers."),
    (r"^decoder\.(embed|norm|pred|pos_embed)", r"decoder.decoder_\1"),
    (r"\.norm1\.", ".layernorm_before."),
    (r"\.norm2\.", ".layernorm_after."),
    (r"\.attn\.qkv\.", ".attention.attention.qkv."),
    (r"\.attn\.proj\.", ".attention.output.dense."),
    (r"\.mlp\.fc1\.", ".intermediate.dense."),
    (r"\.mlp\.fc2\.", ".output.dense."),
)


def load_mae(path: Path) -> tuple[MAENetwork, dict[str, str]]:
    """Load an MAE from a run's checkpoint or an imported file.

    Returns:
        The MAE, and {"license", "source"} of the weights, "" if not stated.

    Raises:
        UserError: the file is of another method.
    """
    import torch

    from lit_vision.methods.mae.network import MAENetwork
    from lit_vision.weights.checkpoint_layouts import read_file
    from lit_vision.weights.load import load_into

    state, metadata = read_file(path)
    hyper = json.loads(metadata["hyper_parameters"]) if "hyper_parameters" in metadata else None
    if hyper is None and path.suffix.lower() != ".safetensors":
        hyper = torch.load(path, map_location="cpu", weights_only=True).get("hyper_parameters")
    if hyper is None or "decoder.mask_token" not in state:
        raise UserError(f"--format transformers: is for MAE only, and {path} is another model; use timm or hub")
    mae = MAENetwork({**hyper, "backbone_args": {**(hyper.get("backbone_args") or {}), "pretrained": False}})
    load_into(mae, path)
    return mae.eval(), {name: metadata.get(name, "") for name in ("license", "source")}


def transformers_state(mae: MAENetwork) -> dict[str, Tensor]:
    """Return the tensors of an MAE under the names of ViTMAEForPreTraining in the Hub's files."""
    out = {}
    for key, value in mae.state_dict().items():
        if key in ("mean", "std"):
            continue
        for pattern, new in _TO_TRANSFORMERS:
            key = re.sub(pattern, new, key)
        if ".qkv." in key:
            for name, third in zip(("query", "key", "value"), value.detach().chunk(3)):
                out[key.replace(".qkv.", f".{name}.")] = third.contiguous()
        else:
            out[key] = value.detach().contiguous()
    return out


def transformers_config(mae: MAENetwork) -> dict[str, Any]:
    """Return config.json of transformers' ViTMAEForPreTraining.

    layer_norm_eps is 1e-6 as in the official MAE code (transformers' default is 1e-12).
    """
    vit, h = mae.backbone.model, mae.hparams
    return {
        "architectures": ["ViTMAEForPreTraining"],
        "model_type": "vit_mae",
        "hidden_size": mae.backbone.width,
        "num_hidden_layers": len(vit.blocks),
        "num_attention_heads": vit.blocks[0].attn.num_heads,
        "intermediate_size": vit.blocks[0].mlp.fc1.out_features,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "initializer_range": 0.02,
        "layer_norm_eps": 1e-6,
        "image_size": mae.grid[0] * mae.patch_size,
        "patch_size": mae.patch_size,
        "num_channels": mae.backbone.config["in_chans"],
        "qkv_bias": True,
        "decoder_hidden_size": h["decoder_width"],
        "decoder_num_hidden_layers": h["decoder_depth"],
        "decoder_num_attention_heads": h["decoder_heads"],
        "decoder_intermediate_size": 4 * h["decoder_width"],
        "mask_ratio": h["mask_ratio"],
        "norm_pix_loss": h["norm_pix_loss"],
        "dtype": "float32",
    }


def write_transformers(mae: MAENetwork, out: Path, license: str = "", source: str = "") -> str:
    """Write a folder for `ViTMAEForPreTraining.from_pretrained`.

    Files: config.json, preprocessor_config.json, model.safetensors, README.md.

    Args:
        mae: from `load_mae`.
        out: the folder.
        license, source: of the weights, for the file's metadata and the README.

    Returns:
        The call that loads it, and a note if transformers would mask another number of patches.

    Raises:
        UserError: a ViT that transformers' ViT-MAE cannot represent.
    """
    import torch

    from lit_vision.io.safetensors_file import save_tensors
    from lit_vision.weights.key_maps import convert_third_party_keys

    vit = mae.backbone.model
    if mae.grid[0] != mae.grid[1] or vit.no_embed_class or hasattr(vit.blocks[0].ls1, "gamma"):
        raise UserError(
            "--format transformers: its ViT-MAE is always square, with a position for cls and no layer scale; use timm"
        )
    state = transformers_state(mae)
    wanted = {
        key.replace("backbone.model.", "backbone."): v
        for key, v in mae.state_dict().items()
        if key not in ("mean", "std")
    }
    converted_back, _ = convert_third_party_keys(state) or ({}, "")
    if converted_back.keys() != wanted.keys() or not all(
        torch.equal(converted_back[key], value) for key, value in wanted.items()
    ):
        raise UserError("--format transformers: this ViT has parts that transformers' ViT-MAE does not have; use timm")
    config = transformers_config(mae)
    pixels = {"image_mean": [float(v) for v in mae.mean], "image_std": [float(v) for v in mae.std]}
    size = {"height": config["image_size"], "width": config["image_size"]}
    processor = {"image_processor_type": "ViTImageProcessor", "do_resize": True, "size": size, "resample": 3}
    processor |= {"do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True, **pixels}

    stated = {name: text for name, text in (("license", license), ("source", source)) if text}
    readme = [
        "---",
        *license_lines(license),
        "library_name: transformers",
        "tags:",
        "- vit_mae",
        "- lit-vision",
        "---",
        "",
    ]
    readme += [f"# {out.name}", "", f"ViT-MAE for pre-training, {config['image_size']} pixels."]
    readme += [f"License: {license or 'not stated'}. Source: {source or 'trained with lit_vision'}."]

    def write(folder: Path) -> None:
        folder.mkdir()
        save_tensors(state, folder / "model.safetensors", {"format": "pt", **stated})
        (folder / "README.md").write_text("\n".join(readme) + "\n", encoding="utf-8")
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        (folder / "preprocessor_config.json").write_text(json.dumps(processor, indent=2) + "\n")

    atomic_write(out, write)
    text = f"transformers.ViTMAEForPreTraining.from_pretrained({str(out)!r})"
    transformers_keep = int(mae.num_patches * (1 - config["mask_ratio"]))
    if transformers_keep != mae.num_keep:
        text += f"\nnote: transformers keeps {transformers_keep} patches at this mask_ratio, here {mae.num_keep}"
    return text
