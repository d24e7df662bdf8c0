"""`lit-vision export`: a run as one file that carries what using it takes, checked against torch before it gets its name.

Exports give raw outputs (classification: logits and features; detection: the heads' outputs), so that one shared piece of code makes
results of them in every runtime. Sizes are fixed, the batch is free.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from lit_vision.convert import quantize
from lit_vision.convert.quantize import artifact_files, save_openvino, silence_nncf
from lit_vision.errors import UserError

FORMATS = {"safetensors": ".safetensors", "onnx": ".onnx", "openvino": ".xml", "pt2": ".pt2", "adapter": ".safetensors"}
PIXELS = 0.5  # largest difference of boxes
EXPORT_TOLERANCE = 1e-4  # largest difference to torch, of scores and of outputs relative to their largest value


def export(method: Any, metadata: Any, form: str, out: Path, judge: Any = None, calibration: int = 300) -> str:
    """Writes one file (OpenVINO: .xml and .bin) and checks it; it gets its name only when it agrees with torch.

    Args:
        method: of `models.load_method`.
        metadata: likewise; goes into the file.
        form: "safetensors", "onnx", "openvino" or "pt2".
        out: the file.
        judge: of `predict.judges.judge_for`, to quantise with; None keeps float32.
        calibration: images of it to calibrate on.

    Returns:
        What was checked, in one line.

    Raises:
        UserError: the outputs differ from torch's, a package is missing, or the disk is full.
    """
    from lit_vision.predict.models import load_model
    from lit_vision.predict.tasks import inference_network

    network = inference_network(method, metadata.task)
    if metadata.task == "detection" and "strides" not in metadata.options and form != "safetensors":
        raise UserError(
            f"--format {form}: the second stage of {metadata.options['head']} depends on the first one's choice, so it has no raw outputs; "
            "use safetensors, or train with model.head fcos or retinanet"
        )
    beside = out.with_name(f".{out.stem}.tmp{out.suffix}")
    try:
        if form == "safetensors":
            write_safetensors(method, metadata, beside)
        else:
            program = exported_program(network, metadata)
            writer = {"onnx": write_onnx, "openvino": write_openvino, "pt2": write_pt2}[form]
            writer(program, metadata, beside)
        said = (
            f"largest difference to torch: {check_parity(network, metadata, load_model(beside, 'cpu', trust=True)):.1e}"
        )
        if judge is not None:
            said += "\n" + quantize.quantize(beside, metadata, form, judge, calibration)
        for old, new in zip(artifact_files(beside), artifact_files(out)):
            os.replace(old, new)
        return said
    except OSError as error:
        raise UserError(
            f"{out}: cannot be written ({error.strerror or error}); make room or choose another place"
        ) from error
    finally:
        for path in artifact_files(beside):
            path.unlink(missing_ok=True)


def exported_program(network: Any, metadata: Any) -> Any:
    """torch.export of a network with a free batch; images (B, 3, S, S) in."""
    import torch

    from lit_vision.predict.tasks import example_input

    batch = torch.export.Dim("batch", min=1, max=65536)
    with torch.no_grad(), silence_nncf():
        return torch.export.export(network.cpu(), (example_input(metadata, 2),), dynamic_shapes={"images": {0: batch}})


def write_safetensors(method: Any, metadata: Any, path: Path, half: bool = False) -> None:
    """The weights under our names, with the settings that build the network around them; `half`: floats as float16."""
    from safetensors.torch import save_file

    from lit_vision.weights.model_metadata import METADATA_KEY

    notes = {
        "format": "pt",
        "lit_vision": type(method).__name__,
        METADATA_KEY: metadata.to_json(),
        "licence": metadata.licence,
    }
    state = {k: v.detach().cpu().contiguous() for k, v in method.state_dict().items()}
    if metadata.task == "features":  # timm's names, as save_backbone has them
        notes.update(lit_vision="Backbone", backbone=json.dumps(method.backbone.config))
        notes.update(mean=json.dumps(metadata.mean), std=json.dumps(metadata.std))
        state = {k.removeprefix("backbone.model."): v for k, v in state.items() if k.startswith("backbone.model.")}
    else:
        if half:
            state = {k: v.half() if v.is_floating_point() else v for k, v in state.items()}
        hyper = {**dict(method.hparams), "backbone_checkpoint": None}
        if hyper.get("tune") == "lora":  # merged
            hyper["tune"] = "full"
        hyper["backbone_args"] = {**(hyper.get("backbone_args") or {}), "pretrained": False}
        notes["hyper_parameters"] = json.dumps(hyper)
    save_file(state, path, metadata=notes)


def write_onnx(program: Any, metadata: Any, path: Path) -> None:
    """ONNX through torch's exporter; the card lies in the model's metadata."""
    import torch

    from lit_vision.weights.model_metadata import METADATA_KEY

    quantize.require_packages("--format onnx", "onnx", "onnxscript")
    with silence_nncf():
        made = torch.onnx.export(
            program, dynamo=True, input_names=["images"], output_names=metadata.outputs, verbose=False
        )
        made.model.metadata_props[METADATA_KEY] = metadata.to_json()
        made.save(str(path))
    beside = path.with_name(path.name + ".data")
    if beside.exists():
        beside.unlink()
        raise UserError(
            "--format: this model is over ONNX's 2 GB for one file, which onnx and openvino need; use safetensors"
        )


def write_openvino(program: Any, metadata: Any, path: Path) -> None:
    """OpenVINO's .xml and .bin in float32, from the ONNX graph; the card lies in its runtime information."""
    quantize.require_packages("--format openvino", "openvino")
    import openvino

    between = path.with_suffix(".onnx")
    try:
        write_onnx(program, metadata, between)
        model = openvino.convert_model(str(between))
    finally:
        between.unlink(missing_ok=True)
    save_openvino(model, metadata, path)


