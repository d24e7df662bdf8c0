"""Flags of predict and embed for runs on many machines: --shard, --merge, --engine, --address, --shards."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from lit_vision.errors import UsageError, UserError
from lit_vision.predict.shards import FORMATS, MOST_SHARDS, Shard, default_count


def add_shard_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags, as a group of their own."""
    group = parser.add_argument_group(
        "many machines that share a file system (.csv, .jsonl, .parquet; embed: .safetensors, .parquet)"
    )
    group.add_argument(
        "--shard",
        metavar="i/n",
        type=Shard.parse,
        help="do the i-th of n parts of the images, i from 0 to n - 1; a part that is finished is not done again",
    )
    group.add_argument(
        "--merge", action="store_true", help="join the finished parts beside --out; IMAGES and --model are not given"
    )
    group.add_argument(
        "--engine",
        choices=("local", "ray"),
        default="local",
        help="ray: do the shards as tasks of a Ray cluster, and merge them (default local: one process)",
    )
    group.add_argument(
        "--address",
        metavar="HOST:PORT",
        help="with --engine ray: a running cluster; default: one on this machine alone, on its loopback address",
    )
    group.add_argument(
        "--shards", type=int, metavar="N", help="with --engine ray: number of shards (default: one for 64 batches)"
    )


def check_shard_arguments(command: str, args: argparse.Namespace) -> None:
    """Refuse flags that do not go together, and a command without what it needs.

    Raises:
        UsageError: names the flag.
    """
    if args.merge:
        given = [name for name, value in (("IMAGES", args.images), ("--model", args.model)) if value]
        if given or args.shard or args.engine != "local":
            what = [*given, *(["--shard"] if args.shard else []), *(["--engine"] if args.engine != "local" else [])]
            raise UsageError(f"--merge: joins the finished parts of --out alone; leave {' and '.join(what)} out")
    else:
        missing = [name for name, value in (("IMAGES", args.images), ("--model", args.model)) if not value]
        if missing:
            raise UsageError(
                f"{command}: the following arguments are required: {', '.join(missing)}; "
                f"see lit-vision {command} --help"
            )
    for name in ("address", "shards"):
        if getattr(args, name) is not None and args.engine != "ray":
            raise UsageError(f"--{name}: is for --engine ray; leave it out")
    if args.shards is not None and not 1 <= args.shards <= MOST_SHARDS:
        raise UsageError(f"--shards {args.shards}: give 1 to {MOST_SHARDS}")
    if args.shard and args.engine == "ray":
        raise UsageError("--shard: --engine ray does all shards by itself; leave one of them out")
    suffix = Path(args.out).suffix.lower().removeprefix(".")
    if (args.shard or args.merge or args.engine == "ray") and (
        suffix not in FORMATS or args.out.lower().endswith(".results.json")
    ):
        flag = "--shard" if args.shard else "--merge" if args.merge else "--engine ray"
        raise UsageError(f"{flag}: --out {args.out} cannot be joined from parts; end it in .{', .'.join(FORMATS)}")


def run_engine(args: argparse.Namespace, images: int, run: Callable[[Shard], None]) -> None:
    """Do all shards of a command on a Ray cluster.

    Args:
        args: with the flags of `add_shard_arguments`.
        images: number of images.
        run: does one shard; is sent to the workers, with all that it holds.

    Raises:
        UserError: Ray is not installed, the cluster cannot be reached, or a shard failed.
    """
    from lit_vision.predict.ray_engine import run_on_ray

    count = args.shards or default_count(images, args.batch_size)
    if count > (batches := -(-images // args.batch_size)):
        raise UserError(f"--shards {count}: {images} images are {batches} batches of {args.batch_size}; give fewer")
    run_on_ray(run, [Shard(i, count) for i in range(count)], args.address, cpus=max(1, args.workers))
