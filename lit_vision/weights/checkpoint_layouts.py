"""Which project a checkpoint is from, and its keys in one common form: `backbone.<timm name>`, `decoder.*`, `projection.*`, `head.*`.

Layouts: our checkpoints of MAE, SimCLR, Classifier, Backbone and Dense (Detector, Segmenter), timm's state dicts,
facebookresearch/mae's files (encoder, full, fine-tuned), and those of key_maps.py. Files are read with `weights_only=True` or as safetensors: nothing in them is executed.
"""

import argparse
import json
import os
import pickle
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lit_vision.errors import UserError
from lit_vision.weights.key_maps import convert_third_party_keys
from lit_vision.weights.model_metadata import current_keys

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
FB = "facebookresearch/mae"
SCRIPT = "script_arguments"  # in the metadata
_TRAINING_ARGS = {"norm_pix_loss": bool, "mask_ratio": float}


def read_file(path: str | os.PathLike) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata, outer dictionaries opened."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file; check the path of the checkpoint")
    if Path(f"{path}.sha256").is_file():
        from lit_vision.io.checkpoint_digest import is_valid

        if not is_valid(path):
            raise UserError(f"{path}: its bytes are not those that were written (see {path}.sha256); take another copy")
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, "pt") as file:
                metadata = current_keys(file.metadata())
                return {key: file.get_tensor(key) for key in file.keys()}, metadata  # noqa: SIM118
        except SafetensorError as error:
            raise UserError(f"{path}: no whole safetensors file ({error}); take another copy") from error
    try:
        # facebookresearch/mae's training script stores its argparse.Namespace, which is plain data
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        text = str(error)
        if "GLOBAL" in text or "Unsupported" in text:
            what = text.split("\n")[0].split("WeightsUnpickler error:")[-1].strip()[:120]
            raise UserError(
                f"{path}: holds more than tensors and plain data, which could run code and is not loaded ({what}); "
                "save its state dict as safetensors where you trust it"
            ) from error
        raise UserError(f"{path}: is not a checkpoint; give a file of torch.save or safetensors") from error
    except (RuntimeError, OSError, ValueError, KeyError, AttributeError, IndexError, EOFError) as error:
        raise UserError(f"{path}: is not a whole checkpoint; give a file of torch.save or safetensors") from error
    metadata: dict[str, str] = {}
    for outer in ("state_dict", "model", "model_state_dict"):
        if isinstance(content, dict) and isinstance(content.get(outer), dict):
            metadata = {"outer": outer, SCRIPT: _arguments(content.get("args"))}
            content = content[outer]
            break
    state = {}
    if isinstance(content, dict):
        state = {
            _strip_wrapper_prefixes(k): v for k, v in content.items() if isinstance(k, str) and isinstance(v, Tensor)
        }
    if not state:
        raise UserError(
            f"{path}: holds no tensors by name, or in a layout that is not supported yet; give a state dict or a checkpoint"
        )
    return state, metadata


def _arguments(arguments: object) -> str:
    """What a training script's argparse.Namespace says that no tensor shows, as JSON; `official_training_args` checks it."""
    given = vars(arguments) if isinstance(arguments, argparse.Namespace) else {}
    return json.dumps({name: given.get(name) for name in _TRAINING_ARGS}, default=str)


def official_training_args(metadata: dict[str, str]) -> dict[str, bool | float]:
    """`norm_pix_loss` and `mask_ratio` of an official MAE file, where the script's arguments are in it; {} elsewhere."""
    try:
        given = json.loads(metadata.get(SCRIPT, "{}"))
    except ValueError:  # of a safetensors file, anybody's words
        return {}
    known = given if isinstance(given, dict) else {}
    told = {name: known[name] for name, kind in _TRAINING_ARGS.items() if isinstance(known.get(name), kind)}
    return {name: value for name, value in told.items() if 0 <= value <= 1}  # not NaN


def _strip_wrapper_prefixes(key: str) -> str:
    """Without what DistributedDataParallel and torch.compile put in front."""
    return key.removeprefix("module.").replace("_orig_mod.", "")


def read_common(path: str | os.PathLike) -> tuple[dict[str, Tensor], str, dict[str, str]]:
    """A file's tensors in the common form, the name of its layout, and its metadata.

    Raises:
        UserError: as `read_file`; or a layout that is known and not supported yet.
    """
    state, metadata = read_file(path)
    try:
        return *to_common_keys(state, metadata), metadata
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def to_common_keys(state: dict[str, Tensor], metadata: dict[str, str]) -> tuple[dict[str, Tensor], str]:
    """The state in the common form, and the name of its layout; `mean` and `std` (3,) are in it where the layout implies them.

    Raises:
        UserError: a layout that is known and not supported yet.
    """
    if any(key.startswith("backbone.model.") for key in state):
        own = {common_key(key, "backbone."): value for key, value in state.items()}
        marks = {
            "decoder.": "MAE",
            "projection.": "SimCLR",
            "pyramid.": "Dense",
            "auxiliary.": "Dense",
            "head.": "Classifier",
        }
        layout = next((name for mark, name in marks.items() if any(k.startswith(mark) for k in own)), "Backbone")
        return own, layout
    if all(key.startswith("model.") for key in state):
        return {common_key(key, ""): value for key, value in state.items()}, "Backbone"
    if metadata.get("lit_vision") == "Backbone":
        own = {f"backbone.{key}": value for key, value in state.items()}
        return {**own, **{name: torch.tensor(json.loads(metadata[name])) for name in ("mean", "std")}}, "Backbone"

    def has(*starts: str) -> bool:
        return any(key.startswith(starts) for key in state)

    # by any key of the decoder: a full file that lacks one of its keys is not an encoder, and the table says what it lacks
    vit, wrapped = "cls_token" in state and "blocks.0.attn.qkv.weight" in state, metadata.get("outer") == "model"
    full = has("blocks.") and (has("decoder_") or (wrapped and "mask_token" in state))
    fine_tuned = wrapped and has("fc_norm.")
    if full or (vit and (fine_tuned or (wrapped and not has("head.")))):
        part = "full" if full else "fine-tuned" if fine_tuned else "encoder"
        common = {_mae_key(key): value for key, value in state.items()}
        common.update(mean=torch.tensor(IMAGENET_MEAN), std=torch.tensor(IMAGENET_STD))
        return common, f"{FB} ({part})"
    if (found := convert_third_party_keys(state)) is not None:
        common, layout = found
        common.update(mean=torch.tensor(IMAGENET_MEAN), std=torch.tensor(IMAGENET_STD))
        return common, layout
    return {f"backbone.{key}": value for key, value in state.items()}, "timm"


def common_key(key: str, prefix: str) -> str:
    """`<prefix>model.X` to `backbone.X`; the rest as it is."""
    return f"backbone.{key.removeprefix(prefix + 'model.')}" if key.startswith(f"{prefix}model.") else key


def _mae_key(key: str) -> str:
    if key == "mask_token":
        return "decoder.mask_token"
    if key.startswith("decoder_"):
        return f"decoder.{key.removeprefix('decoder_')}"
    return key if key.startswith("head.") else f"backbone.{key}"