def write_pt2(program: Any, metadata: Any, path: Path) -> None:
    """torch's own archive; its reader can run code, so that predict wants --trust for it."""
    import torch

    from lit_vision.weights.model_metadata import METADATA_KEY

    with silence_nncf():
        torch.export.save(program, str(path), extra_files={f"{METADATA_KEY}.json": metadata.to_json()})


def check_parity(network: Any, metadata: Any, model: Any) -> float:
    """The largest difference between torch and an export, over all outputs and batches of 1 and 5.

    Outputs are compared relative to their largest value (at least 1), class probabilities as they are; of detectors, the scores of all
    anchors as they are, and their boxes in pixels (PIXELS are allowed).

    Raises:
        UserError: it is above EXPORT_TOLERANCE.
    """
    import torch

    from lit_vision.predict.tasks import example_input, max_difference

    worst = 0.0
    for n in (1, 5):
        images = example_input(metadata, n, seed=n)
        with torch.inference_mode():
            wanted = dict(zip(metadata.outputs, (value.float().numpy() for value in network(images))))
        found = model.run(images)
        for name, value in wanted.items():
            if not torch.from_numpy(value).isfinite().all():
                raise UserError(f"--format: the model itself gives {name} that are not finite; check its training")
            if found[name].shape != value.shape:
                raise UserError(
                    f"--format: {name} is {found[name].shape} in the export, {value.shape} in torch; not written"
                )
        gap, pixels = max_difference(metadata, wanted, found)
        if not pixels <= PIXELS:
            raise UserError(
                f"--format: boxes of the export lie {pixels:.2g} pixels from torch's, more than {PIXELS}; not written; use another format"
            )
        worst = max(worst, gap)
    if not worst <= EXPORT_TOLERANCE:
        raise UserError(
            f"--format: the export differs from torch by {worst:.1e}, more than {EXPORT_TOLERANCE:g}, and was not written; use another format"
        )
    return worst


def export_adapter(source: Path, out: Path) -> None:
    """The adapter of a run, without its backbone; see `backbones.adapter_files.save_adapter`.

    Raises:
        UserError: the run has no adapter.
    """
    from lit_vision.predict.models import load_method
    from lit_vision.weights.adapter_io import save_adapter

    method, metadata = load_method(source, merge=False)
    if not getattr(method.backbone, "adapters", None):
        raise UserError(f"--format adapter: {source} was not trained with tune lora or prompt-*; use another format")
    hyper = {**dict(method.hparams), "backbone_checkpoint": None}
    kept = {
        "task": metadata.task,
        "class_names": metadata.class_names,
        "size": metadata.size,
        "crop_pct": metadata.crop_pct,
    }
    save_adapter(out, method, hyper_parameters=hyper, card=kept)
