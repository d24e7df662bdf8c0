"""How long one batch takes in each runtime, against eager PyTorch, on this machine's CPU; the candidates take turns.

Random weights: time does not depend on them. Nothing is promised, since it depends on the machine; rows are left out for what is not
installed (pip install 'lit-vision[export]').
"""

from __future__ import annotations

import contextlib
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

# name: backbone, its arguments, side of the input
MODELS: dict[str, tuple[str, dict[str, Any], int]] = {
    "ViT-Ti/16": ("vit_tiny_patch16_224", {}, 224),
    "ResNet-18": ("resnet18", {}, 224),
}
# name: class in lit_vision.methods, its arguments; detection and segmentation end at their raw outputs, decoding is the same for all
DENSE: dict[str, tuple[str, dict[str, Any]]] = {
    "FCOS on ResNet-18, 256 px": ("Detector", {"num_classes": 20, "img_size": 256, "pyramid_width": 128}),
    "UPerNet on ResNet-18, 256 px": ("Segmenter", {"num_classes": 21, "img_size": 256, "width": 128}),
}
BATCHES = (1, 8)
FORMATS = {"onnx": ".onnx", "openvino": ".xml", "pt2": ".pt2"}


def runtimes(name: str, folder: Path) -> tuple[dict[str, Callable[[Any], Any]], Any]:
    """{runtime: normalised images -> outputs} for one model, exported into a folder; and its card."""
    import torch

    from lit_vision.convert.export import export
    from lit_vision.errors import UserError
    from lit_vision.predict.models import load_method, load_model

    source = (_body if name in MODELS else _run)(name, folder)
    method, metadata = load_method(source)
    found = {"eager": load_model(source, "cpu").run}
    for form, suffix in FORMATS.items():
        with contextlib.suppress(UserError):  # a package that is not installed; a wrong export has no row either
            export(method, metadata, form, folder / f"model{suffix}")
            found[form] = load_model(folder / f"model{suffix}", "cpu", trust=True, threads=torch.get_num_threads()).run
    return found, metadata


def _body(name: str, folder: Path) -> Path:
    """A body without a head, as a file."""
    from lit_vision.backbones.backbone import Backbone
    from lit_vision.weights.load import save_backbone

    backbone, arguments, size = MODELS[name]
    made = Backbone(backbone, **{"img_size": size, **arguments})
    return save_backbone(folder / "body.safetensors", made, made.data_config["mean"], made.data_config["std"])


def _run(name: str, folder: Path) -> Path:
    """A detector or segmenter, as a checkpoint."""
    import torch

    from lit_vision import methods

    kind, arguments = DENSE[name]
    made = getattr(methods, kind)("resnet18", **arguments)
    path = folder / "model.ckpt"
    torch.save({"state_dict": made.state_dict(), "hyper_parameters": dict(made.hparams)}, path)
    return path


def measure(repeats: int) -> list[dict[str, Any]]:
    """Milliseconds per image of each runtime, and the ratio to eager PyTorch of the same turn; medians."""
    from lit_vision.predict.tasks import example_input

    rows = []
    for name in (*MODELS, *DENSE):
        with tempfile.TemporaryDirectory() as folder:
            found, metadata = runtimes(name, Path(folder))
            for n in BATCHES:
                images = example_input(metadata, n)
                times: dict[str, list[float]] = {key: [] for key in found}
                for turn in range(max(3, repeats) + 1):
                    for key, run in found.items():  # taking turns: a busy moment hits all of them
                        start = time.perf_counter()
                        run(images)
                        if turn:
                            times[key].append(time.perf_counter() - start)
                for key, taken in times.items():
                    value = 1000 * statistics.median(taken) / n
                    rows.append(_row(f"{name}, {key}, batch {n}", value, "ms/image", "-"))
                    if key != "eager":
                        ratio = statistics.median(one / other for one, other in zip(taken, times["eager"]))
                        rows.append(_row(f"{name}, {key}, batch {n}", ratio, "x", "eager PyTorch"))
    return rows


def _row(what: str, value: float, unit: str, against: str) -> dict[str, Any]:
    return {"what": what, "value": value, "unit": unit, "against": against, "target": "-", "met": None}
