"""Save and restore the data position of a run: the epoch, and the samples of it that training has had."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from lit_vision.errors import UserError

if TYPE_CHECKING:
    from lightning.pytorch import Trainer


class ResumableData(Protocol):
    """Attributes of a data module that its stored position is made of."""

    batch_size: int
    seed: int
    cursor: tuple[int, int]  # epoch, and samples of it that all processes together have had
    moved: bool  # set by `restore_loader_state`
    trainer: Trainer | None

    @property
    def global_batch_size(self) -> int:
        """Samples of one optimizer step."""


def loader_state(data: ResumableData, identity: str) -> dict[str, Any]:
    """Return the data position of a run as a dictionary for its checkpoint.

    Args:
        data: the data module, with or without a Trainer.
        identity: a digest of the images that training draws from; another digest means other data.

    Returns:
        {"epoch", "samples" of it that the optimizer has had on all processes, "micro": samples of one batch on all
        processes, "global": those of one optimizer step, "seed", "data", and "order" (`KeyedDataModule.data_order`)
        where it is not the full one}.
    """
    epoch, samples = data.cursor
    trainer = data.trainer
    micro = data.batch_size * (1 if trainer is None else trainer.world_size)
    if trainer is not None and isinstance(trainer.num_training_batches, int) and trainer.num_training_batches:
        epoch, batch = divmod(trainer.fit_loop.epoch_loop.batch_progress.total.ready, trainer.num_training_batches)
        samples = batch * micro
    return {
        "epoch": epoch,
        "samples": samples,
        "micro": micro,
        "global": data.global_batch_size,
        "seed": data.seed,
        "data": identity,
    } | ({} if _order_of(data) == "full" else {"order": _order_of(data)})


def _order_of(data: ResumableData) -> str:
    return str(getattr(data, "data_order", "full"))


def restore_loader_state(data: ResumableData, state: dict[str, Any], identity: str) -> None:
    """Set `data.cursor` from a stored state.

    A run whose seed, data, order or global batch changed is refused, since the order of its samples would change. With
    `data.resume_anyway` it continues all the same: in the stored epoch, after the full optimizer steps that the stored
    samples make. `data.moved` is then True, and the loops' counters are computed from it again.

    Args:
        data: the data module, with or without a Trainer.
        state: from `loader_state`.
        identity: as in `loader_state`.

    Raises:
        UserError: the seed, the data, the order or the global batch differs from the stored one.
    """
    changed = []
    for key, name, now in (
        ("seed", "data.seed", data.seed),
        ("global", "global batch (batch_size x devices x accumulation)", data.global_batch_size),
        ("data", "data (folder, labels, shots or split_file)", identity),
        ("order", "data.order and window_blocks", _order_of(data)),
    ):
        if state.get(key, "full") != now:  # the full order is not stored
            difference = (
                f"was {state.get(key, 'full')}, now {now}" if key != "data" else "has changed since the checkpoint"
            )
            changed.append(f"{name}: {difference}")
    samples = state["samples"]
    if changed and not getattr(data, "resume_anyway", False):
        raise UserError(
            f"{'; '.join(changed)}; restore the old value to resume, or start a new run "
            "(--resume_anyway true continues with the change)"
        )
    if changed:
        print(f"--resume_anyway: {'; '.join(changed)}; the run continues with the change", flush=True)
        samples = samples // data.global_batch_size * data.global_batch_size
    data.cursor, data.moved = (state["epoch"], samples), bool(changed)
