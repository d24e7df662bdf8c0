"""Write a run as one file or folder for another runtime or project."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lit_vision.convert import quantize
from lit_vision.convert.export import FORMATS, export, export_adapter
from lit_vision.convert.quantize import artifact_files
from lit_vision.data.views.image_size import size_text
from lit_vision.errors import UsageError, UserError
from lit_vision.io.sealed import SEALED_SUFFIX
from lit_vision.predict.writers import check_not_existing, check_output_path
from lit_vision.runs.run_dir import data_settings, run_dir_of

if TYPE_CHECKING:
    from torch import nn

    from lit_vision.weights.model_metadata import ModelMetadata

OTHER_PROJECTS = ("timm", "transformers", "hub")  # formats of `export_model` that are for another project

# all files of a folder that --format transformers or hub writes; a folder with other files is never replaced
_FOLDER_FILES = ("config.json", "model.safetensors", "README.md", "preprocessor_config.json")


@dataclass(frozen=True)
class Exported:
    """An exported model.

    Attributes:
        path: the file or folder (OpenVINO: the .xml, with its .bin beside it).
        notes: lines about it: largest difference to torch, accuracy of int8, size, a command for TensorRT.
    """

    path: Path
    notes: tuple[str, ...]


def export_model(
    model: str | Path,
    format: str,
    *,
    out: str | Path | None = None,
    license: str | None = None,
    base: str | None = None,
    classes: str | Path | None = None,
    template: str | Path | None = None,
    int8: str | Path | None = None,
    classes_by_number: bool = False,
    calibration: int = 300,
    half: bool = False,
    opset: int | None = None,
    overwrite: bool = False,
) -> Exported:
    """Run `lit-vision export`: write a run as one file, or a folder, for another runtime or project.

    Mean, std, size, class names and license are in the file; the batch size stays free. An export whose outputs differ
    from torch's by more than 1e-4 is refused.

    Args:
        model: a run's folder, a .ckpt or a .safetensors; with `classes` also `open_clip:MODEL/WEIGHTS`.
        format: safetensors, onnx, openvino, pt2, adapter (LoRA or prompts without the backbone), timm (a file for
            timm.create_model), transformers (a folder for its ViT-MAE) or hub (a folder with a model card).
        out: the file or folder; None: RUN/export/model.<suffix of the format>, with `classes` zero-shot.<suffix>.
        license: of the weights, written into the file; None: the one that the model states.
        base: the weights that an adapter (`model`) was trained on.
        classes: of a model of images and captions (ImageText, open_clip), for onnx, openvino and pt2: write the image
            tower and the vectors of the classes that this text file names, one a line: a classifier without texts.
        template: with `classes`, a text file of prompts with {} for the name; several are averaged. None: "a photo of a
            {}.".
        int8: a folder of images; onnx and openvino are quantized, calibrated on its training split and measured before
            and after on its test split; the other data settings are those of the run's config.yaml.
        classes_by_number: with int8, compare classes by number although the folder's and the model's names differ.
        calibration: number of images to calibrate on.
        half: half precision, for onnx (inputs and outputs stay float32) and openvino (weights); it may differ from
            torch by 1e-2.
        opset: version of ONNX's operators, for onnx; None is the exporter's.
        overwrite: replace `out` if it exists.

    Raises:
        UserError: one line that names the file or key and what to do. UsageError (a UserError): a value is wrong.
    """
    _check_half_and_opset(format, bool(int8), half, opset)
    _check_classes(format, classes, template)
    if format in OTHER_PROJECTS:
        if int8 or base:
            raise UsageError(f"{'--int8' if int8 else '--base'}: is not for --format {format}; leave it out")
        return _to_project(model, format, out, license, overwrite)
    if format not in FORMATS:
        raise UsageError(f"--format {format}: is not one of {', '.join([*FORMATS, *OTHER_PROJECTS])}")
    if out and not str(out).lower().endswith(FORMATS[format]):
        raise UsageError(f"--out {out}: --format {format} needs a name that ends in {FORMATS[format]}")
    _check_quantization(format, int8, classes_by_number, calibration)
    from lit_vision.predict.tasks import accuracy_check_for, example_input

    source = _source(model, classes, out)
    kind = "zero-shot" if classes is not None else "adapter" if format == "adapter" else "model"
    name = f"{kind}{'-int8' if int8 else '-half' if half else ''}{FORMATS[format]}"
    folder = run_dir_of(source) or source.parent
    path = check_output_path(out or folder / "export" / name, overwrite)
    if format == "adapter":
        export_adapter(source, path)
        return Exported(path, (f"{path}: adapter alone, {_megabytes(path)}",))
    if int8:
        quantize.require_packages("--int8", "nncf", "openvino")
    method, metadata = _load(source, base, classes, template)
    if license is not None:
        metadata.license = license
    check, notes = None, []
    if int8:
        settings = data_settings(run_dir_of(source)) if classes is None else {}  # a run of captions has no classes
        check = accuracy_check_for(str(int8), metadata, settings, classes_by_number)
        notes.append(f"--int8: data settings {f'of {folder}/config.yaml' if settings else 'are the usual ones'}")
        notes += [check.note] if check.note else []
    notes += export(method, metadata, format, path, check, calibration, half=half, opset=opset).splitlines()
    license_text = metadata.license or "not stated"
    notes.append(
        f"{path}: {metadata.task}, {size_text(metadata.size)} pixels, license {license_text}, {_megabytes(path)}"
    )
    if format == "onnx":
        shape = "x".join(map(str, example_input(metadata, 1).shape[1:]))
        notes.append(
            f"TensorRT (not run here): trtexec --onnx={path} --minShapes=images:1x{shape} --optShapes=images:8x{shape} "
            f"--maxShapes=images:64x{shape} --noTF32 --saveEngine={path.with_suffix('.engine')}"
        )
    return Exported(path, tuple(notes))


def _source(model: str | Path, classes: str | Path | None, out: str | Path | None) -> Path:
    """Return the file of a model that can be exported, or a name of open_clip as a path."""
    from lit_vision.predict.models import resolve_model_file
    from lit_vision.predict.open_clip_models import is_open_clip_name

    if is_open_clip_name(model):
        for flag, value in (("classes", classes), ("out", out)):
            if value is None:
                raise UsageError(f"--{flag}: is needed to export a model of open_clip; give it")
        return Path(model)
    source = resolve_model_file(model)
    if source.suffix.lower() == SEALED_SUFFIX:
        raise UserError(f"{source}: is sealed; write it in plain with lit-vision protect unseal first")
    if source.suffix.lower() not in (".ckpt", ".pt", ".pth", ".safetensors"):
        raise UserError(f"{source}: is an export already; give the run, its .ckpt or a .safetensors")
    return source


def _load(
    source: Path, base: str | None, classes: str | Path | None, template: str | Path | None
) -> tuple[nn.Module, ModelMetadata]:
    """Return what `export.export` takes: a method's network, or a classifier of named classes; and its metadata."""
    from lit_vision.predict.models import load_method
    from lit_vision.predict.zero_shot import read_prompts, zero_shot_network

    if classes is None:
        return load_method(source, base)
    if base:
        raise UsageError("--base: does not apply with --classes; leave it out")
    classifier, _, metadata, _ = zero_shot_network(source, *read_prompts(classes, template), device="cpu")
    return classifier, metadata


