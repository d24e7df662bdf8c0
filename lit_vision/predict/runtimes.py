"""`Model`, a loaded model of any runtime, and the ONNX Runtime, OpenVINO and torch.export backends."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lit_vision.data.batch import normalize
from lit_vision.errors import UserError
from lit_vision.io.telemetry import block_telemetry
from lit_vision.weights.model_metadata import METADATA_KEY, ModelMetadata
from lit_vision.weights.protected_files import held_file


class Model:
    """A loaded model: pixels in, named arrays out.

    Attributes:
        metadata: task, classes, normalization, input size, ...
        path: the file.
        method: the method's network or a FeatureModel; None if the file has no torch network.
        runtime: "torch", "onnx", "openvino" or "pt2".
        device: where the pixels are normalized and the network runs; the CPU for all runtimes but torch.
        encode_texts: N texts to unit vectors (N, E) in the space of the features; None if the model has no texts.
    """

    def __init__(
        self,
        metadata: ModelMetadata,
        path: Path,
        run: Callable[[Tensor], dict[str, np.ndarray]],
        runtime: str,
        method: nn.Module | None = None,
        device: torch.device | None = None,
        encode_texts: Callable[[list[str]], Tensor] | None = None,
    ) -> None:
        self.metadata, self.path, self.runtime, self.method, self._run = metadata, path, runtime, method, run
        self.device = device or torch.device("cpu")
        self.encode_texts = encode_texts
        self._mean = torch.tensor(metadata.mean, device=self.device)
        self._std = torch.tensor(metadata.std, device=self.device)

    def normalized(self, pixels: np.ndarray) -> Tensor:
        """Return (N, S, S, 3) uint8 pixels as the network's input, (N, C, S, S) float32 on `device`.

        A network of one channel takes the first of three equal ones. One of videos takes clips, (N, T, S, S, 3).

        Raises:
            UserError: images for a network of videos.
        """
        if self.metadata.task == "video" and pixels.ndim == 4:
            raise UserError(f"{self.path}: takes clips of videos, not images; use lit-vision predict with a video")
        pixels = pixels[..., : len(self.metadata.mean)]
        images = torch.from_numpy(pixels).to(self.device)  # a quarter of the bytes of the floats
        return normalize(images[:, None], self._mean, self._std)[:, 0]

    def __call__(self, pixels: np.ndarray) -> dict[str, np.ndarray]:
        """Return the outputs by name for (N, S, S, 3) uint8 pixels.

        Raises:
            UserError: an output is not finite.
        """
        outputs = self.run(self.normalized(pixels))
        for name, value in outputs.items():
            if not np.isfinite(value).all():
                raise UserError(f"{self.path}: its {name} are not finite; check its training")
        return outputs

    def run(self, images: Tensor) -> dict[str, np.ndarray]:
        """Return the outputs by name for normalized images (N, 3, S, S)."""
        return self._run(images)


def open_onnx(path: Path, threads: int | None) -> Model:
    """Load an .onnx file in ONNX Runtime, on the CPU.

    Raises:
        UserError: no ONNX Runtime, no ONNX model, or no metadata in it.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise UserError(f"{path}: ONNX Runtime is not installed; pip install 'lit-vision[export]'") from error
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if threads:
        options.intra_op_num_threads = threads
    held = held_file(path)
    try:
        source = str(path) if held is None else held.parts[0]
        session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime has many exception classes and exports none of them
        raise UserError(f"{path}: is not a valid ONNX model ({_first_line(error)}); export it again") from error
    metadata = ModelMetadata.from_json(session.get_modelmeta().custom_metadata_map.get(METADATA_KEY), str(path))
    input_name, names = session.get_inputs()[0].name, [o.name for o in session.get_outputs()]
    _check_outputs(path, metadata, names)

    def run(images: Tensor) -> dict[str, np.ndarray]:
        return dict(zip(names, session.run(names, {input_name: images.numpy()})))

    return Model(metadata, path, run, "onnx")


def open_openvino(path: Path, threads: int | None) -> Model:
    """Load an .xml file and its .bin in OpenVINO, on the CPU in float32.

    Raises:
        UserError: no OpenVINO, no .bin, no valid model, or no metadata in it.
    """
    block_telemetry()
    try:
        import openvino
    except ImportError as error:
        raise UserError(f"{path}: OpenVINO is not installed; pip install 'lit-vision[export]'") from error
    held = held_file(path)
    if held is None and not path.with_suffix(".bin").is_file():
        raise UserError(
            f"{path}: its weights {path.with_suffix('.bin').name} are not in the same folder; copy both files"
        )
    core = openvino.Core()
    core.set_property({"ENABLE_MMAP": False})  # replacing a mapped file kills the process
    try:
        model = core.read_model(path) if held is None else core.read_model(*map(io.BytesIO, held.parts))
        text = model.get_rt_info([METADATA_KEY]).astype(str) if model.has_rt_info([METADATA_KEY]) else None
        # OpenVINO would compute in bf16 where the CPU has it; results must be those of torch
        settings: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32"}
        if threads:
            settings["INFERENCE_NUM_THREADS"] = threads
        compiled = core.compile_model(model, "CPU", settings)
    except RuntimeError as error:
        raise UserError(f"{path}: is not a valid OpenVINO model ({_first_line(error)}); export it again") from error
    metadata = ModelMetadata.from_json(text, str(path))
    names = [next(iter(output.get_names()), "") for output in compiled.outputs]
    _check_outputs(path, metadata, names)

    def run(images: Tensor) -> dict[str, np.ndarray]:
        return {name: value.copy() for name, value in zip(names, compiled(images.numpy()).values())}

    return Model(metadata, path, run, "openvino")


def open_pt2(path: Path, trusted: bool) -> Model:
    """Load a .pt2 archive, only if it is trusted: its reader unpickles, which can run code.

    Raises:
        UserError: not trusted, no valid archive, or no metadata in it.
    """
    if not trusted:
        raise UserError(
            f"{path}: loading a .pt2 can run code that is in it; give --trust_pt2 if you trust where it is from, "
            "or use safetensors, onnx or openvino"
        )
    held = held_file(path)
    if not zipfile.is_zipfile(
        path if held is None else io.BytesIO(held.parts[0])
    ):  # torch.export.load would log a traceback first
        raise UserError(f"{path}: is not a valid torch.export archive (no zip file); export it again")
    extra = {f"{METADATA_KEY}.json": ""}
    try:
        program = torch.export.load(path if held is None else io.BytesIO(held.parts[0]), extra_files=extra)
    except Exception as error:  # torch.export.load documents no exceptions
        raise UserError(
            f"{path}: is not a valid torch.export archive ({_first_line(error)}); export it again"
        ) from error
    metadata = ModelMetadata.from_json(extra[f"{METADATA_KEY}.json"], str(path))
    network = program.module()

    def run(images: Tensor) -> dict[str, np.ndarray]:
        with torch.inference_mode():
            return {name: value.numpy() for name, value in zip(metadata.outputs, network(images))}

    return Model(metadata, path, run, "pt2")


def _check_outputs(path: Path, metadata: ModelMetadata, names: list[str]) -> None:
    if set(metadata.outputs) - set(names):
        raise UserError(
            f"{path}: has the outputs {', '.join(names)}, its metadata lists {', '.join(metadata.outputs)}; "
            "export it again"
        )


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:150]
