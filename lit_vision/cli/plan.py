"""Plan command: what a recipe will cost on some machines, before it runs."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

from lit_vision.cli.parser import CommandParser, split_overrides
from lit_vision.errors import UsageError

MOST = 1_000_000  # machines, and devices of a machine
ROWS = {  # of the table of bytes: key, title
    "parameters": "parameters",
    "buffers": "buffers",
    "gradients": "gradients",
    "buckets": "buckets that exchange gradients",
    "optimizer": "optimizer",
    "averages": "averaged weights (EMA)",
    "activations": "activations",
    "all": "sum",
}


def _parser() -> CommandParser:
    parser = CommandParser(
        prog="lit-vision plan",
        usage="lit-vision plan RECIPE [--nodes N] [--devices_per_node D] [--images N] [--json] [--KEY VALUE ...]",
        description="Print what a recipe will cost: steps, images, multiply-adds, and the bytes of each device under "
        "DDP and FSDP2.\nNothing is trained and no weights are loaded; with --images the data need not be there.",
        epilog="--KEY VALUE sets a key of the recipe, such as --data.batch_size 128.\n"
        "Bytes of parameters, gradients, optimizer and checkpoint are exact. Activations are what forward keeps for\n"
        "backward with the kernels of a CPU; the peak inside a step is higher.\n"
        "example: lit-vision plan experiments/mae/vitl16_in1k_1600ep.yaml --nodes 8 --devices_per_node 8 "
        "--images 1281167",
    )
    add = parser.add_argument
    add("recipe", metavar="RECIPE", help="the recipe, or config.yaml of a run")
    add("--nodes", type=int, metavar="N", help="machines (default: trainer.num_nodes of the recipe)")
    add(
        "--devices_per_node",
        type=int,
        metavar="D",
        help="processes of each (default: trainer.devices if a number, else 1)",
    )
    add("--images", type=int, metavar="N", help="images that training draws from (default: counted in the data)")
    add("--json", action="store_true", help="print the plan as JSON")
    return parser


def main(argv: Sequence[str]) -> int:
    """Print the plan of a recipe. Returns 0.

    Raises:
        UserError: one line that names the recipe, key or flag, and what to do.
    """
    args, rest = _parser().parse_known_args(list(argv))
    overrides = split_overrides(rest, "plan")
    for name, most in (("nodes", MOST), ("devices_per_node", MOST), ("images", 10**15)):
        value = getattr(args, name)
        if value is not None and not 1 <= value <= most:
            raise UsageError(f"--{name} {value}: give 1 to {most}")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a plan asks no server: a text model must be on this machine
    from lit_vision.cli.fit import resolve_config

    try:
        config = resolve_config(["fit", "--config", args.recipe, *overrides])
    except UsageError as error:
        text = str(error).removeprefix("--config ")
        raise UsageError(text if args.recipe in text or text.startswith("--") else f"{args.recipe}: {text}") from error
    from lit_vision.runs.plan import Machines, build_object, plan_run, training_images

    trainer, data = config["trainer"], build_object(config["data"])
    machines = Machines(
        args.nodes or trainer.get("num_nodes") or 1,
        args.devices_per_node or _devices_of(trainer.get("devices")),
        args.images or training_images(data),
    )
    plan = {"recipe": args.recipe, **plan_run(config, machines, data, _weight_copies(trainer))}
    print(json.dumps(plan, indent=1) if args.json else "\n".join(_describe(plan)))
    return 0


def _devices_of(setting: Any) -> int:
    """Return the number of devices that trainer.devices names; 1 if that depends on the machine."""
    if isinstance(setting, list):
        return len(setting)
    number = int(setting) if isinstance(setting, int) or str(setting).isdigit() else 1
    return max(1, number)


def _weight_copies(trainer: Mapping[str, Any]) -> int:
    """Return how many copies of the weights the recipe's callbacks keep."""
    callbacks = trainer.get("callbacks") or []
    callbacks = callbacks if isinstance(callbacks, list) else [callbacks]
    return sum(str(callback.get("class_path")).endswith(".EMA") for callback in callbacks)


def _describe(plan: Mapping[str, Any]) -> list[str]:
    """Return the plan as lines of text."""
    machines, devices = plan["nodes"], plan["devices_per_node"]
    adds, steps = plan["multiply_adds"], plan["steps"]
    ddp, fsdp2 = plan["bytes"]["ddp"], plan["bytes"]["fsdp2"]
    lines = [
        f"{plan['recipe']}: {plan['method']} on {machines * devices} device{'s' * (machines * devices > 1)} "
        f"({machines} x {devices}), {plan['precision']}",
        f"{'images a step':<32}{plan['global_batch_size']:,} ({plan['batch_size']} a device"
        + (f", {plan['accumulate_grad_batches']} batches a step)" if plan["accumulate_grad_batches"] > 1 else ")"),
        f"{'steps':<32}{steps:,} ({plan['epochs']} epochs of {plan['steps_per_epoch']:,})",
        f"{'images':<32}{plan['images']:,} (training has {plan['training_images']:,})",
        f"{'multiply-adds':<32}{adds['image']:.3e} an image, forward and backward; {adds['run']:.3e} in all",
        f"{'parameters':<32}{plan['parameters']:,}, {plan['trained_parameters']:,} of them train ({plan['optimizer']})",
        f"{'checkpoint':<32}{_bytes(plan['checkpoint_bytes'])}",
        "",
        f"{'bytes of a device':<32}{'DDP':>14}{'FSDP2':>14}",
    ]
    for key, title in ROWS.items():
        if ddp[key] or (fsdp2 or {}).get(key):
            lines.append(f"{title:<32}{_bytes(ddp[key]):>14}{_bytes(fsdp2[key]) if fsdp2 else '-':>14}")
    return [*lines, *plan["notes"]]


def _bytes(number: int) -> str:
    """Return a number of bytes as text, with three digits or more."""
    value = float(number)
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if value < 1000 or unit == "TB":
            break
        value /= 1000
    return f"{value:.0f} {unit}" if unit == "B" else f"{value:,.2f} {unit}"