def _check_half_and_opset(file_format: str, int8: bool, half: bool, opset: int | None) -> None:
    """Refuse half precision and a version of operators where they do not apply."""
    if half and (file_format not in ("onnx", "openvino") or int8):
        raise UsageError("--half: is for --format onnx or openvino without --int8; leave it out")
    if opset is not None and file_format != "onnx":
        raise UsageError(f"--opset: is for --format onnx, not {file_format}; leave it out")


def _check_classes(file_format: str, classes: str | Path | None, template: str | Path | None) -> None:
    """Refuse files of classes and templates where they do not apply."""
    if template is not None and classes is None:
        raise UsageError("--template: is for the classes of --classes; name their file, or leave it out")
    if classes is not None and file_format not in ("onnx", "openvino", "pt2"):
        raise UsageError(f"--classes: is for --format onnx, openvino or pt2, not {file_format}; leave it out")


def _check_quantization(file_format: str, int8: str | Path | None, classes_by_number: bool, calibration: int) -> None:
    """Refuse options of int8 that do not apply or are out of range."""
    if int8 and file_format not in ("onnx", "openvino"):
        raise UsageError(f"--int8: is for --format onnx or openvino, not {file_format}")
    if classes_by_number and not int8:
        raise UsageError("--classes_by_number: is for --int8; leave it out")
    if calibration < 1:
        raise UsageError(f"--calibration {calibration}: give at least 1 image")


def _to_project(
    model: str | Path, project: str, out: str | Path | None, license_text: str | None, overwrite: bool
) -> Exported:
    """Write a file for timm, or a folder for transformers or the Hub."""
    if project == "timm" and out and not str(out).endswith(".safetensors"):
        raise UsageError(f"--out {out}: --format timm needs a name that ends in .safetensors")
    from lit_vision.predict.models import load_method, resolve_model_file

    source = resolve_model_file(model)
    run = run_dir_of(source) or source.parent
    path = Path(out or run / "export" / ("timm.safetensors" if project == "timm" else project))
    check_not_existing(path, overwrite)
    if path.is_dir() and (other := {p.name for p in path.iterdir()} - set(_FOLDER_FILES)):
        raise UserError(f"--out {path}: contains {min(other)}, which no export wrote; choose another folder")
    if project == "transformers":
        from lit_vision.convert.to_transformers import load_mae, write_transformers

        mae, origin = load_mae(source)
        origin |= {"license": license_text} if license_text is not None else {}
        note = write_transformers(mae, path, **origin)
    else:
        method, metadata = load_method(source)
        if metadata.task in ("restoration", "video"):
            raise UserError(f"--format {project}: is not for {metadata.task}; use safetensors, onnx or openvino")
        metadata.license = license_text if license_text is not None else metadata.license
        if project == "timm":
            from lit_vision.convert.to_timm import write_timm

            note = write_timm(method, metadata, path)
        else:
            from lit_vision.convert.to_hub import write_hub

            note = write_hub(method, metadata, path, run)
    return Exported(path, (note, f"{path}: for {project}"))


def _megabytes(path: Path) -> str:
    return f"{sum(p.stat().st_size for p in artifact_files(path)) / 1e6:.3g} MB"
