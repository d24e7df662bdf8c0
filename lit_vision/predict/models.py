"""A model from any file, behind one call: pixels in, named arrays out. Nothing in a file is executed, `.pt2` apart, which must be trusted."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lit_vision.backbones import adapters
from lit_vision.backbones.backbone import Backbone
from lit_vision.backbones.layouts import common_form, read_file
from lit_vision.backbones.weights import load_into
from lit_vision.card import KEY, Card
from lit_vision.data.batch import normalise
from lit_vision.errors import UserError
from lit_vision.predict.tasks import NETWORKS, network_of

SUFFIXES = (".ckpt", ".pt", ".pth", ".safetensors", ".onnx", ".xml", ".pt2")
METHODS = {"classification": "Classifier"}  # task: class in lit_vision.methods


class Model:
    """A model that is ready to use.

    Attributes:
        card: what it is for and what it wants.
        path: the file it is from.
        method: the LightningModule or holder of a Backbone; None where the file has no torch network.
        runtime: "torch", "onnx", "openvino" or "pt2".
    """

    def __init__(
        self,
        card: Card,
        path: Path,
        run: Callable[[Tensor], dict[str, np.ndarray]],
        runtime: str,
        method: nn.Module | None = None,
    ) -> None:
        self.card, self.path, self.runtime, self.method, self._run = card, path, runtime, method, run
        self._mean, self._std = torch.tensor(card.mean), torch.tensor(card.std)

    def normalised(self, pixels: np.ndarray) -> Tensor:
        """(N, S, S, 3) uint8 -> (N, 3, S, S) float32 as the network wants it."""
        return normalise(torch.from_numpy(pixels)[:, None], self._mean, self._std)[:, 0]

    def __call__(self, pixels: np.ndarray) -> dict[str, np.ndarray]:
        """Outputs by name for (N, S, S, 3) uint8 pixels.

        Raises:
            UserError: an output is not finite.
        """
        outputs = self.run(self.normalised(pixels))
        for name, value in outputs.items():
            if not np.isfinite(value).all():
                raise UserError(f"{self.path}: gives {name} that are not finite; check its training")
        return outputs

    def run(self, images: Tensor) -> dict[str, np.ndarray]:
        """Outputs by name for normalised images (N, 3, S, S) on the CPU."""
        return self._run(images)


def file_of(place: str | os.PathLike) -> Path:
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
    if path.suffix.lower() not in SUFFIXES:
        raise UserError(
            f"{path}: no model that can be read here; give a run's folder or a file of {', '.join(SUFFIXES)}"
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
    path = file_of(place)
    suffix = path.suffix.lower()
    if base and suffix in (".onnx", ".xml", ".pt2"):
        raise UserError(f"--base: is for adapters, and {path} is a whole model; leave it out")
    if suffix == ".onnx":
        return _onnx(path, threads)
    if suffix == ".xml":
        return _openvino(path, threads)
    if suffix == ".pt2":
        return _pt2(path, trust)
    method, card = load_method(path, base)
    target = torch.device("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else torch.device(device)
    if target.type == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch sees no CUDA device here; use cpu")
    network = network_of(method, card.task).to(target)

    def run(images: Tensor) -> dict[str, np.ndarray]:
        with torch.inference_mode():
            found = network(images.to(target))
        return {name: value.float().cpu().numpy() for name, value in zip(card.outputs, found)}

    return Model(card, path, run, "torch", method)


class Holder(nn.Module):
    """A backbone and its pixel statistics: what is used of a pre-training method."""

    def __init__(self, backbone: Backbone, mean: Any, std: Any) -> None:
        super().__init__()
        self.backbone = backbone
        self.register_buffer("mean", torch.tensor([float(v) for v in mean]))
        self.register_buffer("std", torch.tensor([float(v) for v in std]))


def load_method(path: Path, base: str | None = None, merge: bool = True) -> tuple[nn.Module, Card]:
    """The torch network of a checkpoint, a safetensors export or an adapter, on the CPU in evaluation mode, and its card.

    Args:
        path: of `file_of`.
        base: the weights that an adapter's backbone began from; "timm" for timm's own of that name.
        merge: fold LoRA into the weights.

    Raises:
        UserError: as `load_model`.
    """
    state, metadata = read_file(path)
    if metadata.get("lit_vision") == "Adapter":
        return _adapter(path, base)
    if base:
        raise UserError(f"--base: is for adapters, and {path} is a whole model; leave it out")
    if path.suffix.lower() == ".safetensors":
        if KEY in metadata and "hyper_parameters" in metadata:
            card = Card.from_json(metadata[KEY], str(path))
            return _built(path, card.task, json.loads(metadata["hyper_parameters"]), state, vars(card))
        if "backbone" not in metadata:
            raise UserError(f"{path}: does not say which model it holds; give a run, or a file of lit-vision export")
        backbone = Backbone(**json.loads(metadata["backbone"]))
        report = load_into(backbone, path)
        return _features(backbone, report.mean, report.std, path, {"licence": metadata.get("licence", "")})
    content = torch.load(path, map_location="cpu", weights_only=True)
    hyper = content.get("hyper_parameters")
    if not isinstance(hyper, Mapping) or "backbone" not in hyper:
        raise UserError(f"{path}: is weights alone; give a run's checkpoint or a file of lit-vision export")
    kept = content.get("card") or {}
    layout = common_form(state, metadata)[1]
    if kept or layout == "Classifier":
        return _built(path, kept.get("task", "classification"), hyper, content["state_dict"], kept, merge)
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
) -> tuple[nn.Module, Card]:
    """A method of this project from its own hyper-parameters."""
    if task not in METHODS:
        raise UserError(f"{path}: is for {task}, which this version cannot run; use a newer lit-vision")
    from lit_vision import methods

    method = getattr(methods, METHODS[task])(**dict(hyper))
    try:
        method.load_state_dict(dict(state))
    except RuntimeError as error:
        raise UserError(f"{path}: its weights do not fit its own settings; it is damaged, take another copy") from error
    if merge:
        adapters.merge(method.backbone)
    return method.eval(), _card(method, task, kept)


def _features(backbone: Backbone, mean: Any, std: Any, path: Path, kept: Mapping[str, Any]) -> tuple[nn.Module, Card]:
    if mean is None or std is None:
        raise UserError(
            f"{path}: does not say its mean and std; give a run's checkpoint or a file of lit-vision export"
        )
    holder = Holder(backbone, mean, std).eval()
    return holder, _card(holder, "features", kept)


def _card(method: nn.Module, task: str, kept: Mapping[str, Any]) -> Card:
    """The card of a network: what was kept of its data, and what the network itself says."""
    config = method.backbone.data_config
    size = int(kept.get("size") or config["input_size"][-1])
    names = list(kept.get("class_names") or [])
    if not names and task != "features":
        names = [str(i) for i in range(method.hparams["num_classes"])]
    return Card(
        task=task,
        size=size,
        mean=[round(float(v), 6) for v in method.mean],
        std=[round(float(v), 6) for v in method.std],
        crop_pct=float(kept.get("crop_pct") or (0.875 if size > 64 else 1.0)),
        class_names=names,
        outputs=list(NETWORKS[task][1]),
        weights=weights_digest(method.state_dict()),
        features=weights_digest({k: v for k, v in method.state_dict().items() if k.startswith("backbone.")}),
        licence=str(kept.get("licence") or ""),
        options={**(kept.get("options") or {}), "family": "vit" if is_vit(method.backbone) else "cnn"},
    )


def is_vit(backbone: Backbone) -> bool:
    """True for models of blocks on patches."""
    return hasattr(backbone.model, "blocks") and hasattr(backbone.model, "patch_embed")


def weights_digest(state: Mapping[str, Tensor]) -> str:
    """sha256 (hex) of names, shapes and values."""
    digest = hashlib.sha256()
    for key in sorted(state):
        value = state[key].detach().cpu().contiguous()
        digest.update(f"{key}{tuple(value.shape)}{value.dtype}".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _adapter(path: Path, base: str | None) -> tuple[nn.Module, Card]:
    """An adapter on the weights that it was trained on."""
    _, about = adapters.read_adapter(path)
    if base is None:
        raise UserError(f"{path}: is an adapter without its backbone; name the weights it began from with --base")
    notes = about["notes"]
    hyper = {**notes["hyper_parameters"], "backbone_checkpoint": base, "tune": "linear"}
    if base == "timm":
        hyper.update(backbone_checkpoint=None, backbone_args={**(hyper["backbone_args"] or {}), "pretrained": True})
    from lit_vision import methods

    method = getattr(methods, METHODS[notes["card"]["task"]])(**hyper)
    found = adapters.load_adapter(method.backbone, path)
    method.load_state_dict({**method.state_dict(), **found.rest})
    adapters.merge(method.backbone)
    return method.eval(), _card(method, notes["card"]["task"], notes["card"])


# ------------------------------------------------------------------ other runtimes


def _onnx(path: Path, threads: int | None) -> Model:
    try:
        import onnxruntime
    except ImportError as error:
        raise UserError(f"{path}: ONNX Runtime is not installed; pip install 'lit-vision[export]'") from error
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if threads:
        options.intra_op_num_threads = threads
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime has a class for every fault, none of them exported
        raise UserError(f"{path}: no ONNX model that can be loaded ({_first_line(error)}); export it again") from error
    card = Card.from_json(session.get_modelmeta().custom_metadata_map.get(KEY), str(path))
    entry, names = session.get_inputs()[0].name, [o.name for o in session.get_outputs()]
    _check_outputs(path, card, names)

    def run(images: Tensor) -> dict[str, np.ndarray]:
        return dict(zip(names, session.run(names, {entry: images.numpy()})))

    return Model(card, path, run, "onnx")


def _openvino(path: Path, threads: int | None) -> Model:
    try:
        import openvino
    except ImportError as error:
        raise UserError(f"{path}: OpenVINO is not installed; pip install 'lit-vision[export]'") from error
    if not path.with_suffix(".bin").is_file():
        raise UserError(f"{path}: its weights {path.with_suffix('.bin').name} are not beside it; copy both files")
    core = openvino.Core()
    core.set_property({"ENABLE_MMAP": False})  # a mapped file that is replaced ends the process
    try:
        model = core.read_model(path)
        text = model.get_rt_info([KEY]).astype(str) if model.has_rt_info([KEY]) else None
        # OpenVINO would compute in bf16 where the CPU has it; results must be those of torch
        settings: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32"}
        if threads:
            settings["INFERENCE_NUM_THREADS"] = threads
        compiled = core.compile_model(model, "CPU", settings)
    except RuntimeError as error:
        raise UserError(
            f"{path}: no OpenVINO model that can be loaded ({_first_line(error)}); export it again"
        ) from error
    card = Card.from_json(text, str(path))
    names = [next(iter(output.get_names()), "") for output in compiled.outputs]
    _check_outputs(path, card, names)

    def run(images: Tensor) -> dict[str, np.ndarray]:
        return {name: value.copy() for name, value in zip(names, compiled(images.numpy()).values())}

    return Model(card, path, run, "openvino")


def _pt2(path: Path, trust: bool) -> Model:
    if not trust:
        raise UserError(
            f"{path}: a .pt2 can run code when it is loaded; give --trust if you made it, or use safetensors, onnx or openvino"
        )
    extra = {f"{KEY}.json": ""}
    try:
        program = torch.export.load(path, extra_files=extra)
    except Exception as error:  # whatever the archive's reader lets through
        raise UserError(
            f"{path}: no exported program that can be loaded ({_first_line(error)}); export it again"
        ) from error
    card = Card.from_json(extra[f"{KEY}.json"], str(path))
    network = program.module()

    def run(images: Tensor) -> dict[str, np.ndarray]:
        with torch.inference_mode():
            return {name: value.numpy() for name, value in zip(card.outputs, network(images))}

    return Model(card, path, run, "pt2")


def _check_outputs(path: Path, card: Card, names: list[str]) -> None:
    if set(card.outputs) - set(names):
        raise UserError(f"{path}: gives {', '.join(names)}, its card says {', '.join(card.outputs)}; export it again")


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:150]
