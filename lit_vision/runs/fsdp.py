"""FSDP2 through Lightning's ModelParallelStrategy, and sharded checkpoints that load on any number of processes.

    trainer:
      strategy: {class_path: lit_vision.runs.fsdp.FSDP2Strategy, init_args: {activation_checkpointing: true}}
      precision: bf16-mixed

A sharded checkpoint is a folder: rank-<r>-of-<n>.safetensors with each process's part of the tensors, rest.ckpt with
the plain values, and manifest.json with the size and sha256 of each file. It is written to NAME.tmp/, which is renamed
when it is complete. torch.distributed.checkpoint is not used for the files: its reader unpickles them (filesystem.py
`pickle.load(metadata_file)`, default_planner.py `weights_only=False`, torch 2.14), which can run code; safetensors
cannot.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.strategies import ModelParallelStrategy
from safetensors.torch import save as to_bytes
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, Shard

from lit_vision import lightning_internals
from lit_vision.errors import UserError
from lit_vision.io import checkpoint_digest
from lit_vision.io.atomic import disk_full_error, rename_into_place, write_temp_and_hash
from lit_vision.io.safe_load import DamagedCheckpointError, load_safely, unreadable
from lit_vision.io.sharded_checkpoint import REST, ShardReader, is_tensor_ref, map_leaves


def blocks_of(module: nn.Module) -> list[nn.Module]:
    """Return the transformer blocks of encoder and decoder: the members of every list called `blocks`."""
    lists = [m for name, m in module.named_modules() if name.split(".")[-1] == "blocks"]
    return [block for found in lists if isinstance(found, nn.ModuleList | nn.Sequential) for block in found]


def recompute_activations(module: LightningModule) -> None:
    """Let each block of encoder and decoder store its input alone and compute its activations again in backward."""
    parts: Any = module
    parts.backbone.model.set_grad_checkpointing(True)
    if hasattr(parts, "decoder"):
        parts.decoder.checkpointing = True


def shard(module: LightningModule, mesh: Any) -> None:
    """Shard a method's parameters over the mesh: each block by itself, then the rest of the backbone, then all others.

    Raises:
        UserError: the model has no transformer blocks.
    """
    blocks = blocks_of(module)
    if not blocks:
        raise UserError("trainer.strategy: FSDP2Strategy splits transformer blocks and this model has none; use ddp")
    for part in (*blocks, module.backbone, module):
        fully_shard(part, mesh=mesh)
    # FSDP2 gathers parameters around forward(); these methods are called instead of it
    for part, names in (
        (module.backbone, ("forward_tokens", "forward_maps")),
        (module, ("training_step", "validation_step", "test_step")),
    ):
        for name in names:
            if callable(getattr(part, name, None)):
                register_fsdp_forward_method(part, name)


class FSDP2Strategy(ModelParallelStrategy):
    """FSDP2 over all processes, for ViTs: parameters, gradients and optimizer state are split by block.

    Args:
        activation_checkpointing: recompute each block in the backward pass instead of storing its activations.
        process_group_backend: nccl on GPUs, gloo on CPUs if None.
    """

    def __init__(self, activation_checkpointing: bool = False, process_group_backend: str | None = None) -> None:
        super().__init__(process_group_backend=process_group_backend)
        self.activation_checkpointing = activation_checkpointing

    def setup_environment(self) -> None:
        lightning_internals.shard_data_only(self)
        super().setup_environment()

    def setup(self, trainer: Trainer) -> None:
        if self.activation_checkpointing:
            recompute_activations(self.model)
        lightning_internals.setup_model_parallel(
            self, trainer, lambda: shard(self.model, self.device_mesh["data_parallel"])
        )

    def on_validation_start(self) -> None:
        """Raise UserError if the processes have unequal numbers of batches, because a forward waits for all of them."""
        trainer = self.lightning_module.trainer
        counts = trainer.num_sanity_val_batches if trainer.sanity_checking else trainer.num_val_batches
        extremes = torch.tensor([sum(counts), -sum(counts)], device=self.root_device)
        dist.all_reduce(extremes, dist.ReduceOp.MAX)
        most, least = int(extremes[0]), -int(extremes[1])
        if most != least:
            raise UserError(
                "trainer.strategy: FSDP2Strategy needs equally many validation batches on each process, and they have "
                f"{least} to {most}; set trainer.limit_val_batches to {least} at most, or another data.batch_size"
            )

    def lightning_module_state_dict(self) -> dict[str, Any]:
        state: dict[str, Any] = get_model_state_dict(self.model, options=StateDictOptions(cpu_offload=True))
        return state

    def optimizer_state(self, optimizer: Any) -> dict[str, Any]:
        optimizer = lightning_internals.unwrap_optimizer(optimizer)
        options = StateDictOptions(cpu_offload=True)
        state: dict[str, Any] = get_optimizer_state_dict(self.model, optimizer, options=options)
        return state

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        """Write this process's part of the folder; `storage_options` as in `AtomicCheckpointIO.save_checkpoint`."""
        path = Path(self.broadcast(str(filepath)))
        with disk_full_error(path):
            _save(checkpoint, path, self.global_rank, self.world_size, storage_options or {}, self.barrier)

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Load a sharded checkpoint of any number of processes into model and optimizers; return the rest.

        Raises:
            DamagedCheckpointError: a file differs from what was written.
            UserError: it is not a sharded checkpoint.
        """
        path = Path(self.broadcast(str(checkpoint_path)))
        if not path.is_dir():
            raise UserError(
                f"{path}: is not a sharded checkpoint; resume without strategy FSDP2Strategy, which reads no others"
            )
        if wrong := self.broadcast(checkpoint_digest.integrity_error(path) if self.is_global_zero else None):
            raise DamagedCheckpointError(f"{path} {wrong}; use another checkpoint")
        checkpoint, parts = load_safely(path / REST), ShardReader(path)
        mesh = self.device_mesh["data_parallel"]

        def filled(value: Any) -> Any:
            return _local_part(parts, value["tensor"], mesh) if is_tensor_ref(value) else value

        set_model_state_dict(self.model, map_leaves(checkpoint["state_dict"], filled))
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"]):
            set_optimizer_state_dict(self.model, optimizer, map_leaves(state, filled))
        return checkpoint


def _save(checkpoint: dict[str, Any], path: Path, rank: int, world: int, options: dict[str, Any], barrier: Any) -> None:
    folder = path.with_name(path.name + ".tmp")
    if rank == 0:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    barrier()
    local_tensors: dict[str, Tensor] = {}
    shapes: dict[str, list[int]] = {}

    def take(value: Any) -> Any:
        if not isinstance(value, DTensor):
            return value
        if any(not isinstance(p, Shard) or p.dim != 0 for p in value.placements):
            raise ValueError(f"a tensor is not split along its first dimension: {value.placements}")
        name = f"t{len(shapes):06d}"
        shapes[name] = list(value.shape)
        local_tensors[name] = value.to_local().contiguous()
        return {"tensor": name}

    rest = {**checkpoint, "state_dict": map_leaves(dict(checkpoint["state_dict"]), take)}
    rest["optimizer_states"] = [map_leaves(state, take) for state in checkpoint.get("optimizer_states", [])]
    written, unreadable_reason = {}, ""
    names = [(f"rank-{rank:05d}-of-{world:05d}.safetensors", lambda file: file.write(to_bytes(local_tensors)))]
    for name, fill in names + [(REST, lambda file: torch.save(rest, file))] * (rank == 0):
        temporary, digest = write_temp_and_hash(folder / name, fill)
        unreadable_reason = unreadable(temporary) if name == REST else ""
        rename_into_place(temporary, folder / name)
        written[name] = {"size": digest.size, "sha256": digest.sha256}
    all_written: list[Any] = [None] * world
    entry = {"files": written, "unreadable": unreadable_reason}
    dist.all_gather_object(all_written, entry) if world > 1 else all_written.__setitem__(0, entry)
    if reason := all_written[0]["unreadable"]:  # every process raises, so that none waits for the others
        raise UserError(f"{path}: not saved, as it could not be loaded again ({reason}); the folder before is kept")
    if rank == 0:
        files = {name: digests for part in all_written for name, digests in part["files"].items()}
        manifest = {"step": checkpoint.get("global_step", -1), "world": world, "shapes": shapes, "files": files}
        temporary, _ = write_temp_and_hash(
            folder / checkpoint_digest.MANIFEST, lambda file: file.write(json.dumps(manifest).encode())
        )
        rename_into_place(temporary, folder / checkpoint_digest.MANIFEST)
        for name in options.get("also", ()):
            _replace_folder(_hardlink_tree(folder, path.with_name(name)), path.with_name(name))
        keep = path.with_name(options["previous"]) if options.get("previous") else None
        if keep is not None and path.is_dir() and checkpoint_digest.is_valid(path):
            _replace_folder(path, keep)
        _replace_folder(folder, path)
    barrier()


def _hardlink_tree(folder: Path, target: Path) -> Path:
    """Create hard links to a folder's files in a temporary folder for `target`; return that folder."""
    second = target.with_name(target.name + ".tmp")
    shutil.rmtree(second, ignore_errors=True)
    shutil.copytree(folder, second, copy_function=os.link)
    return second


def _replace_folder(source: Path, target: Path) -> None:
    """Replace a folder by another; the old one is renamed first, as a rename cannot replace a folder with content."""
    aside = target.with_name(target.name + ".old")
    shutil.rmtree(aside, ignore_errors=True)
    if target.is_dir():
        os.replace(target, aside)
    elif target.exists():
        target.unlink()
    rename_into_place(source, target)
    shutil.rmtree(aside, ignore_errors=True)


def _local_part(parts: ShardReader, name: str, mesh: Any) -> DTensor:
    """Return this process's part of a tensor, as FSDP2 splits it over the mesh: ceil(n / world) rows each."""
    shape = parts.shapes[name]
    each = -(-shape[0] // mesh.size())
    start = min(mesh.get_local_rank() * each, shape[0])
    local = parts.rows(name, start, min(start + each, shape[0])).to(mesh.device_type)
    stride = torch.empty(shape, device="meta").stride()
    return DTensor.from_local(local, mesh, [Shard(0)], run_check=False, shape=torch.Size(shape), stride=stride)
