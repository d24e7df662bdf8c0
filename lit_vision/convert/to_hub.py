"""Write a folder for the Hugging Face Hub, with a model card made from the run's results."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lit_vision.convert.to_timm import check_timm, convert_to_timm, timm_metadata
from lit_vision.data.views.image_size import height_and_width, size_text
from lit_vision.io.atomic import atomic_write
from lit_vision.io.text import printable

if TYPE_CHECKING:
    from torch import nn

    from lit_vision.weights.model_metadata import ModelMetadata


def write_hub(method: nn.Module, metadata: ModelMetadata, out: Path, run: Path) -> str:
    """Write a folder that timm loads: config.json, model.safetensors, README.md (the model card).

    Args:
        method, metadata: from `predict.models.load_method`.
        out: the folder.
        run: folder with results.json and results-test.json; without them the card says "Not measured".

    Returns:
        The difference to timm's model, and the call that loads the folder.
    """
    from lit_vision.io.safetensors_file import save_tensors
    from lit_vision.results.schema import read_results

    name, arguments, state = convert_to_timm(method, metadata)
    gap = check_timm(method, metadata, name, arguments, state)
    results = [result for path, result in read_results(run) if path.parent == run] if run.is_dir() else []

    def write(folder: Path) -> None:
        folder.mkdir()
        save_tensors(state, folder / "model.safetensors", timm_metadata(metadata, name, arguments))
        (folder / "config.json").write_text(json.dumps(hub_config(method, metadata, name, arguments), indent=2) + "\n")
        (folder / "README.md").write_text(printable(model_card(metadata, name, results, out.name)), encoding="utf-8")

    atomic_write(out, write)
    return (
        f"largest difference to timm's model: {gap:.1e}\ntimm.create_model({f'local-dir:{out}'!r}, pretrained=True)\n"
        f"to publish: hf upload USER/{out.name} {out} (check license and text of README.md first)"
    )


def hub_config(method: nn.Module, metadata: ModelMetadata, name: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return config.json as timm reads it."""
    pretrained = {
        "num_classes": arguments["num_classes"],
        "input_size": [len(metadata.mean), *height_and_width(metadata.size)],
        "mean": metadata.mean,
        "std": metadata.std,
        "crop_pct": metadata.crop_pct,
        "interpolation": method.backbone.data_config.get("interpolation", "bicubic"),
        "fixed_input_size": "img_size" in arguments,
        "classifier": (method.backbone.model.pretrained_cfg or {}).get("classifier"),
        "first_conv": (method.backbone.model.pretrained_cfg or {}).get("first_conv"),
        "license": metadata.license or "other",
    }
    extra = {key: value for key, value in arguments.items() if key != "num_classes"}
    config = {"architecture": name, "num_classes": arguments["num_classes"], "num_features": method.backbone.width}
    config |= {"model_args": extra, "pretrained_cfg": pretrained}
    return config | ({"label_names": metadata.class_names} if metadata.class_names else {})


_LICENSES = ("apache-2.0", "mit", "bsd-3-clause", "cc-by-4.0", "cc-by-nc-4.0", "cc-by-sa-4.0", "cc0-1.0")


def license_lines(license: str) -> list[str]:
    """Return the lines of a model card's header that name the license in the Hub's terms."""
    known = license.lower() if license.lower() in _LICENSES else "other"
    return [f"license: {known}", *([f"license_name: {json.dumps(license)}"] if known == "other" and license else [])]


def model_card(metadata: ModelMetadata, name: str, results: Sequence[Mapping[str, Any]], folder: str) -> str:
    """Return README.md of a model: description, metrics, training and use.

    Args:
        metadata: of the model.
        name: timm's name.
        results: of the run's results files, the only source of numbers.
        folder: name of the model on the Hub.
    """
    task = "image-classification" if metadata.task == "classification" else "image-feature-extraction"
    lines = [
        "---",
        *license_lines(metadata.license),
        "library_name: timm",
        f"pipeline_tag: {task}",
        "tags:",
        "- timm",
        "- lit-vision",
        "---",
        "",
        f"# {folder}",
        "",
    ]
    lines += [
        f"{name}, {size_text(metadata.size)} pixels, {metadata.task}; license: {metadata.license or 'not stated'}."
    ]
    if metadata.class_names:
        shown = ", ".join(metadata.class_names[:20])
        more = f", ... {len(metadata.class_names)} in all" if len(metadata.class_names) > 20 else ""
        lines += ["", f"Classes: {shown}{more}."]
    lines += ["", "## Measured", ""]
    if results:
        lines += [
            "| metric | value | samples | recipe | commit | seed | data fingerprint |",
            "|---|---|---|---|---|---|---|",
        ]
    for result in results:
        commit = f"{(result['commit'] or '-')[:8]}{'+ changes' if result['dirty'] else ''}"
        fingerprint = (result["data_fingerprint"] or "-")[:12]
        measured = [(m, v) for m, v in sorted(result.get("metrics", {}).items()) if not m.startswith("train/")]
        for metric, value in measured or [(result["metric"]["name"], result["metric"]["value"])]:
            cells = (
                metric,
                f"{value:.4f}",
                result.get("samples", "-"),
                f"`{result['recipe']}`",
                commit,
                result["seed"],
                fingerprint,
            )
            lines.append("| " + " | ".join(str(cell) for cell in cells) + " |")
    if not results:
        lines.append("Not measured: the run has no results.json.")
    trained = next((result for result in results if result.get("epochs")), None)
    if trained:
        lines += ["", "## Trained", ""]
        lines.append(
            f"{trained['epochs']} epochs, {trained.get('steps', '-')} steps, {trained['images_seen'] or '-'} images, "
            f"{trained['seconds'] / 3600:.2f} h on {trained['device']}"
            + (f"; changed settings: `{' '.join(trained['overrides'])}`" if trained.get("overrides") else "")
            + "."
        )
    height, width = height_and_width(metadata.size)
    mean, std = (", ".join(f"{v:g}" for v in values) for values in (metadata.mean, metadata.std))
    call = "probabilities = model(images).softmax(-1)" if metadata.class_names else "features = model(images)"
    lines += ["", "## Use", "", "```python", "import timm", ""]
    lines += [f'model = timm.create_model("hf-hub:USER/{folder}", pretrained=True).eval()']
    lines += [
        f"{call}  # images (B, {len(metadata.mean)}, {height}, {width}) in [0, 1], minus ({mean}), over ({std})",
        "```",
        "",
    ]
    resized, crop = f"short side resized to {round(height / metadata.crop_pct)}", f"center crop {height}"
    if height != width:
        covered = round(height / metadata.crop_pct), round(width / metadata.crop_pct)
        resized, crop = "resized to cover {}x{}".format(*covered), f"center crop {height}x{width} (height x width)"
    lines.append(f"Evaluation view: {resized} (bicubic), {crop}.")
    if metadata.value_range:
        low, high = metadata.value_range
        lines.append(f"Images deeper than 8 bits: values from {low:g} (black) to {high:g} (white), mapped to 8 bits.")
    return "\n".join(lines) + "\n"
