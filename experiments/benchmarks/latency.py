"""Latency of one batch in each runtime, compared with eager PyTorch, on the CPU; the candidates take turns.

Random weights: time does not depend on them. There are no targets, since the numbers depend on the machine; runtimes
that are not installed have no rows (pip install 'lit-vision[export]').
"""

from __future__ import annotations

import contextlib
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks._rows import make_row

# name: backbone, its arguments, side of the input
MODELS: dict[str, tuple[str, dict[str, Any], int]] = {
    "ViT-Ti/16": ("vit_tiny_patch16_224", {}, 224),
    "ResNet-18": ("resnet18", {}, 224),
}
# name: class in lit_vision.methods, its arguments; the raw outputs are timed, decoding is the same for all runtimes
DENSE: dict[str, tuple[str, dict[str, Any]]] = {
    "FCOS on ResNet-18, 256 px": ("Detector", {"num_classes": 20, "img_size": 256, "pyramid_width": 128}),
    "UPerNet on ResNet-18, 256 px": ("Segmenter", {"num_classes": 21, "img_size": 256, "width": 128}),
}
BATCHES = (1, 8)
FORMATS = {"onnx": ".onnx", "openvino": ".xml", "pt2": ".pt2"}


def runtimes(name: str, folder: Path) -> tuple[dict[str, Callable[[Any], Any]], Any]:
    """Export one model to a folder; return {runtime: normalized images -> outputs}, and its metadata."""
    import torch

    from lit_vision.convert.export import export
    from lit_vision.errors import UserError
    from lit_vision.predict.models import load_method, load_model

    source = (_save_backbone if name in MODELS else _save_checkpoint)(name, folder)
    method, metadata = load_method(source)
    found = {"eager": load_model(source, "cpu").run}
    for form, suffix in FORMATS.items():
        with contextlib.suppress(UserError):  # a package that is not installed; a wrong export has no row either
            export(method, metadata, form, folder / f"model{suffix}")
            found[form] = load_model(
                folder / f"model{suffix}", "cpu", trust_pt2=True, threads=torch.get_num_threads()
            ).run
    return found, metadata


def _save_backbone(name: str, folder: Path) -> Path:
    """Write a backbone without a head to a file; return its path."""
    from lit_vision.backbones.backbone import Backbone
    from lit_vision.weights.load import save_backbone

    backbone, arguments, size = MODELS[name]
    model = Backbone(backbone, **{"img_size": size, **arguments})
    return save_backbone(folder / "backbone.safetensors", model, model.data_config["mean"], model.data_config["std"])


def _save_checkpoint(name: str, folder: Path) -> Path:
    """Write a detector or segmenter to a checkpoint; return its path."""
    import torch

    from lit_vision import methods

    kind, arguments = DENSE[name]
    model = getattr(methods, kind)("resnet18", **arguments)
    path = folder / "model.ckpt"
    torch.save({"state_dict": model.state_dict(), "hyper_parameters": dict(model.hparams)}, path)
    return path


def measure(repeats: int) -> list[dict[str, Any]]:
    """Measure milliseconds per image of each runtime, and its ratio to eager PyTorch in the same turn; medians."""
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
                    rows.append(make_row(f"{name}, {key}, batch {n}", value, "ms/image"))
                    if key != "eager":
                        ratio = statistics.median(one / other for one, other in zip(taken, times["eager"]))
                        rows.append(make_row(f"{name}, {key}, batch {n}", ratio, "x", "eager PyTorch"))
    return rows
