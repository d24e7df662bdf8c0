"""`lit-vision export`: a run as one file that carries what using it takes, checked against torch before it gets its name.

Exports give raw outputs (classification: logits and features; detection: the heads' outputs), so that one shared piece of code makes
results of them in every runtime. Sizes are fixed, the batch is free.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lit_vision import quantise
from lit_vision.errors import UsageError, UserError
from lit_vision.quantise import files_of, quiet, save_openvino
from lit_vision.weights_out import FORMATS as OTHERS
from lit_vision.words import Words

FORMATS = {"safetensors": ".safetensors", "onnx": ".onnx", "openvino": ".xml", "pt2": ".pt2", "adapter": ".safetensors"}
PIXELS = 0.5  # largest difference of boxes
TOLERANCE = 1e-4  # largest difference to torch, of scores and of outputs relative to their largest value


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
        "--format",
        required=True,
        choices=[*FORMATS, *OTHERS],
        help="adapter: LoRA or prompts without the backbone; timm: a file for timm.create_model; transformers: a folder for its ViT-MAE; "
        "hub: a folder for the Hugging Face Hub with a model card",
    )
    parser.add_argument("--out", metavar="FILE", help="RUN/export/model.<ending> if not given")
    parser.add_argument("--licence", metavar="TEXT", help="of the weights, written into the file")
    parser.add_argument("--base", metavar="FILE", help="the weights that an adapter (RUN_OR_FILE) began from")
    parser.add_argument(
        "--int8",
        metavar="ROOT",
        help="quantise after training (onnx, openvino): calibrated on ROOT's training split, measured before and after on its test split",
    )
    parser.add_argument(
        "--calibration", type=int, default=300, metavar="N", help="images to calibrate on (default 300)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace what --out names")
    return parser


def main(argv: Sequence[str]) -> int:
    """One export; returns 0. Raises UserError with one line for every fault with a mend."""
    args = _parser().parse_args(list(argv))
    if args.format in OTHERS:
        from lit_vision.weights_out.command import main as write_for_others

        return write_for_others(args)
    form, suffix = args.format, FORMATS[args.format]
    if args.out and not args.out.lower().endswith(suffix):
        raise UsageError(f"--out {args.out}: --format {form} ends in {suffix}")
    if args.int8 and form not in ("onnx", "openvino"):
        raise UsageError(f"--int8: is for --format onnx or openvino, not {form}")
    if args.calibration < 1:
        raise UsageError(f"--calibration {args.calibration}: give at least 1 image")
    from lit_vision.predict.inputs import write_target
    from lit_vision.predict.judges import judge_for
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
    if args.int8:
        quantise.need_packages("--int8", "nncf", "openvino")
    method, card = load_method(source, args.base)
    if args.licence is not None:
        card.licence = args.licence
    judge = judge_for(args.int8, card) if args.int8 else None
    print(export(method, card, form, out, judge, args.calibration))
    print(f"{out}: {card.task}, {card.size} pixels, licence {card.licence or 'not stated'}, {_megabytes(out)}")
    if form == "onnx":
        shape = f"3x{card.size}x{card.size}"
        print(
            f"TensorRT (not run here): trtexec --onnx={out} --minShapes=images:1x{shape} --optShapes=images:8x{shape} "
            f"--maxShapes=images:64x{shape} --noTF32 --saveEngine={out.with_suffix('.engine')}"
        )
    return 0


def export(method: Any, card: Any, form: str, out: Path, judge: Any = None, calibration: int = 300) -> str:
    """Writes one file (OpenVINO: .xml and .bin) and checks it; it gets its name only when it agrees with torch.

    Args:
        method: of `models.load_method`.
        card: likewise; goes into the file.
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
    from lit_vision.predict.tasks import network_of

    network = network_of(method, card.task)
    if card.task == "detection" and "strides" not in card.options and form != "safetensors":
        raise UserError(
            f"--format {form}: the second stage of {card.options['head']} depends on the first one's choice, so it has no raw outputs; "
            "use safetensors, or train with model.head fcos or retinanet"
        )
    beside = out.with_name(f".{out.stem}.tmp{out.suffix}")
    try:
        if form == "safetensors":
            write_safetensors(method, card, beside)
        else:
            program = exported_program(network, card)
            writer = {"onnx": write_onnx, "openvino": write_openvino, "pt2": write_pt2}[form]
            writer(program, card, beside)
        said = f"largest difference to torch: {check_parity(network, card, load_model(beside, 'cpu', trust=True)):.1e}"
        if judge is not None:
            said += "\n" + quantise.quantise(beside, card, form, judge, calibration)
        for old, new in zip(files_of(beside), files_of(out)):
            os.replace(old, new)
        return said
    except OSError as error:
        raise UserError(
            f"{out}: cannot be written ({error.strerror or error}); make room or choose another place"
        ) from error
    finally:
        for path in files_of(beside):
            path.unlink(missing_ok=True)


