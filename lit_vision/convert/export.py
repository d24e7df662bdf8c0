"""Export a run to one self-contained model file, checked against torch before it appears under its name.

Exports return raw outputs (classification: logits and features; detection: the heads' outputs), which the same code
decodes for every runtime. The image size is fixed, the batch size is not.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lit_vision.convert import quantize
from lit_vision.convert.quantize import save_openvino, silence_exporters
from lit_vision.errors import UserError
from lit_vision.io.atomic import atomic_write

if TYPE_CHECKING:
    from torch import nn
    from torch.export import ExportedProgram

    from lit_vision.predict.accuracy import AccuracyCheck
    from lit_vision.predict.runtimes import Model
    from lit_vision.weights.model_metadata import ModelMetadata

# format: suffix
FORMATS = {"safetensors": ".safetensors", "onnx": ".onnx", "openvino": ".xml", "pt2": ".pt2", "adapter": ".safetensors"}
BOX_TOLERANCE = 0.5  # largest difference of boxes to torch's, pixels
HALF_BOX_TOLERANCE, HALF_TOLERANCE = 2.0, 1e-2  # the same two for half precision, which keeps 11 bits
EXPORT_TOLERANCE = 1e-4  # largest difference to torch, of scores and of outputs relative to their largest value


def export(
    method: nn.Module,
    metadata: ModelMetadata,
    file_format: str,
    out: Path,
    check: AccuracyCheck | None = None,
    calibration: int = 300,
    *,
    half: bool = False,
    opset: int | None = None,
) -> str:
    """Write one file (OpenVINO: .xml and .bin); it appears under its name only if its outputs agree with torch's.

    Args:
        method: from `models.load_method`, or a classifier from `zero_shot.zero_shot_network` (not for safetensors).
        metadata: likewise; stored in the file.
        file_format: "safetensors", "onnx", "openvino" or "pt2".
        out: the file.
        check: from `accuracy_check_for`, to quantize to int8; None keeps float32.
        calibration: number of its images to calibrate on.
        half: half precision (onnx: weights and operations; openvino: weights).
        opset: version of ONNX's operators; None is the exporter's.

    Returns:
        A line per check with its result.

    Raises:
        UserError: the outputs differ from torch's, a package is missing, or the disk is full.
    """
    from lit_vision.predict.models import load_model
    from lit_vision.predict.tasks import TASKS, inference_network
    from lit_vision.predict.zero_shot import ZeroShotInference

    network = method if isinstance(method, ZeroShotInference) else inference_network(method, metadata.task)
    if metadata.task == "detection" and "strides" not in metadata.options and file_format != "safetensors":
        raise UserError(
            f"--format {file_format}: {metadata.options['head']} has two stages and so no raw outputs to export; "
            "use safetensors, or train with model.head fcos or retinanet"
        )
    if file_format != "safetensors" and not TASKS[metadata.task].traced:
        raise UserError(
            f"--format {file_format}: a model for {metadata.task} makes its result in a loop and cannot be exported as "
            "a graph; use safetensors"
        )
    lines: list[str] = []
    if half:
        metadata.precision = "fp16"

    def write(path: Path) -> None:
        if file_format == "safetensors":
            write_safetensors(method, metadata, path)
        else:
            program = exported_program(network, metadata)
            if file_format == "onnx":
                write_onnx(program, metadata, path, half, opset)
            elif file_format == "openvino":
                write_openvino(program, metadata, path, half)
            else:
                write_pt2(program, metadata, path)
        difference = check_parity(network, metadata, load_model(path, "cpu", trust_pt2=True))
        lines.append(f"largest difference to torch: {difference:.1e}")
        if check is not None:
            lines.append(quantize.quantize(path, metadata, file_format, check, calibration))

    atomic_write(out, write)
    return "\n".join(lines)


def exported_program(network: nn.Module, metadata: ModelMetadata) -> ExportedProgram:
    """Return torch.export's program of a network for images (B, C, S, S) with any B."""
    import torch

    from lit_vision.predict.tasks import example_input

    batch = torch.export.Dim("batch", min=1, max=65536)
    with torch.no_grad(), silence_exporters():
        return torch.export.export(network.cpu(), (example_input(metadata, 2),), dynamic_shapes={"images": {0: batch}})


