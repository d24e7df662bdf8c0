"""`lit-vision export`: a run as one file that carries what using it takes, checked against torch before it gets its name.

Exports give raw outputs (classification: logits and features; detection: the heads' outputs), so that one shared piece of code makes
results of them in every runtime. Sizes are fixed, the batch is free.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lit_vision.errors import UsageError, UserError
from lit_vision.predict.command import Words

FORMATS = {"safetensors": ".safetensors", "onnx": ".onnx", "openvino": ".xml", "pt2": ".pt2", "adapter": ".safetensors"}
TOLERANCE = 1e-4  # largest difference to torch, of scores and of outputs relative to their largest value
LOSS = 0.01  # an int8 model that loses more accuracy than this is named
_EXTRA = "pip install 'lit-vision[export]'"


def _parser() -> Words:
    parser = Words(
        prog="lit-vision export",
        description="A run as one file with mean, std, size, class names and licence inside; the batch stays free. An export whose outputs differ\n"
        f"from torch's by more than {TOLERANCE:g} is refused.",
        epilog="example: lit-vision export runs/classifier/1 --format openvino --int8 data/photos\n\n"
        "TensorRT (not run here) takes the ONNX file; for 224 pixels:\n"
        "  trtexec --onnx=model.onnx --minShapes=images:1x3x224x224 --optShapes=images:8x3x224x224 \\\n"
        "          --maxShapes=images:64x3x224x224 --noTF32 --saveEngine=model.engine",
    )
    parser.add_argument("model", metavar="RUN_OR_FILE", help="a run's folder, a .ckpt or a .safetensors")
    parser.add_argument(
        "--format", required=True, choices=list(FORMATS), help="adapter: LoRA or prompts without the backbone"
    )
    parser.add_argument("--out", metavar="FILE", help="RUN/export/model.<ending> if not given")
    parser.add_argument("--licence", metavar="TEXT", help="of the weights, written into the file")
    parser.add_argument("--base", metavar="FILE", help="the weights that an adapter (RUN_OR_FILE) began from")
    parser.add_argument(
        "--int8",
        metavar="ROOT",
        help="quantise after training (onnx, openvino): calibrated on ROOT/train, accuracy from ROOT/test",
    )
    parser.add_argument(
        "--calibration", type=int, default=300, metavar="N", help="images to calibrate on (default 300)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace what --out names")
    return parser


def main(argv: Sequence[str]) -> int:
    """One export; returns 0. Raises UserError with one line for every fault with a mend."""
    args = _parser().parse_args(list(argv))
    form, suffix = args.format, FORMATS[args.format]
    if args.out and not args.out.lower().endswith(suffix):
        raise UsageError(f"--out {args.out}: --format {form} ends in {suffix}")
    if args.int8 and form not in ("onnx", "openvino"):
        raise UsageError(f"--int8: is for --format onnx or openvino, not {form}")
    if args.calibration < 1:
        raise UsageError(f"--calibration {args.calibration}: give at least 1 image")
    from lit_vision.predict.inputs import write_target
    from lit_vision.predict.models import file_of, load_method

    source = file_of(args.model)
    if source.suffix.lower() not in (".ckpt", ".pt", ".pth", ".safetensors"):
        raise UserError(f"{source}: is an export already; give the run, its .ckpt or a .safetensors")
    name = f"{'adapter' if form == 'adapter' else 'model'}{'-int8' if args.int8 else ''}{suffix}"
    folder = source.parent.parent if source.parent.name == "checkpoints" else source.parent
    out = write_target(args.out or folder / "export" / name)
    if out.exists() and not args.overwrite:
        raise UserError(f"--out {out}: exists already; name another file, or give --overwrite")
    if form == "adapter":
        export_adapter(source, out)
        print(f"{out}: adapter alone, {_megabytes(out)}")
        return 0
    data = _quantisation_data(args.int8) if args.int8 else None
    method, card = load_method(source, args.base)
    if args.licence is not None:
        card.licence = args.licence
    if data is not None:
        _check_classes(args.int8, data, card)
    print(export(method, card, form, out, data, args.calibration))
    print(f"{out}: {card.task}, {card.size} pixels, licence {card.licence or 'not stated'}, {_megabytes(out)}")
    if form == "onnx":
        shape = f"3x{card.size}x{card.size}"
        print(
            f"TensorRT (not run here): trtexec --onnx={out} --minShapes=images:1x{shape} --optShapes=images:8x{shape} "
            f"--maxShapes=images:64x{shape} --noTF32 --saveEngine={out.with_suffix('.engine')}"
        )
    return 0


def export(method: Any, card: Any, form: str, out: Path, data: Any = None, calibration: int = 300) -> str:
    """Writes one file (OpenVINO: .xml and .bin) and checks it; it gets its name only when it agrees with torch.

    Args:
        method: of `models.load_method`.
        card: likewise; goes into the file.
        form: "safetensors", "onnx", "openvino" or "pt2".
        out: the file.
        data: a scanned folder to quantise with; None keeps float32.
        calibration: images of it to calibrate on.

    Returns:
        What was checked, in one line.

    Raises:
        UserError: the outputs differ from torch's, a package is missing, or the disk is full.
    """
    from lit_vision.predict.models import load_model
    from lit_vision.predict.tasks import network_of

    network = network_of(method, card.task)
    beside = out.with_name(f".{out.stem}.tmp{out.suffix}")
    try:
        if form == "safetensors":
            write_safetensors(method, card, beside)
        else:
            program = exported_program(network, card)
            writer = {"onnx": write_onnx, "openvino": write_openvino, "pt2": write_pt2}[form]
            writer(program, card, beside)
        said = f"largest difference to torch: {check_parity(network, card, load_model(beside, 'cpu', trust=True)):.1e}"
        if data is not None:
            said += "\n" + quantise(beside, card, form, data, calibration)
        for old, new in zip(_files(beside), _files(out)):
            os.replace(old, new)
        return said
    except OSError as error:
        raise UserError(
            f"{out}: cannot be written ({error.strerror or error}); make room or choose another place"
        ) from error
    finally:
        for path in _files(beside):
            path.unlink(missing_ok=True)


def _files(path: Path) -> list[Path]:
    """A model's files, the one with the weights first."""
    return [path.with_suffix(".bin"), path] if path.suffix == ".xml" else [path]


