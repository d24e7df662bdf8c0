"""LightningCLI subclass: builds model, data and Trainer from a config.

Defaults of LightningCLI that are turned off here (each caused a fault): `--ckpt_path FILE` replaces `model.*` of the
recipe by the file's hyper-parameters; abbreviated flags are accepted; a wrong key prints 57 lines; optimizers are
configured outside the module; `validate` without a checkpoint measures random weights.
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
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from lit_vision.callbacks.checkpoint import AtomicCheckpointIO, LastCheckpoint, SeedEachBatch
from lit_vision.callbacks.monitored_metrics import CheckMonitoredMetrics
from lit_vision.callbacks.nonfinite import StopOnNonFinite
from lit_vision.callbacks.progress import Progress
from lit_vision.callbacks.run_record import RunRecord, SampleCounter
from lit_vision.cli.config import Parser, SaveConfig, current_class_paths, to_plain_dict
from lit_vision.cli.config_errors import summarize_state_dict_error
from lit_vision.cli.library_errors import from_trainer_error
from lit_vision.distributed import global_batch_norm
from lit_vision.errors import UsageError, UserError
from lit_vision.io import checkpoint_digest
from lit_vision.io.hashing import sha256_of_file
from lit_vision.io.processes import die_with_parent
from lit_vision.results import schema
from lit_vision.runs import loggers, run_dir
from lit_vision.runs.lightning_switches import check_settings
from lit_vision.sweep.report_trial import trial_callbacks
from lit_vision.weights.checkpoint_layouts import read_file
from lit_vision.weights.pretrained import stored_pruning

LARGEST_SEED = 2**32 - 1  # numpy's


class RunCLI(LightningCLI):
    """Run fit, validate or test of one recipe.

    Args:
        args: the arguments after `lit-vision`, the command first.
        recipe: the recipe's file.
        overrides: the arguments that change it, for the run's records.

    Attributes:
        folder: of the run.
    """

    folder: Path = Path()

    def __init__(self, args: Sequence[str], recipe: str | None, overrides: Sequence[str]) -> None:
        self.recipe, self.overrides = recipe, list(overrides)
        self.start = run_dir.RunStart(Path())
        warnings.filterwarnings("ignore", ".*does not have many workers.*")
        warnings.filterwarnings("ignore", ".*is not resumable.*")  # it is: the datamodule's state has the position
        warnings.filterwarnings("ignore", ".*You have overridden `on_(after|before)_batch_transfer`.*")
        warnings.filterwarnings("ignore", ".*LeafSpec.*")  # raised by Lightning's call of torch
        logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(lambda r: "Tip:" not in r.getMessage())
        super().__init__(
            args=list(args),
            parser_class=Parser,
            save_config_callback=SaveConfig,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,  # our modules call save_hyperparameters with plain values themselves
            trainer_defaults={"use_distributed_sampler": False, "log_every_n_steps": 10},
        )

    # ---- arguments

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
            "--seed_everything", type=int, default=0, help="seed of initialization, order and augmentation"
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--run_dir", type=str, default=None, help="the run's folder (default runs/<recipe>/<time>)")
        parser.add_argument("--name", type=str, default=None, help="use the run folder runs/<recipe>/<name>")
        parser.add_argument("--resume", type=str, default=None, help="auto, or a checkpoint: continue this run")
        parser.add_argument(
            "--resume_anyway", type=bool, default=False, help="despite changed data or global batch size"
        )
        parser.add_argument(
            "--classes_by_number", type=bool, default=False, help="despite other names of the classes than the model's"
        )
        parser.add_argument("--wandb", type=str, default=None, help="also log to this Weights & Biases project")
        parser.add_argument("--wandb_weights", type=bool, default=False, help="upload the final weights to W&B")
        # applied when arguments are parsed; has no effect on a class without a seed
        parser.link_arguments("seed_everything", "data.init_args.seed")
        parser.link_arguments("seed_everything", "model.init_args.seed")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        self.config = parser.parse_args([current_class_paths(argument) for argument in args])
        config = self.config[self.config.subcommand]
        if not config.get("data"):
            raise UsageError("data: is missing; give class_path and init_args as the recipes in experiments/ do")
        if not 0 <= config.seed_everything <= LARGEST_SEED:
            raise UsageError(f"seed_everything: {config.seed_everything}; give 0 to {LARGEST_SEED}")
        if config.trainer.use_distributed_sampler or self.config.subcommand == "fit":  # an old run can be measured
            check_settings(vars(config.trainer))

    def _parse_ckpt_path(self) -> None:
        """Do nothing: the model is that of the recipe, not of the checkpoint."""

    # ---- from the config to objects

    def before_instantiate_classes(self) -> None:
        config = self.config[self.subcommand]
        if config.run_dir and Path(config.run_dir).exists() and not Path(config.run_dir).is_dir():
            raise UsageError(f"--run_dir {config.run_dir}: is a file; name a folder")
        self.run_sha256 = run_dir.recipe_hash(self.recipe, self.overrides)
        if self.subcommand == "fit":
            folder = config.run_dir or (config.name and str(run_dir.default_run_dir(self.recipe, config.name)))
            if config.resume_anyway and not config.resume:
                raise UsageError("--resume_anyway: needs --resume auto or --resume CHECKPOINT; add one of them")
            self.start = run_dir.resolve_run(self.recipe, self.run_sha256, folder, config.resume, config.resume_anyway)
            self.folder = self.start.folder
            return
        # the checkpoint has all weights: do not load those that its training started from
        checkpoint = Path(config.ckpt_path).resolve()
        self.folder = Path(config.run_dir) if config.run_dir else run_dir.run_dir_of(checkpoint) or checkpoint.parent
        model = config.model.get("init_args") or {}
        if model.get("backbone_checkpoint"):
            model["backbone_checkpoint"] = None
            if pruned := stored_pruning(read_file(checkpoint)[1]):  # which that file said
                model["backbone_args"] = {**(model.get("backbone_args") or {}), "pruned": pruned}
        if (model.get("backbone_args") or {}).get("pretrained"):
            model["backbone_args"]["pretrained"] = False

    def instantiate_classes(self) -> None:
        # jsonargparse wraps a constructor's UserError in a page about types: raise the original error instead
        errors: list[UserError] = []

        def construct(class_type: type, *args: Any, **kwargs: Any) -> object:
            try:
                return class_type(*args, **kwargs)
            except UserError as error:
                errors.append(error)
                raise
            except (ValueError, TypeError, RuntimeError, ArithmeticError, MemoryError) as error:  # a wrong value
                text = " ".join(str(error).split()) or type(error).__name__
                errors.append(UsageError(f"{class_type.__name__} cannot be built with these settings: {text}"))
                raise ValueError(text) from error

        for base in (LightningModule, LightningDataModule, Callback):
            self.parser.add_instantiator(construct, base, subclasses=True)
        try:
            super().instantiate_classes()
        except (ValueError, TypeError):
            if errors:
                raise errors[0] from errors[0].__cause__
            raise

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        settings = self.config_init[self.subcommand].trainer
        plugins = settings.get("plugins") or []
        kwargs |= {
            "default_root_dir": str(self.folder),
            "plugins": [*(plugins if isinstance(plugins, list) else [plugins]), AtomicCheckpointIO()],
            "logger": self._loggers(settings.get("logger")),
        }
        if settings.get("sync_batchnorm"):  # Lightning's fails on CPU and drops activations of timm's fused norms
            kwargs |= {"sync_batchnorm": False, "plugins": [*kwargs["plugins"], global_batch_norm()]}
        callbacks = settings.get("callbacks") or []
        callbacks = list(callbacks) if isinstance(callbacks, list) else [callbacks]
        kwargs["callbacks"] = callbacks + self._callbacks(callbacks, settings)
        try:
            return super().instantiate_trainer(**kwargs)
        except (ValueError, TypeError, ImportError, MisconfigurationException) as error:
            raise from_trainer_error(error) from error

    def _loggers(self, given: Any) -> list[Logger] | bool:
        if given is False or self.subcommand != "fit":
            return False
        of_recipe = [] if given in (None, True) else given if isinstance(given, list) else [given]
        run_loggers: list[Logger] = [loggers.RunCSVLogger(self.folder)]
        if of_recipe:
            run_loggers += of_recipe
        elif tensorboard := loggers.tensorboard(self.folder):
            run_loggers.append(tensorboard)
        config = self.config[self.subcommand]
        if config.wandb:
            values = to_plain_dict(self._parser(self.subcommand), config)
            if logger := loggers.weights_and_biases(config.wandb, self.folder, config=values):
                run_loggers.append(logger)
        return run_loggers

    def _callbacks(self, given: list[Any], settings: Namespace) -> list[Any]:
        """Return the default callbacks of every run, without those of a kind that the recipe has."""
        seed = self.config[self.subcommand].seed_everything
        callbacks: list[Callback] = [SeedEachBatch(seed)]
        if settings.enable_progress_bar is not False and not any(isinstance(c, ProgressBar) for c in given):
            callbacks.append(Progress())
        if self.subcommand != "fit":
            return callbacks
        callbacks += [CheckMonitoredMetrics(), *trial_callbacks()]
        if not any(isinstance(c, StopOnNonFinite) for c in given):
            callbacks.append(StopOnNonFinite())
        if settings.enable_checkpointing is not False and not settings.fast_dev_run:
            callbacks += [] if any(isinstance(c, LastCheckpoint) for c in given) else [LastCheckpoint()]
            callbacks.append(
                RunRecord(
                    _recipe_label(self.recipe),
                    self.recipe and sha256_of_file(self.recipe),
                    seed,
                    self.run_sha256,
                    self.overrides,
                    upload_weights=self.config[self.subcommand].wandb_weights,
                )
            )
        return callbacks

    # ---- subcommands

    def fit(self, **kwargs: Any) -> None:
        """Train, from the checkpoint that --resume found if there is one."""
        checkpoint = self.start.checkpoint
        if os.environ.get("LOCAL_RANK", "0") != "0":
            die_with_parent()
        if self.trainer.is_global_zero:
            for line in self.start.skipped_checkpoints:
                print(f"skipped checkpoint: {line}", flush=True)
            if checkpoint:
                print(f"resuming from {checkpoint}", flush=True)
            elif self.config.fit.resume:
                print(f"--resume auto: this run has no checkpoint yet; starting it in {self.folder}", flush=True)
            for logger in self.trainer.loggers if not checkpoint else ():
                if isinstance(logger, loggers.RunCSVLogger):
                    logger.cut(0)  # remove rows of a run that was killed before its first checkpoint
        self.datamodule.resume_anyway = self.config.fit.resume_anyway
        self.datamodule.classes_by_number = self.config.fit.classes_by_number
        try:
            self.trainer.fit(ckpt_path=checkpoint, **kwargs)
        except RuntimeError as error:
            if checkpoint and "loading state_dict" in str(error):
                raise UserError(f"--resume {checkpoint}: {summarize_state_dict_error(error)}") from error
            raise

    def validate(self, ckpt_path: str, **kwargs: Any) -> None:
        """Measure a checkpoint on the validation split."""
        self._evaluate(ckpt_path, **kwargs)

    def test(self, ckpt_path: str, **kwargs: Any) -> None:
        """Measure a checkpoint on the test split."""
        self._evaluate(ckpt_path, **kwargs)

    def _evaluate(self, ckpt_path: str, model: Any, datamodule: Any, **kwargs: Any) -> None:
        # The Trainer's ckpt_path would also restore the position in the training data, and refuse other data.
        checkpoint = AtomicCheckpointIO().load_checkpoint(ckpt_path)
        try:
            model.load_state_dict(checkpoint.get("state_dict", {}))
        except RuntimeError as error:
            raise UserError(f"{ckpt_path}: {summarize_state_dict_error(error)}") from error
        self._compare_classes_with(ckpt_path, checkpoint, model, datamodule)
        counter = SampleCounter()
        self.trainer.callbacks.append(counter)
        of_loaders = getattr(self.trainer, self.subcommand)(model, datamodule=datamodule, verbose=False)
        metrics = {name: value for of_loader in of_loaders for name, value in of_loader.items()}
        if not metrics:
            raise UserError(f"{self.subcommand}: {type(model).__name__} has no metrics for this split; use another one")
        self._write_metrics(Path(ckpt_path), metrics, counter.total(self.trainer), counter.seconds)

    def _compare_classes_with(self, ckpt_path: str, checkpoint: dict[str, Any], model: Any, datamodule: Any) -> None:
        """Let the model match the data's classes to those of the checkpoint when the Trainer sets up."""
        datamodule.classes_by_number = self.config[self.subcommand].classes_by_number
        model.on_load_checkpoint(checkpoint)
        unknown = hasattr(model, "metadata") and not (model.metadata or {}).get("class_names")
        if unknown and self.trainer.is_global_zero:
            print(f"{ckpt_path}: has no class names, so the data's classes are compared by number", flush=True)

    @rank_zero_only
    def _write_metrics(self, ckpt_path: Path, metrics: dict[str, float], samples: int, seconds: float) -> None:
        prefix = {"validate": "val"}.get(self.subcommand, self.subcommand)
        declared, _ = getattr(self.model, "monitor", None) or ("val/top1", True)
        names = [f"{prefix}/{name}" for name in (declared.removeprefix("val/"), "top1", "loss")]
        name = next((name for name in names if name in metrics), next(iter(metrics)))
        for key, value in metrics.items():
            print(f"{key:<16} {value:.4f}")
        schema.write_result(
            self.folder / f"results-{self.subcommand}.json",
            recipe=_recipe_label(self.recipe),
            seed=self.config[self.subcommand].seed_everything,
            metric={"name": name, "value": metrics[name]},
            metrics=metrics,
            samples=samples,
            seconds=seconds,
            data_fingerprint=getattr(self.datamodule, "fingerprint", None),
            weights_sha256=checkpoint_digest.checkpoint_sha256(ckpt_path),
        )


class ParseOnly(RunCLI):
    """Parse the config only: nothing is built, seeded or run."""

    def before_instantiate_classes(self) -> None: ...

    def instantiate_classes(self) -> None: ...

    def _run_subcommand(self, subcommand: str) -> None: ...

    def _set_seed(self) -> None: ...

    def settings(self) -> dict[str, Any]:
        """Return the config as RUN/config.yaml stores it."""
        return to_plain_dict(self._parser(self.subcommand), self.config[self.subcommand])


def _recipe_label(recipe: str | None) -> str:
    """Return the recipe's name for result files, which never contain absolute paths."""
    return "none" if recipe is None else Path(recipe).name if Path(recipe).is_absolute() else str(recipe)
