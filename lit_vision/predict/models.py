"""A model from any file, behind one call: pixels in, named arrays out. Nothing in a file is executed, `.pt2` apart, which must be trusted."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lit_vision.backbones import adapters
from lit_vision.backbones.backbone import Backbone
from lit_vision.errors import UserError
from lit_vision.methods.detection.decoding import decoder_options
from lit_vision.predict.runtimes import Model, open_onnx, open_openvino, open_pt2
from lit_vision.predict.tasks import DENSE, inference_network
from lit_vision.weights.adapter_io import load_adapter, read_adapter
from lit_vision.weights.checkpoint_layouts import read_file, to_common_keys
from lit_vision.weights.load import load_into
from lit_vision.weights.model_metadata import METADATA_KEY, ModelMetadata

MODEL_SUFFIXES = (".ckpt", ".pt", ".pth", ".safetensors", ".onnx", ".xml", ".pt2")
METHOD_OF_TASK = {
    "classification": "Classifier",
    "detection": "Detector",
    "segmentation": "Segmenter",
}  # task: class in lit_vision.methods
# arguments that only this task's method has: a checkpoint without a card is known by them
_MARKS = {"detection": {"pyramid_width", "head_convs"}, "segmentation": {"aux_weight", "background"}}


def resolve_model_file(place: str | os.PathLike) -> Path:
    """The file that a run's folder or a path means: best.ckpt, else last.ckpt, of a run.

    Raises:
        UserError: nothing there, no checkpoint in the folder, or an ending that is not known.
    """
    path = Path(place)
    if path.is_dir():
        for name in ("best.ckpt", "last.ckpt"):
            if (path / "checkpoints" / name).is_file():
                return path / "checkpoints" / name
        raise UserError(f"{path}: holds no checkpoints/best.ckpt or last.ckpt; give a run's folder or a model's file")
    if not path.is_file():
        raise UserError(f"{path}: no such run or file; check the path")
    if path.suffix.lower() not in MODEL_SUFFIXES:
        raise UserError(
            f"{path}: no model that can be read here; give a run's folder or a file of {', '.join(MODEL_SUFFIXES)}"
        )
    return path


def load_model(
    place: str | os.PathLike,
    device: str = "auto",
    base: str | None = None,
    trust: bool = False,
    threads: int | None = None,
) -> Model:
    """A model from a run's folder, a checkpoint, an export or an adapter.

    Args:
        place: a run's folder or a file.
        device: "cpu", "cuda" or "auto", for torch.
        base: the weights that an adapter's backbone began from; "timm" for timm's own of that name.
        trust: load a .pt2, which can run code of whoever made it.
        threads: of ONNX Runtime and OpenVINO; their own choice if None.

    Raises:
        UserError: a file that is missing, damaged, of another kind, or without what using it takes; a runtime that is not installed.
    """
    path = resolve_model_file(place)
    suffix = path.suffix.lower()
    if base and suffix in (".onnx", ".xml", ".pt2"):
        raise UserError(f"--base: is for adapters, and {path} is a whole model; leave it out")
    if suffix == ".onnx":
        return open_onnx(path, threads)
    if suffix == ".xml":
        return open_openvino(path, threads)
    if suffix == ".pt2":
        return open_pt2(path, trust)
    method, metadata = load_method(path, base)
    target = torch.device("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else torch.device(device)
    if target.type == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch sees no CUDA device here; use cpu")
    network = inference_network(method, metadata.task).to(target)

    def run(images: Tensor) -> dict[str, np.ndarray]:
        with torch.inference_mode():
            found = network(images.to(target))
        return {name: value.float().cpu().numpy() for name, value in zip(metadata.outputs, found)}

    return Model(metadata, path, run, "torch", method)


class FeatureModel(nn.Module):
    """A backbone and its pixel statistics: what is used of a pre-training method."""

    def __init__(self, backbone: Backbone, mean: Any, std: Any) -> None:
        super().__init__()
        self.backbone = backbone
        self.register_buffer("mean", torch.tensor([float(v) for v in mean]))
        self.register_buffer("std", torch.tensor([float(v) for v in std]))


def load_method(path: Path, base: str | None = None, merge: bool = True) -> tuple[nn.Module, ModelMetadata]:
    """The torch network of a checkpoint, a safetensors export or an adapter, on the CPU in evaluation mode, and its card.

    Args:
        path: of `resolve_model_file`.
        base: the weights that an adapter's backbone began from; "timm" for timm's own of that name.
        merge: fold LoRA into the weights.

    Raises:
        UserError: as `load_model`.
    """
    state, notes = read_file(path)
    if notes.get("lit_vision") == "Adapter":
        return _adapter(path, base)
    if base:
        raise UserError(f"--base: is for adapters, and {path} is a whole model; leave it out")
    if path.suffix.lower() == ".safetensors":
        if METADATA_KEY in notes and "hyper_parameters" in notes:
            metadata = ModelMetadata.from_json(notes[METADATA_KEY], str(path))
            return _built(path, metadata.task, json.loads(notes["hyper_parameters"]), state, vars(metadata))
        if "backbone" not in notes:
            raise UserError(f"{path}: does not say which model it holds; give a run, or a file of lit-vision export")
        backbone = Backbone(**json.loads(notes["backbone"]))
        report = load_into(backbone, path)
        return _features(backbone, report.mean, report.std, path, {"licence": notes.get("licence", "")})
    content = torch.load(path, map_location="cpu", weights_only=True)
    hyper = content.get("hyper_parameters")
    if not isinstance(hyper, Mapping) or "backbone" not in hyper:
        raise UserError(f"{path}: is weights alone; give a run's checkpoint or a file of lit-vision export")
    kept = content.get("card") or {}
    task = kept.get("task") or next((name for name, marks in _MARKS.items() if marks <= set(hyper)), None)
    if task is None and to_common_keys(state, notes)[1] == "Classifier":
        task = "classification"
    if task is not None:
        return _built(path, task, hyper, content["state_dict"], kept, merge)
    backbone = Backbone(hyper["backbone"], **{**(hyper.get("backbone_args") or {}), "pretrained": False})
    report = load_into(backbone, path)
    mean = report.mean or backbone.data_config["mean"]
    return _features(backbone, mean, report.std or backbone.data_config["std"], path, {})


def _built(
    path: Path,
    task: str,
    hyper: Mapping[str, Any],
    state: Mapping[str, Tensor],
    kept: Mapping[str, Any],
    merge: bool = True,
) -> tuple[nn.Module, ModelMetadata]:
    """A method of this project from its own hyper-parameters."""
    if task not in METHOD_OF_TASK:
        raise UserError(f"{path}: is for {task}, which this version cannot run; use a newer lit-vision")
    if view := (kept.get("options") or {}).get("eval_view"):
        raise UserError(
            f"{path}: was measured with eval_view {view}, which is not repeated here; train with eval_view eval"
        )
    from lit_vision import methods

    method = getattr(methods, METHOD_OF_TASK[task])(**dict(hyper))
    try:
        method.load_state_dict(dict(state))
    except RuntimeError as error:
        raise UserError(f"{path}: its weights do not fit its own settings; it is damaged, take another copy") from error
    if merge:
        adapters.merge(method.backbone)
    return method.eval(), build_metadata(method, task, kept)


def _task_options(method: nn.Module, task: str) -> dict[str, Any]:
    """What using this task's outputs takes, plain values."""
    if task == "detection":
        return decoder_options(method)
    return {"background": method.hparams.background} if task == "segmentation" else {}