def _megabytes(path: Path) -> str:
    return f"{sum(p.stat().st_size for p in _files(path)) / 1e6:.1f} MB"


def exported_program(network: Any, card: Any) -> Any:
    """torch.export of a network with a free batch; images (B, 3, S, S) in."""
    import torch

    from lit_vision.predict.tasks import example

    batch = torch.export.Dim("batch", min=1, max=65536)
    with torch.no_grad(), _quiet():
        return torch.export.export(network.cpu(), (example(card, 2),), dynamic_shapes={"images": {0: batch}})


def write_safetensors(method: Any, card: Any, path: Path) -> None:
    """The weights under our names, with the settings that build the network around them."""
    from safetensors.torch import save_file

    from lit_vision.card import KEY

    notes = {"format": "pt", "lit_vision": type(method).__name__, KEY: card.to_json(), "licence": card.licence}
    state = {k: v.detach().cpu().contiguous() for k, v in method.state_dict().items()}
    if card.task == "features":  # timm's names, as save_backbone has them
        notes.update(lit_vision="Backbone", backbone=json.dumps(method.backbone.config))
        notes.update(mean=json.dumps(card.mean), std=json.dumps(card.std))
        state = {k.removeprefix("backbone.model."): v for k, v in state.items() if k.startswith("backbone.model.")}
    else:
        hyper = {**dict(method.hparams), "backbone_checkpoint": None}
        if hyper["tune"] == "lora":  # merged
            hyper["tune"] = "full"
        hyper["backbone_args"] = {**(hyper["backbone_args"] or {}), "pretrained": False}
        notes["hyper_parameters"] = json.dumps(hyper)
    save_file(state, path, metadata=notes)


def write_onnx(program: Any, card: Any, path: Path) -> None:
    """ONNX through torch's exporter; the card lies in the model's metadata."""
    import torch

    from lit_vision.card import KEY

    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UserError(f"--format onnx: onnx and onnxscript are not installed; {_EXTRA}") from error
    with _quiet():
        made = torch.onnx.export(program, dynamo=True, input_names=["images"], output_names=card.outputs, verbose=False)
        made.model.metadata_props[KEY] = card.to_json()
        made.save(str(path))


