"""The one file that knows LightningCLI: a recipe and a command line become a model, its data and a Trainer.

What LightningCLI does by itself and is undone here (each was seen): `--ckpt_path FILE` replaces `model.*` of the recipe by what the file
says; abbreviated flags are guessed; a wrong key prints 57 lines; optimisers are configured behind the module's back; `validate`
without a checkpoint measures random weights.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from lit_vision.callbacks.checkpoint import AtomicCheckpointIO, LastCheckpoint, SeedEachBatch
from lit_vision.callbacks.nonfinite import StopOnNonFinite
from lit_vision.callbacks.progress import Progress
from lit_vision.callbacks.run_record import RunRecord, SampleCounter
from lit_vision.cli.config import Parser, SaveConfig, current_class_paths, to_plain_dict
from lit_vision.cli.config_errors import summarize_state_dict_error
from lit_vision.distributed import global_batch_norm
from lit_vision.errors import UsageError, UserError
from lit_vision.io import checkpoint_digest
from lit_vision.io.hashing import sha256_of_file
from lit_vision.io.processes import die_with_parent
from lit_vision.results import schema
from lit_vision.runs import loggers, run_dir


class RunCLI(LightningCLI):
    """fit | validate | test of one recipe.

    Args:
        args: the words after `lit-vision`, the command first.
        recipe: the recipe's file.
        overrides: the words that change it, for the record.
    """

    folder: Path = Path()

    def __init__(self, args: Sequence[str], recipe: str | None, overrides: Sequence[str]) -> None:
        self.recipe, self.overrides = recipe, list(overrides)
        self.start = run_dir.RunStart(Path())
        warnings.filterwarnings("ignore", ".*does not have many workers.*")
        warnings.filterwarnings("ignore", ".*is not resumable.*")  # ours is: the position is in the datamodule's state
        warnings.filterwarnings("ignore", ".*You have overridden `on_(after|before)_batch_transfer`.*")
        warnings.filterwarnings("ignore", ".*LeafSpec.*")  # Lightning's own call of torch
        logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(lambda r: "Tip:" not in r.getMessage())
        super().__init__(
            args=list(args),
            parser_class=Parser,
            save_config_callback=SaveConfig,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,  # our modules call save_hyperparameters with plain values themselves
            trainer_defaults={"use_distributed_sampler": False, "log_every_n_steps": 10},
        )

    # ---- what can be typed

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        hidden = {"model", "datamodule", "weights_only"}
        return {
            "fit": hidden | {"train_dataloaders", "val_dataloaders", "ckpt_path"},
            "validate": hidden | {"dataloaders"},
            "test": hidden | {"dataloaders"},
        }

    def add_default_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument(
            "--seed_everything", type=int, default=0, help="seed of initialisation, order and augmentation"
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument(
            "--run_dir", type=str, default=None, help="the run's folder; runs/<recipe>/<time> if not given"
        )
        parser.add_argument("--name", type=str, default=None, help="the run's folder is runs/<recipe>/<name>")
        parser.add_argument("--resume", type=str, default=None, help="auto, or a checkpoint: go on with this run")
        parser.add_argument("--resume_anyway", type=bool, default=False, help="also over changed data or global batch")
        parser.add_argument("--wandb", type=str, default=None, help="log to this Weights & Biases project as well")
        parser.add_argument("--wandb_weights", type=bool, default=False, help="upload the final weights to W&B")
        # at parse time; a class without a seed is left alone
        parser.link_arguments("seed_everything", "data.init_args.seed")
        parser.link_arguments("seed_everything", "model.init_args.seed")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        self.config = parser.parse_args([current_class_paths(argument) for argument in args])
        own = self.config[self.config.subcommand]
        if not own.get("data"):
            raise UsageError("data: is missing; give class_path and init_args as the recipes in experiments/ do")
        if own.trainer.use_distributed_sampler:
            raise UsageError(
                "trainer.use_distributed_sampler: must be false; our sampler shares out the samples itself"
            )

    def _parse_ckpt_path(self) -> None:
        """Nothing: the recipe says what the model is."""

    # ---- from settings to objects

    def before_instantiate_classes(self) -> None:
        own = self.config[self.subcommand]
        self.run_sha256 = run_dir.recipe_hash(self.recipe, self.overrides)
        if self.subcommand == "fit":
            folder = own.run_dir or (own.name and str(run_dir.default_run_dir(self.recipe, own.name)))
            if own.resume_anyway and not own.resume:
                raise UsageError("--resume_anyway: is for --resume auto or --resume CHECKPOINT; add one")
            self.start = run_dir.resolve_run(self.recipe, self.run_sha256, folder, own.resume, own.resume_anyway)
            self.folder = self.start.folder
            return
        # a checkpoint is complete in itself: its weights replace those that the run began with
        checkpoint = Path(own.ckpt_path).resolve()
        self.folder = Path(own.run_dir) if own.run_dir else run_dir.run_dir_of(checkpoint) or checkpoint.parent
        model = own.model.get("init_args", Namespace())
        if model.get("backbone_checkpoint"):
            model.backbone_checkpoint = None
        if (model.get("backbone_args") or {}).get("pretrained"):
            model.backbone_args["pretrained"] = False

    def instantiate_classes(self) -> None:
        # jsonargparse buries what a constructor says in a page about types: keep it, and say that
        said: list[UserError] = []

        def make(class_type: type, *args: Any, **kwargs: Any) -> Any:
            try:
                return class_type(*args, **kwargs)
            except UserError as error:
                said.append(error)
                raise

        for base in (LightningModule, LightningDataModule, Callback):
            self.parser.add_instantiator(make, base, subclasses=True)
        try:
            super().instantiate_classes()
        except (ValueError, TypeError):
            if said:
                raise said[0] from None
            raise

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        settings = self.config_init[self.subcommand].trainer
        plugins = settings.get("plugins") or []
        kwargs |= {
            "default_root_dir": str(self.folder),
            "plugins": [*(plugins if isinstance(plugins, list) else [plugins]), AtomicCheckpointIO()],
            "logger": self._loggers(settings.get("logger")),
        }
        if settings.get("sync_batchnorm"):  # Lightning's own fails on CPU and drops activations of timm's fused norms
            kwargs |= {"sync_batchnorm": False, "plugins": [*kwargs["plugins"], global_batch_norm()]}
        callbacks = settings.get("callbacks") or []
        callbacks = list(callbacks) if isinstance(callbacks, list) else [callbacks]
        kwargs["callbacks"] = callbacks + self._callbacks(callbacks, settings)
        return super().instantiate_trainer(**kwargs)

    def _loggers(self, given: Any) -> list[Logger] | bool:
        if given is False or self.subcommand != "fit":
            return False
        named = [] if given in (None, True) else given if isinstance(given, list) else [given]
        found: list[Logger] = [loggers.RunCSVLogger(self.folder), *(named or [loggers.tensorboard(self.folder)])]
        own = self.config[self.subcommand]
        if own.wandb:
            config = to_plain_dict(self._parser(self.subcommand), own)
            if logger := loggers.weights_and_biases(own.wandb, self.folder, config=config):
                found.append(logger)
        return found

    def _callbacks(self, given: list[Any], settings: Namespace) -> list[Any]:
        """What every run has unless the recipe names another of its kind."""
        seed = self.config[self.subcommand].seed_everything
        own = [SeedEachBatch(seed)]
        if settings.enable_progress_bar is not False and not any(isinstance(c, ProgressBar) for c in given):
            own.append(Progress())
        if self.subcommand != "fit":
            return own
        if not any(isinstance(c, StopOnNonFinite) for c in given):
            own.append(StopOnNonFinite())
        if settings.enable_checkpointing is not False and not settings.fast_dev_run:
            own += [] if any(isinstance(c, LastCheckpoint) for c in given) else [LastCheckpoint()]
            own.append(
                RunRecord(
                    _recipe_label(self.recipe),
                    self.recipe and sha256_of_file(self.recipe),
                    seed,
                    self.run_sha256,
                    self.overrides,
                    upload_weights=self.config[self.subcommand].wandb_weights,
                )
            )
        return own

    # ---- what is run

    def fit(self, **kwargs: Any) -> None:
        """Trains; goes on from the checkpoint that --resume found."""
        checkpoint = self.start.checkpoint
        if os.environ.get("LOCAL_RANK", "0") != "0":
            die_with_parent()
        if self.trainer.is_global_zero:
            for line in self.start.skipped_checkpoints:
                print(f"passed over: {line}", flush=True)
            if checkpoint:
                print(f"going on from {checkpoint}", flush=True)
            elif self.config.fit.resume:
                print(f"--resume auto: no checkpoint of this run yet, so it starts anew in {self.folder}", flush=True)
            for logger in self.trainer.loggers if not checkpoint else ():
                if isinstance(logger, loggers.RunCSVLogger):
                    logger.cut(0)  # what a run wrote that was killed before its first checkpoint
        self.datamodule.resume_anyway = self.config.fit.resume_anyway
        try:
            self.trainer.fit(ckpt_path=checkpoint, **kwargs)
        except RuntimeError as error:
            if checkpoint and "loading state_dict" in str(error):
                raise UserError(f"--resume {checkpoint}: {summarize_state_dict_error(error)}") from error
            raise

    def validate(self, ckpt_path: str, **kwargs: Any) -> None:
        """Measures a checkpoint on the validation split."""
        self._evaluate(ckpt_path, **kwargs)

    def test(self, ckpt_path: str, **kwargs: Any) -> None:
        """Measures a checkpoint on the test split."""
        self._evaluate(ckpt_path, **kwargs)

    def _evaluate(self, ckpt_path: str, model: Any, datamodule: Any, **kwargs: Any) -> None:
        # not through the Trainer's ckpt_path: it would restore the position in the training data too, and refuse other data
        checkpoint = AtomicCheckpointIO().load_checkpoint(ckpt_path)
        try:
            model.load_state_dict(checkpoint.get("state_dict", {}))
        except RuntimeError as error:
            raise UserError(f"{ckpt_path}: {summarize_state_dict_error(error)}") from error
        counted = SampleCounter()
        self.trainer.callbacks.append(counted)
        measured = getattr(self.trainer, self.subcommand)(model, datamodule=datamodule, verbose=False)
        measured = {name: value for found in measured for name, value in found.items()}
        if not measured:
            raise UserError(f"{self.subcommand}: {type(model).__name__} measures nothing on this split")
        self._write_measured(Path(ckpt_path), measured, counted.total(self.trainer), counted.seconds)

    @rank_zero_only
    def _write_measured(self, ckpt_path: Path, measured: dict[str, float], samples: int, seconds: float) -> None:
        prefix = {"validate": "val"}.get(self.subcommand, self.subcommand)
        name = next(
            (n for n in (f"{prefix}/{m}" for m in ("top1", "map", "dice", "loss")) if n in measured),
            next(iter(measured)),
        )
        for key, value in measured.items():
            print(f"{key:<16} {value:.4f}")
        schema.write_result(
            self.folder / f"results-{self.subcommand}.json",
            recipe=_recipe_label(self.recipe),
            seed=self.config[self.subcommand].seed_everything,
            metric={"name": name, "value": measured[name]},
            metrics=measured,
            samples=samples,
            seconds=seconds,
            data_fingerprint=getattr(self.datamodule, "fingerprint", None),
            weights_sha256=checkpoint_digest.checkpoint_sha256(ckpt_path),
        )


class ParseOnly(RunCLI):
    """The settings alone: nothing is built, seeded or run."""

    def before_instantiate_classes(self) -> None: ...

    def instantiate_classes(self) -> None: ...

    def _run_subcommand(self, subcommand: str) -> None: ...

    def _set_seed(self) -> None: ...

    def settings(self) -> dict[str, Any]:
        """As RUN/config.yaml will hold them."""
        return to_plain_dict(self._parser(self.subcommand), self.config[self.subcommand])


def _recipe_label(recipe: str | None) -> str:
    """A recipe as results name it: never an absolute path."""
    return "none" if recipe is None else Path(recipe).name if Path(recipe).is_absolute() else str(recipe)
