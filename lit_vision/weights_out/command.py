"""What `lit-vision export` does for the formats of other projects."""

from __future__ import annotations

import argparse
from pathlib import Path

from lit_vision.errors import UsageError, UserError

WRITTEN = ("config.json", "model.safetensors", "README.md", "preprocessor_config.json")  # in the folders


def main(args: argparse.Namespace) -> int:
    """One export to another project's form; `args` is of `lit_vision.export`. Returns 0."""
    if args.int8 or args.base:
        raise UsageError(f"{'--int8' if args.int8 else '--base'}: is not for --format {args.format}; leave it out")
    if args.format == "timm" and args.out and not args.out.endswith(".safetensors"):
        raise UsageError(f"--out {args.out}: --format timm ends in .safetensors")
    from lit_vision.predict.models import file_of, load_method

    source = file_of(args.model)
    run = source.parent.parent if source.parent.name == "checkpoints" else source.parent
    out = Path(args.out or run / "export" / ("timm.safetensors" if args.format == "timm" else args.format))
    if out.exists() and not args.overwrite:
        raise UserError(f"--out {out}: exists already; name another place, or give --overwrite")
    if out.is_dir() and (strange := {p.name for p in out.iterdir()} - set(WRITTEN)):
        raise UserError(f"--out {out}: holds {min(strange)}, which no export wrote; name another place")
    if args.format == "transformers":
        from lit_vision.weights_out.as_transformers import load_mae, write_transformers

        mae, notes = load_mae(source)
        notes |= {"licence": args.licence} if args.licence is not None else {}
        said = write_transformers(mae, out, **notes)
    else:
        method, card = load_method(source)
        card.licence = args.licence if args.licence is not None else card.licence
        if args.format == "timm":
            from lit_vision.weights_out.as_timm import write_timm

            said = write_timm(method, card, out)
        else:
            from lit_vision.weights_out.as_hub import write_hub

            said = write_hub(method, card, out, run)
    print(said)
    print(f"{out}: for {args.format}")
    return 0