def _megabytes(path: Path) -> str:
    return f"{sum(p.stat().st_size for p in files_of(path)) / 1e6:.3g} MB"


def exported_program(network: Any, card: Any) -> Any:
    """torch.export of a network with a free batch; images (B, 3, S, S) in."""
    import torch

    from lit_vision.predict.tasks import example

    batch = torch.export.Dim("batch", min=1, max=65536)
    with torch.no_grad(), quiet():
        return torch.export.export(network.cpu(), (example(card, 2),), dynamic_shapes={"images": {0: batch}})


def write_safetensors(method: Any, card: Any, path: Path, half: bool = False) -> None:
    """The weights under our names, with the settings that build the network around them; `half`: floats as float16."""
    from safetensors.torch import save_file

    from lit_vision.card import KEY

    notes = {"format": "pt", "lit_vision": type(method).__name__, KEY: card.to_json(), "licence": card.licence}
    state = {k: v.detach().cpu().contiguous() for k, v in method.state_dict().items()}
    if card.task == "features":  # timm's names, as save_backbone has them
        notes.update(lit_vision="Backbone", backbone=json.dumps(method.backbone.config))
        notes.update(mean=json.dumps(card.mean), std=json.dumps(card.std))
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


def write_onnx(program: Any, card: Any, path: Path) -> None:
    """ONNX through torch's exporter; the card lies in the model's metadata."""
    import torch

    from lit_vision.card import KEY

    quantise.need_packages("--format onnx", "onnx", "onnxscript")
    with quiet():
        made = torch.onnx.export(program, dynamo=True, input_names=["images"], output_names=card.outputs, verbose=False)
        made.model.metadata_props[KEY] = card.to_json()
        made.save(str(path))
    beside = path.with_name(path.name + ".data")
    if beside.exists():
        beside.unlink()
        raise UserError(
            "--format: this model is over ONNX's 2 GB for one file, which onnx and openvino need; use safetensors"
        )


def write_openvino(program: Any, card: Any, path: Path) -> None:
    """OpenVINO's .xml and .bin in float32, from the ONNX graph; the card lies in its runtime information."""
    quantise.need_packages("--format openvino", "openvino")
    import openvino

    between = path.with_suffix(".onnx")
    try:
        write_onnx(program, card, between)
        model = openvino.convert_model(str(between))
    finally:
        between.unlink(missing_ok=True)
    save_openvino(model, card, path)


def write_pt2(program: Any, card: Any, path: Path) -> None:
    """torch's own archive; its reader can run code, so that predict wants --trust for it."""
    import torch

    from lit_vision.card import KEY

    with quiet():
        torch.export.save(program, str(path), extra_files={f"{KEY}.json": card.to_json()})


def check_parity(network: Any, card: Any, model: Any) -> float:
    """The largest difference between torch and an export, over all outputs and batches of 1 and 5.

    Outputs are compared relative to their largest value (at least 1), class probabilities as they are; of detectors, the scores of all
    anchors as they are, and their boxes in pixels (PIXELS are allowed).

    Raises:
        UserError: it is above TOLERANCE.
    """
    import torch

    from lit_vision.predict.tasks import differences, example

    worst = 0.0
    for n in (1, 5):
        images = example(card, n, seed=n)
        with torch.inference_mode():
            wanted = dict(zip(card.outputs, (value.float().numpy() for value in network(images))))
        found = model.run(images)
        for name, value in wanted.items():
            if not torch.from_numpy(value).isfinite().all():
                raise UserError(f"--format: the model itself gives {name} that are not finite; check its training")
            if found[name].shape != value.shape:
                raise UserError(
                    f"--format: {name} is {found[name].shape} in the export, {value.shape} in torch; not written"
                )
        gap, pixels = differences(card, wanted, found)
        if not pixels <= PIXELS:
            raise UserError(
                f"--format: boxes of the export lie {pixels:.2g} pixels from torch's, more than {PIXELS}; not written; use another format"
            )
        worst = max(worst, gap)
    if not worst <= TOLERANCE:
        raise UserError(
            f"--format: the export differs from torch by {worst:.1e}, more than {TOLERANCE:g}, and was not written; use another format"
        )
    return worst


def export_adapter(source: Path, out: Path) -> None:
    """The adapter of a run, without its backbone; see `backbones.adapter_files.save_adapter`.

    Raises:
        UserError: the run has no adapter.
    """
    from lit_vision.backbones.adapter_files import save_adapter
    from lit_vision.predict.models import load_method

    method, card = load_method(source, merge=False)
    if not getattr(method.backbone, "adapters", None):
        raise UserError(f"--format adapter: {source} was not trained with tune lora or prompt-*; use another format")
    hyper = {**dict(method.hparams), "backbone_checkpoint": None}
    kept = {"task": card.task, "class_names": card.class_names, "size": card.size, "crop_pct": card.crop_pct}
    save_adapter(out, method, hyper_parameters=hyper, card=kept)
