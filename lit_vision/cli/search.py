"""`lit-vision embed` and `lit-vision search`: features of images as one file, and the images nearest to a query."""

from __future__ import annotations

import argparse
import csv
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lit_vision.cli.parser import CommandParser, add_batch_arguments, add_model_arguments, check_batch_arguments
from lit_vision.errors import UsageError, UserError
from lit_vision.predict.search import (
    Index,
    NearestNeighbors,
    check_same_model,
    connected_groups,
    feature_settings,
    read_index,
    write_index,
)


def _embed_parser() -> CommandParser:
    parser = CommandParser(
        prog="lit-vision embed",
        description="Features of images as one file for lit-vision search. Images that cannot be read are listed in OUT.skipped.csv; a stopped\n"
        "command goes on when it is given again.",
        epilog="example: lit-vision embed --model runs/mae/1 photos/ --out photos.safetensors",
    )
    parser.add_argument("images", nargs="+", metavar="IMAGES", help="one folder (searched with all below), or files")
    add_model_arguments(parser)
    parser.add_argument("--out", required=True, metavar="FILE", help="the index, .safetensors")
    add_batch_arguments(parser)
    return parser


def main_embed(argv: Sequence[str]) -> int:
    """One index; returns 0."""
    args = _embed_parser().parse_args(list(argv))
    check_batch_arguments(args)
    if not args.out.lower().endswith(".safetensors"):
        raise UsageError(f"--out {args.out}: an index is a safetensors file; end its name in .safetensors")
    from lit_vision.predict.inference import run_inference
    from lit_vision.predict.inputs import check_output_path, find_images
    from lit_vision.predict.models import load_model

    out = check_output_path(args.out)
    inputs = find_images(args.images)
    model = load_model(args.model, args.device, args.base, args.trust)
    if "features" not in model.metadata.outputs:
        raise UserError(
            f"{model.path}: is for {model.metadata.task} and gives no features; give a classifier or a body"
        )
    about = feature_settings(model.metadata)

    def lines(batch: Any, outputs: dict[str, Any]) -> dict[str, bytes]:
        rows = outputs["features"].astype("<f4").tobytes()
        return {"rows": rows, "names": b"".join(os.fsencode(name) + b"\0" for name in batch.names)}

    def finish(paths: dict[str, Path]) -> None:
        count = paths["names"].read_bytes().count(b"\0")
        write_index(out, paths["rows"], paths["names"], paths["rows"].stat().st_size // 4 // count, about)

    done, skipped = run_inference(
        model, inputs, out, b"", lines, {"embed": True}, args, streams=("names",), finish=finish
    )
    print(f"{out}: features of {done} images{f', {skipped} skipped (see {out.name}.skipped.csv)' if skipped else ''}")
    return 0


def _search_parser() -> CommandParser:
    parser = CommandParser(
        prog="lit-vision search",
        description="The images of an index that are most like the query, by cosine similarity, exactly; or its near duplicates.",
        epilog="examples: lit-vision search --index photos.safetensors --model runs/mae/1 --query cat.jpg\n"
        "          lit-vision search --index photos.safetensors --duplicates 0.98 --out pairs.csv",
    )
    parser.add_argument("--index", required=True, metavar="FILE", help="made by lit-vision embed")
    parser.add_argument(
        "--query",
        nargs="+",
        metavar="IMAGE",
        help="images to look for, or one folder of them; needs the model of the index",
    )
    parser.add_argument("--duplicates", type=float, metavar="COSINE", help="pairs of the index above this similarity")
    parser.add_argument("--top", type=int, default=10, metavar="N", help="answers per query (default 10)")
    parser.add_argument("--out", metavar="FILE.csv", help="write all of it there too")
    parser.add_argument("--overwrite", action="store_true", help="replace what --out names")
    add_model_arguments(parser)
    return parser


def main_search(argv: Sequence[str]) -> int:
    """Answers on standard output and in --out; returns 0."""
    parser = _search_parser()
    for action in parser._actions:
        if action.dest == "model":
            action.required = False
    args = parser.parse_args(list(argv))
    if bool(args.query) == (args.duplicates is not None):
        raise UsageError("search: give --query IMAGE or --duplicates COSINE, one of them")
    if args.query and not args.model:
        raise UsageError("search: --query needs --model, the model that made the index")
    if args.duplicates is not None and not -1 <= args.duplicates < 1:
        raise UsageError(f"--duplicates {args.duplicates}: a cosine of -1 up to 1; 0.95 to 0.99 is usual")
    if args.top < 1:
        raise UsageError(f"--top {args.top}: give at least 1")
    from lit_vision.predict.inputs import check_output_path

    out = check_output_path(args.out) if args.out else None
    if out and out.exists() and not args.overwrite:
        raise UserError(f"--out {out}: exists already; name another file, or give --overwrite")
    index = read_index(args.index)
    if args.query:
        header, rows = ["query", "rank", "path", "score"], list(_run_queries(index, args))
        several = sum(rank == 1 for _, rank, *_ in rows) > 1  # one word may be a folder of queries
        shown = [f"{score}  {path}" + (f"  ({query})" if several else "") for query, _, path, score in rows]
    else:
        pairs = list(NearestNeighbors(index.features).pairs(args.duplicates))
        header = ["group", "a", "b", "score"]
        group_of = {i: g for g, members in enumerate(connected_groups(pairs), 1) for i in members}
        rows = [(group_of[i], index.names[i], index.names[j], f"{score:.4f}") for i, j, score in pairs]
        shown = [f"{score}  {a}  {b}" for _, a, b, score in rows[:20]]
        shown += [f"... and {len(rows) - 20} more pairs"] if len(rows) > 20 else []
        images = len(group_of)
        shown.append(
            f"{len(rows)} pairs above {args.duplicates:g}: {images} images in {len(set(group_of.values()))} groups"
        )
    sys.stdout.write("".join(f"{line}\n".encode("utf-8", "backslashreplace").decode() for line in shown))
    if out:
        beside = out.with_name(out.name + ".tmp")
        with open(beside, "w", newline="", encoding="utf-8", errors="surrogateescape") as file:
            csv.writer(file, lineterminator="\n").writerows([header, *rows])
        os.replace(beside, out)
        print(f"{out}: {len(rows)} rows")
    return 0


def _run_queries(index: Index, args: argparse.Namespace) -> Iterator[tuple[str, int, str, str]]:
    """(query, rank, path, score) of every query."""
    from lit_vision.predict.inputs import batches, find_images
    from lit_vision.predict.models import load_model
    from lit_vision.predict.tasks import preprocess_for

    queries = find_images(args.query)
    model = load_model(args.model, args.device, args.base, args.trust)
    check_same_model(index, feature_settings(model.metadata))
    nearest = NearestNeighbors(index.features)
    for batch in batches(queries, preprocess_for(model.metadata), 32):
        if batch.bad:
            raise UserError(f"--query {queries.folder and queries.folder + '/'}{batch.bad[0][0]}: {batch.bad[0][1]}")
        for name, found in zip(batch.names, nearest.top(model(batch.pixels)["features"], args.top)):
            for rank, (row, score) in enumerate(found, 1):
                yield name, rank, index.names[row], f"{score:.4f}"