def write_openvino(program: Any, card: Any, path: Path) -> None:
    """OpenVINO's .xml and .bin in float32, from the ONNX graph; the card lies in its runtime information."""
    try:
        import openvino
    except ImportError as error:
        raise UserError(f"--format openvino: openvino is not installed; {_EXTRA}") from error
    between = path.with_suffix(".onnx")
    try:
        write_onnx(program, card, between)
        model = openvino.convert_model(str(between))
    finally:
        between.unlink(missing_ok=True)
    _save_openvino(model, card, path)


def _save_openvino(model: Any, card: Any, path: Path) -> None:
    import openvino

    from lit_vision.card import KEY

    model.set_rt_info(card.to_json(), [KEY])
    openvino.save_model(model, str(path), compress_to_fp16=False)


def write_pt2(program: Any, card: Any, path: Path) -> None:
    """torch's own archive; its reader can run code, so that predict wants --trust for it."""
    import torch

    from lit_vision.card import KEY

    with _quiet():
        torch.export.save(program, str(path), extra_files={f"{KEY}.json": card.to_json()})


def check_parity(network: Any, card: Any, model: Any) -> float:
    """The largest difference between torch and an export, over all outputs and batches of 1 and 5.

    Outputs are compared relative to their largest value (at least 1), class probabilities as they are.

    Raises:
        UserError: it is above TOLERANCE.
    """
    import numpy as np
    import torch

    from lit_vision.predict.tasks import example, softmax

    worst = 0.0
    for n in (1, 5):
        images = example(card, n, seed=n)
        with torch.inference_mode():
            wanted = dict(zip(card.outputs, (value.float().numpy() for value in network(images))))
        found = model.run(images)
        for name, value in wanted.items():
            if found[name].shape != value.shape:
                raise UserError(
                    f"--format: {name} is {found[name].shape} in the export, {value.shape} in torch; not written"
                )
            gap = float(np.abs(found[name] - value).max() / max(1.0, np.abs(value).max()))
            if name == "logits" and value.ndim == 2:
                gap = max(gap, float(np.abs(softmax(found[name]) - softmax(value)).max()))
            worst = max(worst, gap if np.isfinite(gap) else float("inf"))
    if worst > TOLERANCE:
        raise UserError(
            f"--format: the export differs from torch by {worst:.1e}, more than {TOLERANCE:g}, and was not written; use another format"
        )
    return worst


def export_adapter(source: Path, out: Path) -> None:
    """The adapter of a run, without its backbone; see `backbones.adapters.save_adapter`.

    Raises:
        UserError: the run has no adapter.
    """
    from lit_vision.backbones.adapters import save_adapter
    from lit_vision.predict.models import load_method

    method, card = load_method(source, merge=False)
    if not getattr(method.backbone, "adapters", None):
        raise UserError(f"--format adapter: {source} was not trained with tune lora or prompt-*; use another format")
    hyper = {**dict(method.hparams), "backbone_checkpoint": None}
    kept = {"task": card.task, "class_names": card.class_names, "size": card.size, "crop_pct": card.crop_pct}
    save_adapter(out, method, hyper_parameters=hyper, card=kept)


# ------------------------------------------------------------------ int8


def _quantisation_data(root: str) -> Any:
    """A scanned folder with classes."""
    from lit_vision.data.folder import scan

    try:
        import nncf  # noqa: F401
        import openvino  # noqa: F401
    except ImportError as error:
        raise UserError(f"--int8: nncf and openvino are not installed; {_EXTRA}") from error
    folder = scan(root)
    folder.need_classes("measuring what int8 loses")
    return folder


def _check_classes(root: str, folder: Any, card: Any) -> None:
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
    size = sum(p.stat().st_size for p in _files(path))
    nncf.set_log_level(logging.ERROR)
    with _quiet():
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
            _save_openvino(made, card, path)
        else:
            import onnx

            onnx.helper.set_model_props(made, {KEY: card.to_json()})
            onnx.save(made, str(path))

    write(None)
    after = accuracy(load_model(path, "cpu"), folder, measured)
    write(after)
    lost, images = before - after, len(folder.splits[measured])
    small = sum(p.stat().st_size for p in _files(path))
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


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Exporters print pages; what matters is raised."""
    names = ("torch.onnx", "onnxscript", "onnx_ir", "nncf", "torch.export")
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