def write_safetensors(method: nn.Module, metadata: ModelMetadata, path: Path, half: bool = False) -> None:
    """Write the weights under this project's names, with the hyper-parameters that rebuild the network.

    Args:
        method: from `models.load_method`.
        metadata: likewise.
        path: the file.
        half: store floats as float16; not for features.
    """
    from lit_vision.io.safetensors_file import save_tensors
    from lit_vision.weights.model_metadata import METADATA_KEY

    header = {
        "format": "pt",
        "lit_vision": getattr(method, "method_name", "Backbone"),
        METADATA_KEY: metadata.to_json(),
        "license": metadata.license,
    }
    state = {k: v.detach().cpu().contiguous() for k, v in method.state_dict().items()}
    if metadata.task == "features":  # timm's names, as in files of save_backbone
        header.update(lit_vision="Backbone", backbone=json.dumps(method.backbone.config))
        header.update(mean=json.dumps(metadata.mean), std=json.dumps(metadata.std))
        state = {k.removeprefix("backbone.model."): v for k, v in state.items() if k.startswith("backbone.model.")}
    else:
        if half:
            state = {k: v.half() if v.is_floating_point() else v for k, v in state.items()}
        hyper = {**dict(method.hparams), "backbone_checkpoint": None}
        if hyper.get("tune") == "lora":  # merged
            hyper["tune"] = "full"
        hyper["backbone_args"] = {**(hyper.get("backbone_args") or {}), "pretrained": False}
        header["hyper_parameters"] = json.dumps(hyper)
    save_tensors(state, path, header)


def write_onnx(
    program: ExportedProgram, metadata: ModelMetadata, path: Path, half: bool = False, opset: int | None = None
) -> None:
    """Write ONNX with torch's exporter, with the metadata among the model's properties; axis 0 is named "batch".

    Args:
        program: from `exported_program`.
        metadata: of the model.
        path: the file.
        half: weights and operations in float16, inputs and outputs in float32.
        opset: version of the operators; None is the exporter's.

    Raises:
        UserError: a package is missing, the model is too large, or it cannot be written in this version of operators.
    """
    import torch

    from lit_vision.weights.model_metadata import METADATA_KEY

    quantize.require_packages("--format onnx", "onnx", "onnxscript")
    with silence_exporters():
        onnx_program = torch.onnx.export(
            program,
            dynamo=True,
            input_names=["images"],
            output_names=metadata.outputs,
            verbose=False,
            opset_version=opset,
        )
        written = onnx_program.model.opset_imports[""]
        if opset not in (None, written):
            raise UserError(f"--opset {opset}: this model cannot be written in it; leave it out, or try 18 or more")
        _name_batch_axis(onnx_program.model.graph)
        for node in onnx_program.model.graph.all_nodes():
            node.metadata_props.clear()  # stack traces of the exporter, with absolute paths of this machine
        onnx_program.model.metadata_props[METADATA_KEY] = metadata.to_json()
        onnx_program.save(str(path))
    if half:
        quantize.require_packages("--half", "onnxruntime")
        import onnx
        from onnxruntime.transformers.float16 import convert_float_to_float16

        with silence_exporters():
            onnx.save(convert_float_to_float16(onnx.load(path), keep_io_types=True), str(path))
    external_data = path.with_name(path.name + ".data")
    if external_data.exists():
        external_data.unlink()
        raise UserError(
            "--format: this model exceeds ONNX's 2 GB for one file, which onnx and openvino need; use safetensors"
        )


def _name_batch_axis(graph: Any) -> None:
    """Name the free axis of all tensors of an onnx_ir graph "batch"; the exporter calls it s34 or the like."""
    import onnx_ir

    symbol = re.compile(rf"\b{re.escape(str(graph.inputs[0].shape[0].value))}\b")
    values = [*graph.inputs, *(value for node in graph.all_nodes() for value in node.outputs)]
    for value in values:
        if value.shape is not None:
            # a size without a name is unknown: two of one name would be taken for equal
            named = [d if isinstance(d, int) or d.value is None else symbol.sub("batch", d.value) for d in value.shape]
            value.shape = onnx_ir.Shape(named)


