"""int8 after training (NNCF), with the accuracy before and after: the part of `lit-vision export` that `--int8` asks for."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lit_vision.errors import UserError

LOSS = 0.01  # an int8 model that loses more accuracy than this is named
EXTRA = "pip install 'lit-vision[export]'"


def require_packages(flag: str, *names: str) -> None:
    """Import them now, and refuse early what would fail late.

    Args:
        flag: what needs them, for the message.
        names: of the packages, as they are imported.

    Raises:
        UserError: names the packages that are missing, or the one that is broken.
    """
    if missing := [name for name in names if importlib.util.find_spec(name) is None]:
        are = "is" if len(missing) == 1 else "are"
        raise UserError(f"{flag}: {' and '.join(missing)} {are} not installed; {EXTRA}")
    for name in names:
        try:
            with silence_nncf():
                importlib.import_module(name)
        except ImportError as error:
            said = " ".join(str(error).split())[:150]
            raise UserError(f"{flag}: {name} cannot be imported ({said}); install it again: {EXTRA}") from error


def quantize(path: Path, metadata: Any, form: str, judge: Any, calibration: int) -> str:
    """Post-training quantisation in place by NNCF, with the task's measure before and after.

    Args:
        path: the float32 export; replaced.
        metadata: gets precision "int8" and, under options["int8"], what was measured.
        form: "onnx" or "openvino".
        judge: of `predict.judges.judge_for`.
        calibration: images, evenly spaced over the training split.

    Returns:
        What it lost, in one line.
    """
    import nncf

    from lit_vision.predict.models import load_model
    from lit_vision.weights.model_metadata import METADATA_KEY

    before_model = load_model(path, "cpu")
    samples = [before_model.normalized(pixels).numpy() for pixels in judge.calibration(calibration)]
    if not samples:
        raise UserError("--int8: none of the images to calibrate on can be read; mend them or give another folder")
    kind = nncf.ModelType.TRANSFORMER if "vit" in metadata.options.get("family", "") else None
    before = judge.measure(before_model)
    size = sum(p.stat().st_size for p in artifact_files(path))
    nncf.set_log_level(logging.ERROR)
    with silence_nncf():
        if form == "openvino":
            import openvino

            core = openvino.Core()
            core.set_property({"ENABLE_MMAP": False})  # the file is about to be replaced
            model = core.read_model(path)
            made = nncf.quantize(model, nncf.Dataset(samples), subset_size=len(samples), model_type=kind)
        else:
            import onnx

            model = onnx.load(str(path))
            data = nncf.Dataset([{"images": sample} for sample in samples])
            made = nncf.quantize(model, data, subset_size=len(samples), model_type=kind)
    metadata.precision = "int8"
    note = {"metric": judge.metric, "before": before, "split": judge.split, "calibrated_on": len(samples)}

    def write(after: float | None) -> None:
        metadata.options["int8"] = {**note, "after": after}
        if form == "openvino":
            save_openvino(made, metadata, path)
        else:
            import onnx

            onnx.helper.set_model_props(made, {METADATA_KEY: metadata.to_json()})
            onnx.save(made, str(path))

    write(None)
    after = judge.measure(load_model(path, "cpu"))
    write(after)
    lost = before - after
    small = sum(p.stat().st_size for p in artifact_files(path))
    text = f"int8: {judge.metric} {before:.4f} before, {after:.4f} after on {judge.images} images of {judge.split}; {size / 1e6:.1f} to {small / 1e6:.1f} MB"
    return text + (f"; it loses {100 * lost:.1f} points" if lost > LOSS else "")


def artifact_files(path: Path) -> list[Path]:
    """A model's files, the one with the weights first."""
    return [path.with_suffix(".bin"), path] if path.suffix == ".xml" else [path]


def save_openvino(model: Any, metadata: Any, path: Path) -> None:
    """Writes .xml and .bin in float32, with the card inside."""
    import openvino

    from lit_vision.weights.model_metadata import METADATA_KEY

    model.set_rt_info(metadata.to_json(), [METADATA_KEY])
    openvino.save_model(model, str(path), compress_to_fp16=False)


@contextlib.contextmanager
def silence_nncf() -> Iterator[None]:
    """Exporters print pages; what matters is raised."""
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
