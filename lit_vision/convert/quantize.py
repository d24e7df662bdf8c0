"""Post-training quantization to int8 with NNCF, with the accuracy before and after (`lit-vision export --int8`)."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lit_vision.errors import UserError
from lit_vision.io.telemetry import block_telemetry

if TYPE_CHECKING:
    from lit_vision.predict.accuracy import AccuracyCheck
    from lit_vision.weights.model_metadata import ModelMetadata

REPORTED_LOSS = 0.01  # a larger loss of accuracy is reported
INSTALL = "pip install 'lit-vision[export]'"


def require_packages(flag: str, *names: str) -> None:
    """Import optional packages, so that a missing one is reported before the work begins.

    Args:
        flag: that needs them, for the message.
        names: of the packages, as they are imported.

    Raises:
        UserError: names the packages that are missing, or the one that is broken.
    """
    if missing := [name for name in names if importlib.util.find_spec(name) is None]:
        verb = "is" if len(missing) == 1 else "are"
        raise UserError(f"{flag}: {' and '.join(missing)} {verb} not installed; {INSTALL}")
    block_telemetry()
    for name in names:
        try:
            with silence_exporters():
                importlib.import_module(name)
        except ImportError as error:
            reason = " ".join(str(error).split())[:150]
            raise UserError(f"{flag}: {name} cannot be imported ({reason}); install it again: {INSTALL}") from error


def quantize(path: Path, metadata: ModelMetadata, file_format: str, check: AccuracyCheck, calibration: int) -> str:
    """Quantize an export in place with NNCF, and measure its accuracy before and after.

    Args:
        path: the float32 export; replaced.
        metadata: gets precision "int8" and the accuracies, under options["int8"].
        file_format: "onnx" or "openvino".
        check: from `accuracy_check_for`.
        calibration: number of images, evenly spaced over the training split.

    Returns:
        Accuracies and sizes before and after, in one line.

    Raises:
        UserError: none of the calibration images can be read.
    """
    import nncf

    from lit_vision.predict.models import load_model
    from lit_vision.weights.model_metadata import METADATA_KEY

    before_model = load_model(path, "cpu")
    samples = [before_model.normalized(pixels).numpy() for pixels in check.calibration(calibration)]
    if not samples:
        raise UserError("--int8: none of the calibration images can be read; repair them or give another folder")
    kind = nncf.ModelType.TRANSFORMER if "vit" in metadata.options.get("family", "") else None
    before = check.measure(before_model)
    size = sum(p.stat().st_size for p in artifact_files(path))
    nncf.set_log_level(logging.ERROR)
    with silence_exporters():
        if file_format == "openvino":
            import openvino

            core = openvino.Core()
            core.set_property({"ENABLE_MMAP": False})  # the file is about to be replaced
            model = core.read_model(path)
            quantized = nncf.quantize(model, nncf.Dataset(samples), subset_size=len(samples), model_type=kind)
        else:
            import onnx

            model = onnx.load(str(path))
            data = nncf.Dataset([{"images": sample} for sample in samples])
            quantized = nncf.quantize(model, data, subset_size=len(samples), model_type=kind)
    metadata.precision = "int8"
    record = {"metric": check.metric, "before": before, "split": check.split, "calibrated_on": len(samples)}

    def write(after: float | None) -> None:
        metadata.options["int8"] = {**record, "after": after}
        if file_format == "openvino":
            save_openvino(quantized, metadata, path)
        else:
            import onnx

            onnx.helper.set_model_props(quantized, {METADATA_KEY: metadata.to_json()})
            onnx.save(quantized, str(path))

    write(None)
    after = check.measure(load_model(path, "cpu"))
    write(after)
    loss = before - after
    new_size = sum(p.stat().st_size for p in artifact_files(path))
    text = (
        f"int8: {check.metric} {before:.4f} before, {after:.4f} after on {check.images} images of {check.split}; "
        f"{size / 1e6:.1f} to {new_size / 1e6:.1f} MB"
    )
    return text + (f"; it loses {100 * loss:.1f} points" if loss > REPORTED_LOSS else "")


def artifact_files(path: Path) -> list[Path]:
    """Return the files of an exported model, the one with the weights first."""
    return [path.with_suffix(".bin"), path] if path.suffix == ".xml" else [path]


def save_openvino(model: Any, metadata: ModelMetadata, path: Path, half: bool = False) -> None:
    """Write an openvino.Model as .xml and .bin, in float32 or with its weights in float16, and the metadata."""
    import openvino

    from lit_vision.weights.model_metadata import METADATA_KEY

    model.set_rt_info(metadata.to_json(), [METADATA_KEY])
    openvino.save_model(model, str(path), compress_to_fp16=half)


@contextlib.contextmanager
def silence_exporters() -> Iterator[None]:
    """Silence the output and warnings of exporters and NNCF; their errors are raised."""
    names = ("torch.onnx", "onnxscript", "onnx_ir", "nncf", "torch.export", "torch.utils.cpp_extension")
    levels = {name: logging.getLogger(name).level for name in names}
    for name in names:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