def write_openvino(program: ExportedProgram, metadata: ModelMetadata, path: Path, half: bool = False) -> None:
    """Write OpenVINO's .xml and .bin from the ONNX graph, with the metadata in its runtime information."""
    quantize.require_packages("--format openvino", "openvino")
    import openvino

    onnx_path = path.with_suffix(".onnx")
    try:
        write_onnx(program, metadata, onnx_path)
        model = openvino.convert_model(str(onnx_path))
    finally:
        onnx_path.unlink(missing_ok=True)
    save_openvino(model, metadata, path, half)


def write_pt2(program: ExportedProgram, metadata: ModelMetadata, path: Path) -> None:
    """Write a torch.export archive; loading one can run code, so it needs --trust_pt2."""
    import torch

    from lit_vision.weights.model_metadata import METADATA_KEY

    with silence_exporters():
        torch.export.save(program, str(path), extra_files={f"{METADATA_KEY}.json": metadata.to_json()})


def check_parity(network: nn.Module, metadata: ModelMetadata, model: Model) -> float:
    """Return the largest difference between torch and an export, over all outputs and batches of 1 and 5 images.

    Of a torch file whose weights have the same bits, one image is enough.

    Outputs are compared relative to their largest value (at least 1), class probabilities as they are; of detectors,
    the scores of all anchors as they are, and their boxes in pixels (up to BOX_TOLERANCE is allowed).

    Raises:
        UserError: it is above EXPORT_TOLERANCE, or HALF_TOLERANCE (HALF_BOX_TOLERANCE) in half precision.
    """
    import torch

    from lit_vision.predict.tasks import example_input, max_difference

    in_pixels, relative = BOX_TOLERANCE, EXPORT_TOLERANCE
    if metadata.precision == "fp16":
        in_pixels, relative = HALF_BOX_TOLERANCE, HALF_TOLERANCE
    worst = 0.0
    same_bits = model.runtime == "torch" and model.metadata.weights == metadata.weights  # sha256 of what was read back
    for n in (1,) if same_bits else (1, 5):
        images = example_input(metadata, n, seed=n)
        with torch.inference_mode():
            wanted = dict(zip(metadata.outputs, (value.float().numpy() for value in network(images))))
        found = model.run(images)
        for name, value in wanted.items():
            if not torch.from_numpy(value).isfinite().all():
                raise UserError(f"--format: the model's {name} are not finite in torch either; check its training")
            if found[name].shape != value.shape:
                raise UserError(
                    f"--format: not written: {name} is {found[name].shape} in the export, {value.shape} in torch; "
                    "use another format"
                )
        gap, pixels = max_difference(metadata, wanted, found)
        if not pixels <= in_pixels:
            raise UserError(
                f"--format: not written: boxes of the export are {pixels:.2g} pixels from torch's, more than "
                f"{in_pixels}; use another format"
            )
        worst = max(worst, gap)
    if not worst <= relative:
        raise UserError(
            f"--format: not written: the export differs from torch by {worst:.1e}, more than {relative:g}; "
            "use another format"
        )
    return worst


def export_adapter(source: Path, out: Path) -> None:
    """Write the adapter of a run, without its backbone (see `weights.adapter_io.save_adapter`).

    Raises:
        UserError: the run has no adapter.
    """
    from lit_vision.predict.models import load_method
    from lit_vision.weights.adapter_io import save_adapter

    method, metadata = load_method(source, merge=False)
    if not getattr(method.backbone, "adapters", None):
        raise UserError(f"--format adapter: {source} was not trained with tune lora or prompt-*; use another format")
    hyper = {**dict(method.hparams), "backbone_checkpoint": None}
    stored = {
        "task": metadata.task,
        "class_names": metadata.class_names,
        "size": metadata.size,
        "crop_pct": metadata.crop_pct,
        **({"value_range": metadata.value_range} if metadata.value_range else {}),
    }
    save_adapter(out, method, hyper_parameters=hyper, card=stored)  # keys of the file: kept, older adapters have them
