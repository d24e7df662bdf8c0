"""The search command: find images of an index by an image or by words, or its near duplicates."""

from __future__ import annotations

import argparse
import csv
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from lit_vision.cli.parser import (
    CommandParser,
    add_model_arguments,
    add_overwrite_argument,
    load_features_model,
)
from lit_vision.errors import UsageError, UserError
from lit_vision.io.atomic import atomic_write
from lit_vision.predict.ann_index import open_neighbors
from lit_vision.predict.search import (
    Index,
    NearestNeighbors,
    check_holds_texts_of,
    check_same_model,
    feature_settings,
    read_index,
)

_PAIRS_SHOWN = 20  # on standard output; --out gets all of them


def _search_parser() -> CommandParser:
    parser = CommandParser(
        prog="lit-vision search",
        description="Find the images of an index that are most similar to an image or to words (by cosine similarity; "
        "exact, or by\nthe approximate index that embed --index_type put in it), or the near duplicates in it (exact).",
        epilog="examples: lit-vision search --index photos.safetensors --model runs/mae/1 --query cat.jpg\n"
        "          lit-vision search --index photos.safetensors --model runs/imagetext/1 --text 'a red shoe'\n"
        "          lit-vision search --index photos.safetensors --duplicates 0.98 --out pairs.csv",
    )
    parser.add_argument("--index", required=True, metavar="FILE", help="made by lit-vision embed")
    parser.add_argument(
        "--query",
        nargs="+",
        metavar="IMAGE",
        help="images to look for, or folders, patterns and lists of them; needs the model of the index",
    )
    parser.add_argument(
        "--text",
        action="append",
        metavar="WORDS",
        help="words to look for; may be given several times; needs the model of the index, one of images and captions "
        "(ImageText, open_clip)",
    )
    parser.add_argument("--text_file", metavar="FILE", help="texts to look for, one a line, as --text")
    parser.add_argument("--duplicates", type=float, metavar="COSINE", help="pairs of the index above this similarity")
    parser.add_argument("--top_k", type=int, default=10, metavar="K", help="images per query (default 10)")
    parser.add_argument("--out", metavar="FILE.csv", help="also write all results to this file")
    add_overwrite_argument(parser)
    add_model_arguments(parser, required=False)
    return parser


def main(argv: Sequence[str]) -> int:
    """Run `lit-vision search --index FILE --query IMAGE | --text WORDS | --duplicates COSINE`; returns 0."""
    args = _search_parser().parse_args(list(argv))
    _check_search_arguments(args)
    from lit_vision.predict.writers import check_output_path

    out = check_output_path(args.out, args.overwrite) if args.out else None
    texts = _texts(args)
    index = read_index(args.index)
    rows: list[tuple[str | int, ...]]
    if args.query or texts:
        header = ["query", "rank", "path", "score"]
        results = list(_run_texts(index, args, texts) if texts else _run_queries(index, args))
        several = sum(rank == 1 for _, rank, *_ in results) > 1  # also by a folder or file
        shown = [f"{score}  {path}" + (f"  ({query})" if several else "") for query, _, path, score in results]
        rows = [*results]
    else:
        from lit_vision.data.check.duplicates import connected_groups

        header = ["group", "a", "b", "score"]
        pairs = list(NearestNeighbors(index.features).pairs(args.duplicates))
        group_of = {
            i: g for g, members in enumerate(connected_groups([(i, j) for i, j, _ in pairs]), 1) for i in members
        }
        rows = [(group_of[i], index.names[i], index.names[j], f"{score:.4f}") for i, j, score in pairs]
        shown = [f"{score}  {a}  {b}" for _, a, b, score in rows[:_PAIRS_SHOWN]]
        shown += [f"... and {len(rows) - _PAIRS_SHOWN} more pairs"] if len(rows) > _PAIRS_SHOWN else []
        groups = len(set(group_of.values()))
        shown.append(f"{len(rows)} pairs above {args.duplicates:g}: {len(group_of)} images in {groups} groups")
    sys.stdout.write("".join(f"{line}\n".encode("utf-8", "backslashreplace").decode() for line in shown))
    if out:

        def write(path: Path) -> None:
            with open(path, "w", newline="", encoding="utf-8", errors="surrogateescape") as file:
                csv.writer(file, lineterminator="\n").writerows([header, *rows])

        atomic_write(out, write)
        print(f"{out}: {len(rows)} rows")
    return 0


