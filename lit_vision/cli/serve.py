"""The serve command: a page in the browser and an API to try a model."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lit_vision.cli.parser import (
    CommandParser,
    add_classes_arguments,
    add_loading_arguments,
    add_server_arguments,
    check_classes_arguments,
    opened_models,
    zero_shot_model,
)
from lit_vision.errors import UsageError, UserError

if TYPE_CHECKING:
    from lit_vision.serve.predictor import Predictor
    from lit_vision.serve.text_search import TextSearch

_RANGES = {
    "port": (0, 65535),
    "batch_size": (1, 4096),
    "batch_wait": (0, 1000),
    "workers": (0, 1024),
    "max_images": (1, 4096),
    "max_mb": (0.001, 100_000),
    "max_megapixels": (0.001, 178),  # no image of more is decoded (data/views/decode.py)
    "queue": (1, 100_000),
}


def _parser() -> CommandParser:
    parser = CommandParser(
        prog="lit-vision serve",
        description="Open a page in the browser on which images can be dropped to try a model, and an API behind it:\n"
        "POST /v1/predict and /v1/embed, GET /v1/search, /healthz, /metrics, /api. Answers are those of lit-vision "
        "predict\nand search. Of a generator (FlowMatching, GAN) the page shows images that it makes, and the API is\n"
        "GET /v1/generate. Ctrl-C or SIGTERM stops it.",
        epilog="examples: lit-vision serve runs/classifier/20260101-120000\n"
        "          lit-vision serve runs/imagetext/1 --index photos.safetensors --index_root photos/",
    )
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="a run's folder, or .ckpt, .safetensors, .onnx, .xml, .pt2, .sealed; or a name of timm (its weights), or "
        "open_clip:MODEL/WEIGHTS",
    )
    add_classes_arguments(parser)
    add_loading_arguments(parser)
    add_server_arguments(parser)
    parser.add_argument(
        "--index",
        metavar="FILE",
        help="made by lit-vision embed with this model: answers name the nearest images in it, and a model of images "
        "and captions (ImageText, open_clip) finds them by words",
    )
    parser.add_argument(
        "--index_root", metavar="DIR", help="the folder that was embedded: the page shows the nearest images"
    )
    parser.add_argument(
        "--captions",
        choices=("auto", "decoder"),
        help="captioning: as in lit-vision predict; decoder uses a decoder that did not beat its baseline",
    )
    parser.add_argument("--batch_size", type=int, default=32, metavar="N", help="images a batch at most (default 32)")
    parser.add_argument(
        "--batch_wait", type=float, default=4.0, metavar="MS", help="milliseconds that an image waits (default 4)"
    )
    parser.add_argument("--workers", type=int, default=0, metavar="N", help="decoding threads (default 0: all cores)")
    parser.add_argument("--max_images", type=int, default=32, metavar="N", help="images of a request (default 32)")
    parser.add_argument("--max_mb", type=float, default=32, metavar="MB", help="size of a request (default 32)")
    parser.add_argument(
        "--max_megapixels",
        type=float,
        default=50,
        metavar="MP",
        help="size of an image, before it is decoded (default 50)",
    )
    parser.add_argument(
        "--queue", type=int, default=128, metavar="N", help="images that wait; with more it answers 503 (default 128)"
    )
    return parser


def main(argv: Sequence[str]) -> int:
    """Run `lit-vision serve MODEL` until it is stopped.

    Raises:
        UserError: one line that names the file or flag and what to do.
    """
    args = _parser().parse_args(list(argv))
    for name, (low, high) in _RANGES.items():
        if not low <= getattr(args, name) <= high:  # NaN fails too
            raise UsageError(f"--{name} {getattr(args, name)}: give a number from {low} to {high}")
    if args.queue < args.max_images:
        raise UsageError(f"--queue {args.queue}: a request may have --max_images {args.max_images}; give at least that")
    check_classes_arguments(args)
    if args.index_root and not args.index:
        raise UsageError("--index_root: is the folder of --index; give both")
    try:
        from lit_vision.serve.run_server import listen, run_server
    except ImportError as error:
        raise UserError(f"serve: {error.name} is not installed; pip install 'lit-vision[serve]'") from error
    from lit_vision.predict.generate import load_generator
    from lit_vision.predict.models import load_model
    from lit_vision.predict.search import check_same_model, feature_settings, read_index
    from lit_vision.serve.access import Access
    from lit_vision.serve.generator_app import GeneratorApp
    from lit_vision.serve.guard import Limits
    from lit_vision.serve.model_app import ModelApp
    from lit_vision.serve.predictor import Predictor
    from lit_vision.weights.compatibility import GeneratorFileError

    access = Access(args.host, args.allowed_hosts, args.token)
    index = read_index(args.index) if args.index else None
    if args.index_root and not Path(args.index_root).is_dir():
        raise UserError(f"--index_root {args.index_root}: no such folder; check the path")
    shared_space = index is None or index.in_shared_space
    limits = Limits(
        body_bytes=int(args.max_mb * 1e6),
        images=args.max_images,
        queued_images=args.queue,
        pixels=int(args.max_megapixels * 1e6),
    )
    with opened_models(args):
        try:
            if args.classes:
                model = zero_shot_model(args)
            else:
                model = load_model(
                    args.model,
                    args.device,
                    args.base,
                    args.trust_pt2,
                    value_range=args.range,
                    shared_space=shared_space,
                )
        except GeneratorFileError:
            _check_generator_arguments(args)
            network, names, path = load_generator(args.model, args.device)
            model = None
    if model is None:
        with GeneratorApp(network, names, path, limits) as made, listen(args.host, args.port) as listener:
            classes = f", {len(made.names)} classes" if made.names else ""
            print(f"{path}: {network.method_name}{classes}; Ctrl-C stops it. Open", flush=True)
            run_server(made.app(access), access, listener, args.host)
        return 0
    if index is not None:
        check_same_model(index, feature_settings(model.metadata))
    predictor = Predictor(
        model,
        max_pixels=limits.pixels,
        index=index,
        captions=args.captions,
        max_batch=args.batch_size,
        max_wait=args.batch_wait / 1000,
        readers=args.workers,
    )
    text_search = _text_search(predictor)
    app = ModelApp(predictor, limits, Path(args.index_root) if args.index_root else None, text_search)
    with predictor, text_search or contextlib.nullcontext(), listen(args.host, args.port) as listener:
        classes = f", {len(model.metadata.class_names)} classes" if model.metadata.class_names else ""
        print(f"{model.path}: {model.metadata.task}{classes}, {model.runtime}; Ctrl-C stops it. Open", flush=True)
        run_server(app.app(access), access, listener, args.host)
    return 0


def _check_generator_arguments(args: argparse.Namespace) -> None:
    """Raise UsageError for a flag that says how images are read."""
    for name in ("classes", "index", "captions", "base", "range"):
        if getattr(args, name):
            raise UsageError(f"--{name}: is for models that read images, and {args.model} makes them; leave it out")


def _text_search(predictor: Predictor) -> TextSearch | None:
    """Return the search of the predictor's index by words; None if its model has none, or cannot encode any."""
    from lit_vision.serve.text_search import TextSearch

    if predictor.model.encode_texts is None or predictor.index is None or predictor.neighbors is None:
        return None
    try:
        return TextSearch(predictor.model, predictor.index.names, predictor.neighbors)
    except UserError as error:  # images are still compared with images
        print(f"no search by words: {error}", flush=True)
        return None
