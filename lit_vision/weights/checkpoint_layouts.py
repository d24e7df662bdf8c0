"""Read checkpoints, detect the project they are from (the layout) and rename their keys to one common form.

Common form: `backbone.<timm name>`, `decoder.*` (MAE), `projection.*` (SimCLR), `head.*` (classifier).
Layouts: this project's checkpoints of its methods (compatibility.py) and of Backbone, timm's state
dicts, facebookresearch/mae's files (encoder, full, fine-tuned), and those of key_maps.py. Files are read with
`weights_only=True` or as safetensors: nothing in them is executed.
"""

import argparse
import io
import json
import os
import pickle
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load as load_safetensors
from torch import Tensor, nn

from lit_vision.errors import UserError
from lit_vision.io.checkpoint_digest import MANIFEST
from lit_vision.io.safe_load import plain_data, refused_class
from lit_vision.io.sharded_checkpoint import load_consolidated
from lit_vision.weights.checkpoint_states import PREFIXES, choose_state, strip_key_wrappers, strip_prefix
from lit_vision.weights.compatibility import FACEBOOK_MAE, check_has_backbone, identify_method
from lit_vision.weights.key_maps import IMAGENET_PIXELS, PIXELS, convert_third_party_keys
from lit_vision.weights.model_metadata import current_keys
from lit_vision.weights.protected_files import HeldFile, held_file
from lit_vision.weights.vit_key_maps import is_dinov2

OUTSIDE = "outside."  # begins the key, in the common form, of a tensor beside the module that holds the network
_TRAINING_ARGS_KEY = "script_arguments"  # in the metadata that `read_file` returns
_TRAINING_ARGS = {"norm_pix_loss": bool, "mask_ratio": float}