def _check_search_arguments(args: argparse.Namespace) -> None:
    by_text = args.text is not None or args.text_file is not None
    if bool(args.query) + by_text + (args.duplicates is not None) != 1:
        raise UsageError("search: give one of --query IMAGE, --text WORDS (or --text_file) and --duplicates COSINE")
    if not args.model and args.duplicates is None:
        flag = "--query" if args.query else "--text"
        raise UsageError(f"search: {flag} needs --model, the model that made the index")
    if args.duplicates is not None and not -1 <= args.duplicates < 1:
        raise UsageError(f"--duplicates {args.duplicates}: give a cosine from -1 to below 1; 0.95 to 0.99 is usual")
    if args.top_k < 1:
        raise UsageError(f"--top_k {args.top_k}: give at least 1")


def _texts(args: argparse.Namespace) -> list[str]:
    """Return the texts of --text and then those of --text_file; [] without both."""
    from lit_vision.data.annotations.files import read_lines
    from lit_vision.predict.shared_space import check_texts

    texts = check_texts(args.text, "--text") if args.text is not None else []
    if args.text_file is not None:
        lines = read_lines(Path(args.text_file).expanduser(), "file of --text_file")
        texts += check_texts(lines, f"--text_file {args.text_file}")
    return texts


def _run_texts(index: Index, args: argparse.Namespace, texts: list[str]) -> Iterator[tuple[str, int, str, str]]:
    """Yield (text, rank, path, score) of every text."""
    from lit_vision.predict.shared_space import text_vectors

    model = load_features_model(args, shared_space=True)
    vectors = text_vectors(model, texts)
    check_holds_texts_of(index, model.metadata)
    for text, found in zip(texts, open_neighbors(index).top(vectors, args.top_k)):
        for rank, (row, score) in enumerate(found, 1):
            yield text, rank, index.names[row], f"{score:.4f}"


def _run_queries(index: Index, args: argparse.Namespace) -> Iterator[tuple[str, int, str, str]]:
    """Yield (query, rank, path, score) of every query that can be read; the others are named on standard error."""
    from lit_vision.predict.inputs import batches, find_images
    from lit_vision.predict.tasks import preprocess_for

    queries = find_images(args.query)
    if left_out := queries.left_out.phrases():  # standard output is for what was found
        print(f"left out: {'; '.join(left_out)}", file=sys.stderr)
    model = load_features_model(args, shared_space=index.in_shared_space)
    check_same_model(index, feature_settings(model.metadata))
    neighbors = open_neighbors(index)
    readable = 0
    for batch in batches(queries, preprocess_for(model.metadata), 32, pixel_format=model.metadata.pixel_format):
        for name, reason in batch.unreadable:
            line = f"--query {os.path.join(queries.folder, name)}: {' '.join(reason.split())}"
            if len(queries) == 1:
                raise UserError(line)
            print(f"skipped {line}".encode("utf-8", "backslashreplace").decode(), file=sys.stderr)
        if batch.pixels is None:
            continue
        readable += len(batch.names)
        for name, found in zip(batch.names, neighbors.top(model(batch.pixels)["features"], args.top_k)):
            for rank, (row, score) in enumerate(found, 1):
                yield name, rank, index.names[row], f"{score:.4f}"
    if not readable:
        raise UserError(f"--query: none of the {len(queries)} images can be read; repair them or name others")
