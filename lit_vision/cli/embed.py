"""The embed command: write features of images to an index for search, or to a Parquet file."""

from __future__ import annotations

import argparse
import functools
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lit_vision.cli.parser import (
    IMAGES_HELP,
    CommandParser,
    add_batch_arguments,
    add_model_arguments,
    check_batch_arguments,
    load_features_model,
)
from lit_vision.cli.shard_arguments import add_shard_arguments, check_shard_arguments, run_engine
from lit_vision.errors import UsageError
from lit_vision.predict.ann_index import INDEX_TYPES, add_ann, check_trainable
from lit_vision.predict.search import FilePiece, feature_settings, join_indices, write_index

if TYPE_CHECKING:
    import numpy as np

    from lit_vision.predict.inputs import InputBatch, Inputs
    from lit_vision.predict.runtimes import Model
    from lit_vision.predict.shards import Shard


def _parser() -> CommandParser:
    parser = CommandParser(
        prog="lit-vision embed",
        description="Write the features of images to one file for lit-vision search. Images that cannot be read are "
        "listed in\nOUT.skipped.csv. A command that was stopped continues where it was when it is run again.",
        epilog="example: lit-vision embed --model runs/mae/1 photos/ --out photos.safetensors",
    )
    parser.add_argument("images", nargs="*", metavar="IMAGES", help=IMAGES_HELP)
    add_model_arguments(parser, required=False)
    parser.add_argument(
        "--out",
        required=True,
        metavar="FILE",
        help="the index, .safetensors; or .parquet, for other programs: path and features",
    )
    parser.add_argument(
        "--backbone_features",
        action="store_true",
        help="of a model of images and captions (ImageText): features of its backbone alone, not those that "
        "lit-vision search --text compares with words",
    )
    parser.add_argument(
        "--index_type",
        choices=INDEX_TYPES,
        default="exact",
        help="how search finds neighbors: exact compares with every vector (default); hnsw, a graph, and ivfpq, short "
        "codes, are quicker for many vectors and may miss some: the share that they find is measured and printed",
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the training of ivfpq (default 0)")
    add_batch_arguments(parser)
    add_shard_arguments(parser)
    return parser


def main(argv: Sequence[str]) -> int:
    """Run `lit-vision embed --model RUN_OR_FILE IMAGES --out FILE`; returns 0."""
    args = _parser().parse_args(list(argv))
    check_batch_arguments(args)
    check_shard_arguments("embed", args)
    _check_arguments(args)
    from lit_vision.predict.inputs import find_images
    from lit_vision.predict.writers import check_output_path

    out = check_output_path(args.out, args.overwrite)
    if args.merge:
        return _merge(args, out)
    inputs = find_images(args.images)
    for line in inputs.lines():
        print(line, flush=True)
    check_trainable(args.index_type, len(inputs))
    model = _open(args)
    if args.engine == "ray":
        run_engine(args, len(inputs), functools.partial(_run_in_worker, json.dumps(vars(args)), inputs))
        return _merge(args, out)
    _run(args, inputs, model, out, args.shard)
    return 0


def _check_arguments(args: argparse.Namespace) -> None:
    from lit_vision.predict.open_clip_models import is_open_clip_name

    if args.model and args.backbone_features and is_open_clip_name(args.model):
        raise UsageError("--backbone_features: models of open_clip end with their projection; leave it out")
    if not args.out.lower().endswith((".safetensors", ".parquet")):
        raise UsageError(
            f"--out {args.out}: an index is a safetensors file; end its name in .safetensors, or in .parquet for other "
            "programs"
        )
    if args.index_type != "exact" and (args.shard or not args.out.lower().endswith(".safetensors")):
        where = "the merged file; give it with --merge" if args.shard else "a .safetensors"
        raise UsageError(f"--index_type {args.index_type}: is of {where}")
    if not 0 <= args.seed < 2**31 - 1:
        raise UsageError(f"--seed {args.seed}: give a number from 0 to {2**31 - 2}")


def _open(args: argparse.Namespace) -> Model:
    """Load the model, and refuse one without features."""
    from lit_vision.predict.inference import check_has_features

    if args.out.lower().endswith(".parquet"):
        from lit_vision.predict.parquet_files import import_pyarrow

        import_pyarrow()
    if args.index_type != "exact":
        from lit_vision.predict.search import import_faiss

        import_faiss()
    model = load_features_model(args, shared_space=not args.backbone_features)
    check_has_features(model)
    return model


@functools.lru_cache(maxsize=1)
def _open_once(arguments: str) -> Model:
    """Return the model for flags as JSON; a worker of an engine does many shards with one model."""
    return _open(argparse.Namespace(**json.loads(arguments)))


def _run_in_worker(arguments: str, inputs: Inputs, shard: Shard) -> None:
    """Do one shard of a command, in a worker of an engine."""
    args = argparse.Namespace(**json.loads(arguments))
    _run(args, inputs, _open_once(arguments), Path(args.out), shard)


def _run(args: argparse.Namespace, inputs: Inputs, model: Model, out: Path, shard: Shard | None) -> None:
    """Embed all images or those of a shard, and print the file that was written."""
    from lit_vision.predict.inference import run_identity, run_inference
    from lit_vision.predict.shards import run_shard
    from lit_vision.predict.writers import atomic_write_streams

    settings = {"embed": True}
    made_with = feature_settings(model.metadata)

    def lines(batch: InputBatch, outputs: dict[str, np.ndarray]) -> dict[str, bytes]:
        rows = outputs["features"].astype("<f4").tobytes()
        return {"rows": rows, "names": b"".join(os.fsencode(name) + b"\0" for name in batch.names)}

    def write(path: Path, paths: dict[str, Path]) -> None:
        count = paths["names"].read_bytes().count(b"\0")
        width = paths["rows"].stat().st_size // 4 // max(count, 1)
        if out.suffix.lower() == ".parquet":
            from lit_vision.predict.parquet_files import write_features

            write_features(path, paths["rows"], paths["names"], width)
        else:
            rows, names = ([FilePiece.all_of(paths[name])] for name in ("rows", "names"))
            write_index(path, rows, names, max(width, 1), made_with)
            if args.index_type != "exact":
                _add_ann(args, path)

    run = functools.partial(
        run_inference,
        model,
        inputs,
        lines=lines,
        settings=settings,
        batch_size=args.batch_size,
        workers=args.workers,
        overwrite=args.overwrite,
        streams=("names",),
    )
    if shard is None:
        done, skipped = run(out=out, finish=functools.partial(atomic_write_streams, out, write))
    else:
        identity = run_identity(model, inputs, args.batch_size, settings)
        done, skipped = run_shard(
            shard,
            out,
            identity,
            inputs,
            lambda part, images, finish: run(out=part, images=images, finish=finish),
            write=write,
            overwrite=args.overwrite,
        )
        out = shard.part(out)
    print(f"{out}: features of {done} images{_skipped_note(out, skipped)}")


def _merge(args: argparse.Namespace, out: Path) -> int:
    """Join the parts beside OUT; returns 0."""
    from lit_vision.predict.shards import merge_parts

    def join(path: Path, parts: list[Path]) -> None:
        if out.suffix.lower() == ".parquet":
            from lit_vision.predict.parquet_files import join_files

            join_files(path, parts)
            return
        join_indices(path, parts)
        if args.index_type != "exact":
            _add_ann(args, path)

    done, skipped, parts = merge_parts(out, join)
    print(f"{out}: features of {done} images of {parts} shards{_skipped_note(out, skipped)}")
    return 0


def _add_ann(args: argparse.Namespace, path: Path) -> None:
    """Put the approximate index of --index_type into an index, and print what was measured of it."""
    record, seconds = add_ann(path, args.index_type, args.seed)
    print(record.line(seconds), flush=True)


def _skipped_note(out: Path, skipped: int) -> str:
    return f", {skipped} skipped (see {out.name}.skipped.csv)" if skipped else ""
