"""Where training stands in the order of samples: what a datamodule keeps in a checkpoint, and what it refuses to go on from."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import LightningDataModule

from lit_vision.errors import UserError


def loader_state(data: LightningDataModule, identity: str) -> dict[str, Any]:
    """The state of a datamodule with `batch_size`, `seed`, `cursor` and `global_batch_size`.

    Args:
        data: the datamodule, with or without a Trainer.
        identity: names what training draws from; another one is other data.

    Returns:
        {"epoch", "samples" of it that the optimiser has had on all processes, "micro": samples of one batch on all processes,
        "global": those of one optimiser step, "seed", "data"}.
    """
    epoch, samples = data.cursor
    t = data.trainer
    micro = data.batch_size * (1 if t is None else t.world_size)
    if t is not None and isinstance(t.num_training_batches, int) and t.num_training_batches:
        epoch, batch = divmod(t.fit_loop.epoch_loop.batch_progress.total.ready, t.num_training_batches)
        samples = batch * micro
    return {
        "epoch": epoch,
        "samples": samples,
        "micro": micro,
        "global": data.global_batch_size,
        "seed": data.seed,
        "data": identity,
    }


def restore_loader_state(data: LightningDataModule, state: dict[str, Any], identity: str) -> None:
    """Sets `data.cursor` from a stored state.

    With `data.resume_anyway` a changed run is gone on with: at the stored epoch, after as many whole steps as were done (from 0 in
    another order), and `data.moved` is True, by which the loops' counters are set anew.

    Raises:
        UserError: the seed, the data or the global batch is another one: the order of samples would not be the run's.
    """
    changed = []
    for key, name, now in (
        ("seed", "data.seed", data.seed),
        ("global", "global batch (batch_size x devices x accumulation)", data.global_batch_size),
        ("data", "data (folder, labels, shots or split_file)", identity),
    ):
        if state[key] != now:
            how = f"was {state[key]}, now {now}" if key != "data" else "has changed since the checkpoint"
            changed.append(f"{name}: {how}")
    samples = state["samples"]
    if changed and not getattr(data, "resume_anyway", False):
        raise UserError(
            f"{'; '.join(changed)}; put it back to resume, or start a new run (--resume_anyway true goes on all the same)"
        )
    if changed:
        print(f"--resume_anyway: {'; '.join(changed)}; what follows is another run", flush=True)
        samples = samples // data.global_batch_size * data.global_batch_size
    data.cursor, data.moved = (state["epoch"], samples), bool(changed)