def read_file(path: str | os.PathLike[str], state: str | None = None) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return a file's tensors, taken out of outer dictionaries such as "state_dict", and its metadata.

    Args:
        path: of torch.save or safetensors.
        state: which of several states, by its name (checkpoint_states.py); None takes the usual one.

    Returns:
        The tensors, and strings: of a safetensors file its own; else "outer", the name of the state, and
        "other_states", the names of those that were left.

    Raises:
        UserError: no such file, no checkpoint, a damaged one, one that would run code, or no such state.
    """
    tensors, metadata, _ = read_file_and_content(path, state)
    return tensors, metadata


def load_own_weights(network: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    """Load all weights of a network that was built from the hyper-parameters of the same file.

    Raises:
        UserError: the weights do not fit; the message names the file.
    """
    try:
        network.load_state_dict(dict(state))
    except RuntimeError as error:
        raise UserError(
            f"{path}: is damaged: its weights do not fit its hyper_parameters; take another copy"
        ) from error


def read_file_and_content(
    path: str | os.PathLike[str], state: str | None = None
) -> tuple[dict[str, Tensor], dict[str, str], object]:
    """Return what `read_file` returns, and all that a torch.save file holds (None for safetensors), read once.

    Raises:
        UserError: as `read_file`.
    """
    path = Path(path)
    if path.is_dir() and not (path / MANIFEST).is_file():
        raise UserError(f"{path}: is a folder; name a file, such as {path / 'checkpoints' / 'last.ckpt'} of a run")
    if not path.exists():
        raise UserError(f"{path}: no such file; check the path of the checkpoint")
    held = held_file(path)
    if held is None and Path(f"{path}.sha256").is_file():
        from lit_vision.io.checkpoint_digest import is_valid

        if not is_valid(path):
            raise UserError(f"{path}: the file has changed since it was written (see {path}.sha256); take another copy")
    if (path.suffix if held is None else held.suffix) == ".safetensors":
        try:
            tensors, stored = _read_safetensors(path, held)
            if state is not None:
                tensors = choose_state(tensors, state, path)[1]
            return tensors, current_keys(stored), None
        except SafetensorError as error:
            raise UserError(f"{path}: is not a complete safetensors file ({error}); take another copy") from error
    content = load_content(path)
    name, found, others = choose_state(content, state, path)
    metadata = {"outer": name, "other_states": ", ".join(others)} if name else {}
    if isinstance(content, dict) and name:
        metadata[_TRAINING_ARGS_KEY] = _training_args_json(content.get("args"))
        if isinstance(content.get("hyper_parameters"), dict):
            metadata["hyper_parameters"] = json.dumps(content["hyper_parameters"], default=str)
    tensors = {k: v for k, v in found.items() if isinstance(k, str) and isinstance(v, Tensor)}
    if not tensors:
        raise UserError(
            f"{path}: contains no named tensors, or a layout that is not supported yet; "
            "give a state dict or a checkpoint"
        )
    return strip_key_wrappers(tensors), metadata, content


def _read_safetensors(path: Path, held: HeldFile | None) -> tuple[dict[str, Tensor], dict[str, str] | None]:
    """Return the tensors and the metadata of a safetensors file."""
    if held is None:
        with safe_open(path, "pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, file.metadata()  # noqa: SIM118
    content = held.parts[0]
    tensors = load_safetensors(content)  # checks the header
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    return tensors, header.get("__metadata__")


def load_content(path: Path) -> object:
    """Return the content of a torch.save file, or of a sharded checkpoint, that holds only tensors and plain data.

    Raises:
        UserError: the file is no checkpoint, is damaged, or holds more than tensors and plain data.
    """
    held = held_file(path)
    if path.is_dir():
        return load_consolidated(path)
    file = path if held is None else io.BytesIO(held.parts[0])
    try:
        with torch.serialization.safe_globals(plain_data()):
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = refused_class(error)
        if found or "Unsupported" in str(error):
            raise UserError(
                f"{path}: contains {found or 'an object'}, more than tensors and plain data, which could run code, and "
                "is not loaded; if you trust it, save its state dict as safetensors where that class is known"
            ) from error
        raise UserError(f"{path}: is not a checkpoint; give a file of torch.save or safetensors") from error
    except (RuntimeError, OSError, ValueError, KeyError, AttributeError, IndexError, EOFError) as error:
        raise UserError(f"{path}: is not a complete checkpoint; give a file of torch.save or safetensors") from error


def _training_args_json(arguments: object) -> str:
    """Return the training arguments that no tensor shows as JSON; `official_training_args` checks their values."""
    given = vars(arguments) if isinstance(arguments, argparse.Namespace) else {}
    return json.dumps({name: given.get(name) for name in _TRAINING_ARGS}, default=str)


def official_training_args(metadata: dict[str, str]) -> dict[str, bool | float]:
    """Return `norm_pix_loss` and `mask_ratio` of an official MAE file that holds its script's arguments, else {}."""
    try:
        given = json.loads(metadata.get(_TRAINING_ARGS_KEY, "{}"))
    except ValueError:  # the metadata of a safetensors file may hold any text under this key
        return {}
    known = given if isinstance(given, dict) else {}
    typed = {name: known[name] for name, kind in _TRAINING_ARGS.items() if isinstance(known.get(name), kind)}
    return {name: value for name, value in typed.items() if 0 <= value <= 1}  # not NaN