def _features(
    backbone: Backbone, mean: Any, std: Any, path: Path, kept: Mapping[str, Any]
) -> tuple[nn.Module, ModelMetadata]:
    if mean is None or std is None:
        raise UserError(
            f"{path}: does not say its mean and std; give a run's checkpoint or a file of lit-vision export"
        )
    holder = FeatureModel(backbone, mean, std).eval()
    return holder, build_metadata(holder, "features", kept)


def build_metadata(method: nn.Module, task: str, kept: Mapping[str, Any]) -> ModelMetadata:
    """The card of a network: what was kept of its data, and what the network itself says."""
    config = method.backbone.data_config
    size = int(kept.get("size") or (method.hparams.get("img_size") if task in DENSE else 0) or config["input_size"][-1])
    names = list(kept.get("class_names") or [])
    if not names and task != "features":
        names = [str(i) for i in range(method.hparams["num_classes"])]
    return ModelMetadata(
        task=task,
        size=size,
        mean=[round(float(v), 6) for v in method.mean],
        std=[round(float(v), 6) for v in method.std],
        crop_pct=float(kept.get("crop_pct") or (0.875 if size > 64 and task not in DENSE else 1.0)),
        class_names=names,
        category_ids=[int(i) for i in kept.get("category_ids") or []],
        outputs=list(inference_network(method, task).outputs),
        weights=state_dict_sha256(method.state_dict()),
        features=state_dict_sha256({k: v for k, v in method.state_dict().items() if k.startswith("backbone.")}),
        licence=str(kept.get("licence") or ""),
        options={
            **(kept.get("options") or {}),
            **_task_options(method, task),
            "family": "vit" if is_vit(method.backbone) else "cnn",
        },
    )


def is_vit(backbone: Backbone) -> bool:
    """True for models of blocks on patches."""
    return hasattr(backbone.model, "blocks") and hasattr(backbone.model, "patch_embed")


def state_dict_sha256(state: Mapping[str, Tensor]) -> str:
    """sha256 (hex) of names, shapes and values."""
    digest = hashlib.sha256()
    for key in sorted(state):
        value = state[key].detach().cpu().contiguous()
        digest.update(f"{key}{tuple(value.shape)}{value.dtype}".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _adapter(path: Path, base: str | None) -> tuple[nn.Module, ModelMetadata]:
    """An adapter on the weights that it was trained on."""
    _, about = read_adapter(path)
    if base is None:
        raise UserError(f"{path}: is an adapter without its backbone; name the weights it began from with --base")
    notes = about["notes"]
    hyper = {**notes["hyper_parameters"], "backbone_checkpoint": base, "tune": "linear"}
    if base == "timm":
        hyper.update(backbone_checkpoint=None, backbone_args={**(hyper["backbone_args"] or {}), "pretrained": True})
    from lit_vision import methods

    method = getattr(methods, METHOD_OF_TASK[notes["card"]["task"]])(**hyper)
    found = load_adapter(method.backbone, path)
    method.load_state_dict({**method.state_dict(), **found.rest})
    adapters.merge(method.backbone)
    return method.eval(), build_metadata(method, notes["card"]["task"], notes["card"])
