"""Load a model from a run, a checkpoint, an export, an adapter or timm.

Nothing in a file is executed, except for `.pt2`, which is loaded only if it is trusted. Lightning is not imported.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from lit_vision.backbones import adapters
from lit_vision.backbones.backbone import Backbone, is_vit
from lit_vision.data.views.image_size import height_and_width, plain_size
from lit_vision.data.views.pixel_values import check_range
from lit_vision.errors import UsageError, UserError
from lit_vision.io.checkpoint_digest import MANIFEST
from lit_vision.io.hashing import state_dict_sha256
from lit_vision.io.sealed import SEALED_SUFFIX
from lit_vision.methods.pixels import channel_values
from lit_vision.predict.open_clip_models import is_open_clip_name, load_open_clip
from lit_vision.predict.runtimes import Model, open_onnx, open_openvino, open_pt2
from lit_vision.predict.shared_space import SharedSpaceInference, build_image_text, has_texts
from lit_vision.predict.tasks import TASKS, inference_network, task_of_checkpoint
from lit_vision.predict.timm_models import is_timm_name, load_timm_model
from lit_vision.weights.adapter_io import load_adapter, read_adapter
from lit_vision.weights.checkpoint_layouts import load_own_weights, read_file_and_content, to_common_keys
from lit_vision.weights.compatibility import UNKNOWN, check_has_backbone, unknown_method_error
from lit_vision.weights.load import load_into
from lit_vision.weights.model_metadata import METADATA_KEY, SHARED_SPACE, ModelMetadata, current_keys
from lit_vision.weights.protected_files import format_suffix

MODEL_SUFFIXES = (".ckpt", ".pt", ".pth", ".safetensors", ".onnx", ".xml", ".pt2", SEALED_SUFFIX)


def resolve_model_file(source: str | os.PathLike[str]) -> Path:
    """Return the model's file: best.ckpt, else last.ckpt, of a run's folder, or the file itself.

    Raises:
        UserError: no such path, no checkpoint in the folder, or an unknown suffix.
    """
    path = Path(source).expanduser()
    if path.is_dir() and not (path / MANIFEST).is_file():
        for name in ("best.ckpt", "last.ckpt"):
            found = path / "checkpoints" / name
            if found.is_file() or (found / MANIFEST).is_file():  # a sharded checkpoint is a folder
                return found
        raise UserError(f"{path}: has no checkpoints/best.ckpt or last.ckpt; give a run's folder or a model's file")
    if not path.exists():
        raise UserError(f"{path}: no such run, file or timm model; check the path")
    if path.suffix.lower() not in MODEL_SUFFIXES:
        raise UserError(f"{path}: is not a model; give a run's folder or a file ending in {', '.join(MODEL_SUFFIXES)}")
    return path


def find_model(source: str | os.PathLike[str]) -> Path:
    """Return the path of a run's or file's model (`resolve_model_file`), or a name of timm or open_clip as a path."""
    named = is_open_clip_name(source) or is_timm_name(source, MODEL_SUFFIXES)
    return Path(source) if named else resolve_model_file(source)


def load_model(
    source: str | os.PathLike[str],
    device: str = "auto",
    base: str | None = None,
    trust_pt2: bool = False,
    threads: int | None = None,
    value_range: Sequence[float] | None = None,
    shared_space: bool = False,
) -> Model:
    """Load a model from a run's folder, a checkpoint, an export or an adapter, or a timm model with timm's weights.

    Args:
        source: a run's folder, a file, a name of timm, with or without a weight tag, or `open_clip:MODEL/WEIGHTS`.
        device: "cpu", "cuda" or "auto", for torch.
        base: the weights that an adapter was trained on; "timm" for timm's weights of that name.
        trust_pt2: load a .pt2, which can run code of whoever made it.
        threads: of ONNX Runtime and OpenVINO; their default if None.
        value_range: values of images deeper than 8 bits that become 0 and 255, in place of the metadata's.
        shared_space: of a model trained on images with captions, take the features in the space that images and texts
            share (unit vectors), not the backbone's; models of open_clip have no others.

    Raises:
        UserError: the file is missing, damaged, of another kind or without metadata, or its runtime is not installed.
    """
    if value_range is not None:
        low_and_high = list(check_range(value_range, "--range") or ())
        model = load_model(source, device, base, trust_pt2, threads, shared_space=shared_space)
        model.metadata.value_range = low_and_high
        return model
    from_timm, from_open_clip = is_timm_name(source, MODEL_SUFFIXES), is_open_clip_name(source)
    path = find_model(source)
    suffix = "" if from_timm or from_open_clip else format_suffix(path)
    if base and (from_timm or from_open_clip or suffix in (".onnx", ".xml", ".pt2")):
        raise UserError(f"--base: is for adapters, and {path} is a complete model; leave it out")
    if suffix == ".onnx":
        return open_onnx(path, threads)
    if suffix == ".xml":
        return open_openvino(path, threads)
    if suffix == ".pt2":
        return open_pt2(path, trust_pt2)
    target = torch_device(device)
    method: nn.Module | None = None
    network: nn.Module
    if from_timm:
        network, metadata = load_timm_model(str(source))
    elif from_open_clip:
        network, metadata = load_open_clip(str(source))
    else:
        method, metadata = load_method(path, base, shared_space=shared_space)
        has_both_towers = hasattr(method, "encode_texts")
        network = SharedSpaceInference(method) if has_both_towers else inference_network(method, metadata.task)
    network = network.to(target)
    encode_texts = getattr(network if method is None else method, "encode_texts", None)

    def run(images: Tensor) -> dict[str, np.ndarray]:
        with torch.inference_mode():
            outputs = network(images.to(target))
        return {name: value.float().cpu().numpy() for name, value in zip(metadata.outputs, outputs)}

    return Model(metadata, path, run, "torch", method, target, encode_texts)


def torch_device(name: str) -> torch.device:
    """Return the device of "auto" (CUDA if there is one), "cpu", "cuda" or "cuda:1".

    Raises:
        UserError: torch has no such device here. UsageError (a UserError): another name.
    """
    try:
        device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)
    except (RuntimeError, TypeError) as error:
        raise UsageError(f"--device {name!r}: is no device; give auto, cpu or cuda") from error
    if device.type not in ("cpu", "cuda"):
        raise UsageError(f"--device {name!r}: is not tested here; give auto, cpu or cuda")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"--device {name}: torch sees {torch.cuda.device_count()} CUDA devices here; use cpu")
    return device


class FeatureModel(nn.Module):
    """Backbone with its pixel statistics: the part of a pre-training method that inference uses."""

    def __init__(self, backbone: Backbone, mean: Any, std: Any) -> None:
        super().__init__()
        self.backbone = backbone
        self.register_buffer("mean", torch.tensor([float(v) for v in mean]))
        self.register_buffer("std", torch.tensor([float(v) for v in std]))


def load_method(
    path: Path, base: str | None = None, merge: bool = True, shared_space: bool = False
) -> tuple[nn.Module, ModelMetadata]:
    """Build the torch network of a checkpoint, a safetensors export or an adapter, on the CPU in evaluation mode.

    Args:
        path: from `resolve_model_file`.
        base: the weights that an adapter was trained on; "timm" for timm's weights of that name.
        merge: fold LoRA into the weights.
        shared_space: as `load_model`.

    Returns:
        The method's network (network.py of its folder) or a FeatureModel, and its metadata. With `shared_space`, and of
        a model trained on images with captions, the network of both towers.

    Raises:
        UserError: as `load_model`.
    """
    state, header, content = read_file_and_content(path)
    if header.get("lit_vision") == "Adapter":
        return _load_with_adapter(path, base)
    if base:
        raise UserError(f"--base: is for adapters, and {path} is a complete model; leave it out")
    if format_suffix(path) == ".safetensors":
        if METADATA_KEY in header and "hyper_parameters" in header:
            metadata = ModelMetadata.from_json(header[METADATA_KEY], str(path))
            return _build_method(path, metadata.task, json.loads(header["hyper_parameters"]), state, vars(metadata))
        written = current_keys(json.loads(header.get(METADATA_KEY) or "{}"))
        if "backbone" not in header:
            raise UserError(f"{path}: its metadata does not name a model; give a run, or a file of lit-vision export")
        backbone = Backbone(**json.loads(header["backbone"]))
        report = load_into(backbone, path)
        stored = {key: written.get(key) for key in ("value_range", "size", "crop_pct")}
        stored["license"] = header.get("license", "")
        return _build_features(backbone, report.mean, report.std, path, stored)
    hyper = content.get("hyper_parameters") if isinstance(content, dict) else None
    if isinstance(hyper, Mapping):
        check_has_backbone("", hyper, f"{path}: ")
    if not isinstance(content, dict) or not isinstance(hyper, Mapping) or "backbone" not in hyper:
        raise UserError(
            f"{path}: has weights but no hyper_parameters; give a run's checkpoint or a file of lit-vision export"
        )
    layout = to_common_keys(state, header)[1]
    if layout.startswith(UNKNOWN):  # with a known method's hyper-parameters it would be called damaged
        raise unknown_method_error(path, layout)
    stored = content.get("card") or {}  # metadata; see fine_tuning.py
    if shared_space and has_texts(layout):
        network = build_image_text(path, layout, hyper, content["state_dict"])
        metadata = build_metadata(network, "features", stored)
        space = {**metadata.options, "space": SHARED_SPACE}
        return network, replace(metadata, features=metadata.weights, options=space)  # texts depend on all weights
    task = stored.get("task") or task_of_checkpoint(hyper)
    if task is not None:
        return _build_method(path, task, hyper, content["state_dict"], stored, merge)
    backbone = Backbone(hyper["backbone"], **{**(hyper.get("backbone_args") or {}), "pretrained": False})
    report = load_into(backbone, path)
    mean = report.mean or backbone.data_config["mean"]
    return _build_features(backbone, mean, report.std or backbone.data_config["std"], path, stored)


class _WithoutRandomValues(TorchFunctionMode):
    """While it is active, tensors are not filled with random values, since a strict load replaces all of them.

    Where values of a normal distribution would stand there are zeros: torch's `trunc_normal_` draws again until all are
    in range, which what the memory held before may never be.
    """

    _SKIPPED = frozenset({Tensor.normal_, Tensor.uniform_, Tensor.erfinv_})

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is Tensor.normal_:
            return args[0].zero_()
        return args[0] if func in self._SKIPPED else func(*args, **(kwargs or {}))


def _build_method(
    path: Path,
    task: str,
    hyper: Mapping[str, Any],
    state: Mapping[str, Tensor],
    stored: Mapping[str, Any],
    merge: bool = True,
) -> tuple[nn.Module, ModelMetadata]:
    """Build a method of this project from its hyper-parameters, weights and stored metadata."""
    if task not in TASKS or TASKS[task].method is None:
        raise UserError(f"{path}: is for {task}, which this version cannot run; use a newer lit-vision")
    if view := (stored.get("options") or {}).get("eval_view"):
        raise UserError(
            f"{path}: was trained with eval_view {view}, which inference cannot apply; train with eval_view eval"
        )
    with _WithoutRandomValues():
        method = TASKS[task].network(hyper)
    load_own_weights(method, state, path)
    if merge:
        adapters.merge(method.backbone)
    return method.eval(), build_metadata(method, task, stored)


def _build_features(
    backbone: Backbone,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    path: Path,
    stored: Mapping[str, Any],
) -> tuple[nn.Module, ModelMetadata]:
    if mean is None or std is None:
        raise UserError(f"{path}: has no mean and std; give a run's checkpoint or a file of lit-vision export")
    channels = backbone.config["in_chans"]
    mean, std = (channel_values(name, None, v, channels) for name, v in (("mean", mean), ("std", std)))
    model = FeatureModel(backbone, mean, std).eval()
    return model, build_metadata(model, "features", stored)


def build_metadata(method: nn.Module, task: str, stored: Mapping[str, Any]) -> ModelMetadata:
    """Return the metadata of a network: `stored` from its training, completed by the network's properties."""
    config = method.backbone.data_config
    network_size = method.hparams.get("img_size") if TASKS[task].pads else 0
    size = plain_size(stored.get("size") or network_size or config["input_size"][-2:])
    names = list(stored.get("class_names") or [])
    if not names and task not in ("features", "restoration", "captioning"):
        names = [str(i) for i in range(method.hparams.get("num_classes") or method.hparams["num_labels"])]
    inference = inference_network(method, task)
    return ModelMetadata(
        task=task,
        size=size,
        mean=[round(float(v), 6) for v in getattr(inference, "mean", method.mean)],
        std=[round(float(v), 6) for v in getattr(inference, "std", method.std)],
        crop_pct=float(
            stored.get("crop_pct") or (0.875 if min(height_and_width(size)) > 64 and not TASKS[task].pads else 1.0)
        ),
        class_names=names,
        category_ids=[int(i) for i in stored.get("category_ids") or []],
        outputs=list(inference.outputs),
        weights=state_dict_sha256(method.state_dict()),
        features=state_dict_sha256({k: v for k, v in method.state_dict().items() if k.startswith("backbone.")}),
        license=str(stored.get("license") or ""),
        value_range=stored.get("value_range"),
        options={
            **(stored.get("options") or {}),
            **TASKS[task].decoding(method),
            "family": "vit" if is_vit(method.backbone.model) else "cnn",
        },
    )


def _load_with_adapter(path: Path, base: str | None) -> tuple[nn.Module, ModelMetadata]:
    """Build the network of an adapter on the weights that it was trained on."""
    _, description = read_adapter(path)
    if base is None:
        raise UserError(f"{path}: is an adapter without its backbone; name the weights it was trained on with --base")
    notes = description["notes"]
    stored = notes["card"]  # metadata; see convert/export.py
    hyper = {**notes["hyper_parameters"], "backbone_checkpoint": base, "tune": "linear"}
    if base == "timm":
        hyper.update(backbone_checkpoint=None, backbone_args={**(hyper["backbone_args"] or {}), "pretrained": True})
    method = TASKS[stored["task"]].network(hyper)
    adapter = load_adapter(method.backbone, path)
    method.load_state_dict({**method.state_dict(), **adapter.rest})
    adapters.merge(method.backbone)
    return method.eval(), build_metadata(method, stored["task"], stored)