def read_common(
    path: str | os.PathLike[str], state: str | None = None
) -> tuple[dict[str, Tensor], str, dict[str, str]]:
    """Return a file's tensors in the common form, the name of its layout, and its metadata.

    Raises:
        UserError: as `read_file`; or a layout that is known and not supported yet.
    """
    tensors, metadata = read_file(path, state)
    try:
        return *to_common_keys(tensors, metadata), metadata
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def to_common_keys(state: dict[str, Tensor], metadata: dict[str, str]) -> tuple[dict[str, Tensor], str]:
    """Return the state in the common form and the name of its layout.

    `mean` and `std` (3,) are among the tensors where the layout implies them. Keys of tensors beside the module that
    holds the network, such as a loss's, begin with OUTSIDE; no module takes them.

    Raises:
        UserError: a layout that is known and not supported yet, or a generator's, which has no backbone.
    """
    check_has_backbone(metadata.get("lit_vision", ""), stored_hyper_parameters(metadata))
    if any(key.startswith("backbone.model.") for key in state):
        common = {common_key(key, "backbone."): value for key, value in state.items()}
        return common, identify_method(common, metadata.get("lit_vision", ""), stored_hyper_parameters(metadata))
    if metadata.get("lit_vision") == "Backbone":
        common = {f"backbone.{key}": value for key, value in state.items()}
        return {**common, **{name: torch.tensor(json.loads(metadata[name])) for name in ("mean", "std")}}, "Backbone"

    outside: dict[str, Tensor] = {}  # of the module that holds the network
    while True:  # other people's modules hold a network under one or more names: module.model.backbone.conv1.weight
        found = _mae_keys(state, metadata) or convert_third_party_keys(state)
        if found is not None:
            for name, value in zip(("mean", "std"), PIXELS.get(found[1], IMAGENET_PIXELS)):
                found[0][name] = torch.tensor(value)
            break
        parts = strip_prefix(state)
        if parts is None:
            found = {f"backbone.{key}": value for key, value in state.items()}, "timm"
            break
        state = parts[0]
        outside |= {f"{OUTSIDE}{key}": value for key, value in parts[1].items()}
    return {**found[0], **outside}, found[1]


def restore_module(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Return a timm model's state with the name of its own module that was stripped as a wrapper's.

    Some families of timm hold their network as `encoder`, which is also what other people's modules call any network.

    Args:
        state: in the common form.
        model: the timm model that it is for.
    """
    own = next((prefix for prefix in PREFIXES if isinstance(getattr(model, prefix[:-1], None), nn.Module)), None)
    if own is None or any(key.startswith(f"backbone.{own}") for key in state):
        return state
    renamed = {}
    for key, value in state.items():
        if key.startswith("backbone."):
            key = f"backbone.{own}{key.removeprefix('backbone.')}"
        elif key.startswith(OUTSIDE):
            key = f"backbone.{key.removeprefix(OUTSIDE)}"
        renamed[key] = value
    return renamed


def stored_hyper_parameters(metadata: Mapping[str, str]) -> dict[str, object]:
    """Return the hyper-parameters in a file's metadata, {} without any."""
    try:
        found = json.loads(metadata.get("hyper_parameters", "{}"))
    except ValueError:  # the metadata of a safetensors file may hold any text under this key
        return {}
    return found if isinstance(found, dict) else {}


def common_key(key: str, prefix: str) -> str:
    """Return `backbone.X` for `<prefix>model.X`, and other keys unchanged."""
    return f"backbone.{key.removeprefix(prefix + 'model.')}" if key.startswith(f"{prefix}model.") else key


def _mae_keys(state: dict[str, Tensor], metadata: Mapping[str, str]) -> tuple[dict[str, Tensor], str] | None:
    """Return the state of a file of facebookresearch/mae in the common form and its layout; None for another file.

    A full file is recognized by any key of the decoder. If it lacks some, it is still not an encoder, and the error's
    table names the missing keys.
    """

    def has(*prefixes: str) -> bool:
        return any(key.startswith(prefixes) for key in state)

    vit, wrapped = "cls_token" in state and "blocks.0.attn.qkv.weight" in state, metadata.get("outer") == "model"
    full = has("blocks.") and (has("decoder_") or (wrapped and "mask_token" in state))
    fine_tuned = wrapped and has("fc_norm.")
    if is_dinov2(state) or (not full and not (vit and (fine_tuned or (wrapped and not has("head."))))):
        return None
    part = "full" if full else "fine-tuned" if fine_tuned else "encoder"
    return {_mae_key(key): value for key, value in state.items()}, f"{FACEBOOK_MAE} ({part})"


def _mae_key(key: str) -> str:
    if key == "mask_token":
        return "decoder.mask_token"
    if key.startswith("decoder_"):
        return f"decoder.{key.removeprefix('decoder_')}"
    return key if key.startswith("head.") else f"backbone.{key}"
