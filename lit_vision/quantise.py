"""int8 after training (NNCF), with the accuracy before and after: the part of `lit-vision export` that `--int8` asks for."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lit_vision.errors import UserError

LOSS = 0.01  # an int8 model that loses more accuracy than this is named
EXTRA = "pip install 'lit-vision[export]'"


def data_for(root: str) -> Any:
    """A scanned folder with classes."""
    from lit_vision.data.folder import scan

    try:
        with quiet():
            import nncf  # noqa: F401
            import openvino  # noqa: F401
    except ImportError as error:
        raise UserError(f"--int8: nncf and openvino are not installed; {EXTRA}") from error
    folder = scan(root)
    folder.need_classes("measuring what int8 loses")
    return folder


def check_classes(root: str, folder: Any, card: Any) -> None:
    """Refuse another task, or a folder with classes that the model does not know."""
    if card.task != "classification":
        raise UserError(f"--int8: measures classification, this model is for {card.task}; export it without --int8")
    if strange := [name for name in folder.classes if name not in card.class_names]:
        raise UserError(f"--int8 {root}: class {strange[0]} is none of the model's; give the folder it was trained on")


def quantise(path: Path, card: Any, form: str, folder: Any, calibration: int) -> str:
    """Post-training quantisation in place by NNCF, with the accuracy before and after.

    Args:
        path: the float32 export; replaced.
        card: gets precision "int8" and, under options["int8"], what was measured.
        form: "onnx" or "openvino".
        folder: of `scan`. Calibrated on its training split, measured on its test split, else validation, else training.
        calibration: images, evenly spaced over the split.

    Returns:
        What it lost, in one line.
    """
    import nncf
    import numpy as np

    from lit_vision.card import KEY
    from lit_vision.predict.inputs import Inputs, batches
    from lit_vision.predict.models import load_model
    from lit_vision.predict.tasks import prepare_for

    before_model = load_model(path, "cpu")
    measured = next(name for name in ("test", "val", *folder.splits) if name in folder.splits)
    train = folder.splits.get("train", folder.splits[measured])
    rows = np.unique(np.linspace(0, len(train) - 1, min(calibration, len(train))).round().astype(int))
    chosen = Inputs([train.paths[i] for i in rows], str(folder.root))
    found = batches(chosen, prepare_for(card), 1)
    samples = [before_model.normalised(batch.pixels).numpy() for batch in found if batch.pixels is not None]
    if not samples:
        raise UserError(f"--int8 {folder.root}: none of the {len(chosen)} images to calibrate on can be read")
    kind = nncf.ModelType.TRANSFORMER if "vit" in card.options.get("family", "") else None
    before = accuracy(before_model, folder, measured)
    size = sum(p.stat().st_size for p in files_of(path))
    nncf.set_log_level(logging.ERROR)
    with quiet():
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
    card.precision = "int8"
    note = {"before": before, "split": measured, "calibrated_on": len(samples)}

    def write(after: float | None) -> None:
        card.options["int8"] = {**note, "after": after}
        if form == "openvino":
            save_openvino(made, card, path)
        else:
            import onnx

            onnx.helper.set_model_props(made, {KEY: card.to_json()})
            onnx.save(made, str(path))

    write(None)
    after = accuracy(load_model(path, "cpu"), folder, measured)
    write(after)
    lost, images = before - after, len(folder.splits[measured])
    small = sum(p.stat().st_size for p in files_of(path))
    text = f"int8: top-1 {before:.4f} before, {after:.4f} after on {images} images of {measured}; {size / 1e6:.1f} to {small / 1e6:.1f} MB"
    return text + (f"; it loses {100 * lost:.1f} points" if lost > LOSS else "")


def accuracy(model: Any, folder: Any, split: str) -> float:
    """Share of a split's images whose class comes out first, in [0, 1].

    Raises:
        UserError: an image cannot be read.
    """
    import numpy as np

    from lit_vision.predict.inputs import Inputs, batches
    from lit_vision.predict.tasks import prepare_for

    part = folder.splits[split]
    number = [model.card.class_names.index(name) for name in folder.classes]
    truth = np.array([number[i] if i >= 0 else -1 for i in part.labels])
    right, at = 0, 0
    for batch in batches(Inputs(part.paths, str(folder.root)), prepare_for(model.card), 32):
        if batch.bad:
            raise UserError(f"{folder.root}/{batch.bad[0][0]}: {batch.bad[0][1]}")
        right += int((model(batch.pixels)["logits"].argmax(1) == truth[batch.first : batch.after]).sum())
        at = batch.after
    return right / max(at, 1)


def files_of(path: Path) -> list[Path]:
    """A model's files, the one with the weights first."""
    return [path.with_suffix(".bin"), path] if path.suffix == ".xml" else [path]


def save_openvino(model: Any, card: Any, path: Path) -> None:
    """Writes .xml and .bin in float32, with the card inside."""
    import openvino

    from lit_vision.card import KEY

    model.set_rt_info(card.to_json(), [KEY])
    openvino.save_model(model, str(path), compress_to_fp16=False)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
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
