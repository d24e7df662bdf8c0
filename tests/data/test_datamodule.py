"""ImageFolderDataModule: same batches for any worker count and rank layout, subsets, evaluation, resuming, errors."""

from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer

from lit_vision.data import ImageFolderDataModule
from lit_vision.data.views.decode import ImageDecodeError
from lit_vision.errors import UsageError, UserError


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Folder of 40 + 11 + 5 gray 32-px images of two classes, and 6 unlabeled ones."""
    folder, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for split, count in (("train", 20), ("val", 6), ("test", 3)):
        for name in ("ant", "bee"):
            (folder / split / name).mkdir(parents=True)
            for i in range(count - (name == "bee" and split != "train")):
                cv2.imwrite(str(folder / split / name / f"{i:02d}.png"), rng.integers(0, 256, (32, 32), np.uint8))
    (folder / "unlabeled").mkdir()
    for i in range(6):
        cv2.imwrite(str(folder / "unlabeled" / f"{i}.png"), rng.integers(0, 256, (32, 32), np.uint8))
    return folder


def _module(root, **options) -> ImageFolderDataModule:
    return ImageFolderDataModule(str(root), **{"img_size": 32, "batch_size": 8, "num_workers": 0, **options})


def _same(a: list[dict], b: list[dict]) -> bool:
    return len(a) == len(b) and all(torch.equal(x[k], y[k]) for x, y in zip(a, b) for k in ("images", "label", "key"))


def _epoch(module: ImageFolderDataModule, epoch: int = 0) -> list[dict]:
    loader = module.train_dataloader()
    loader.batch_sampler.set_epoch(epoch)
    return list(loader)


def _rank(rank: int, world: int, accumulate: int = 1) -> SimpleNamespace:
    """Stand-in for the part of a Trainer that the data module reads."""
    progress = SimpleNamespace(total=SimpleNamespace(ready=0))
    loop = SimpleNamespace(epoch_loop=SimpleNamespace(batch_progress=progress))
    return SimpleNamespace(
        global_rank=rank,
        world_size=world,
        accumulate_grad_batches=accumulate,
        is_global_zero=rank == 0,
        num_devices=world,
        num_training_batches=5,
        fit_loop=loop,
    )


def test_a_number_of_workers_that_would_fill_the_machine_is_refused(root) -> None:
    with pytest.raises(UserError, match=r"data\.num_workers: 10000;"):
        _module(root, num_workers=10_000).train_dataloader()


@pytest.mark.parametrize("in_memory", [True, False])
@pytest.mark.parametrize("view", ["simclr", "train"])
def test_batches__are_identical_for_0_2_and_4_workers(root, in_memory: bool, view: str) -> None:
    here = _epoch(_module(root, train_view=view, in_memory=in_memory), epoch=1)
    assert here[0]["images"].shape == (8, 2 if view == "simclr" else 1, 32, 32, 3)
    assert here[0]["images"].dtype == torch.uint8
    assert here[0]["label"].dtype == here[0]["key"].dtype == torch.int64
    assert here[0]["key"].shape == (8, 3)
    for workers in (2, 4):
        assert _same(here, _epoch(_module(root, train_view=view, in_memory=in_memory, num_workers=workers), epoch=1))


@pytest.mark.parametrize("in_memory", [True, False])
def test_local_views__are_smaller_crops_of_the_same_images_and_keyed(root, in_memory: bool) -> None:
    options = {"train_view": "lejepa", "local_views": 3, "local_size": 12, "in_memory": in_memory}
    batches = [_epoch(_module(root, **options, num_workers=workers)) for workers in (0, 2)]
    assert _same(*batches)
    for batch, again in zip(*batches):
        assert batch["images"].shape[1:] == (2, 32, 32, 3)
        assert batch["local_images"].shape[1:] == (3, 12, 12, 3)
        assert torch.equal(batch["local_images"], again["local_images"])
        assert not torch.equal(batch["local_images"][:, 0], batch["local_images"][:, 1])
    plain = _epoch(_module(root, train_view="lejepa", in_memory=in_memory))
    assert _same(plain, batches[0])  # the global views do not depend on the local ones
    with pytest.raises(UserError, match=r"data\.local_views"):
        _module(root, train_view="mae", local_views=1)


def test_batches__differ_between_seeds_and_epochs_and_carry_their_labels(root) -> None:
    module = _module(root, train_view="mae", use_unlabeled=False)
    first, again, next_epoch, other_seed = (
        _epoch(module),
        _epoch(module),
        _epoch(module, 1),
        _epoch(_module(root, train_view="mae", use_unlabeled=False, seed=1)),
    )
    assert _same(first, again)
    assert not _same(first, next_epoch)
    assert not _same(first, other_seed)
    for batch in first:
        assert (batch["label"] == (batch["key"][:, 1] >= 20)).all()
    assert {int(e) for b in next_epoch for e in b["key"][:, 0]} == {1}
    assert len({int(i) for b in first for i in b["key"][:, 1]}) == 40


def test_ranks__join_to_the_batches_of_one_process(root) -> None:
    whole, parts = _epoch(_module(root, batch_size=8)), []
    for rank in range(2):
        module = _module(root, batch_size=4)
        module.trainer = _rank(rank, 2)
        assert (module.batches_per_epoch, module.global_batch_size) == (5, 8)
        parts.append(_epoch(module))
    joined = [{k: torch.cat([a[k], b[k]]) for k in a} for a, b in zip(*parts)]
    assert _same(joined, whole)
    kept = []
    for rank in range(3):  # evaluation: every image once, no padding
        module = _module(root, batch_size=4)
        module.trainer = _rank(rank, 3)
        kept += [int(i) for batch in module.val_dataloader() for i in batch["key"][:, 1]]
    assert kept == list(range(11))


def test_attributes__after_setup(root) -> None:
    module = _module(root)
    module.setup()
    assert (module.class_names, module.num_classes, module.num_train, module.batches_per_epoch) == (
        ["ant", "bee"],
        2,
        40,
        5,
    )
    assert len(module.fingerprint) == 64
    assert module.fingerprint == _module(root, labels=4).fingerprint
    assert module.global_batch_size == 8


def test_unlabeled__join_for_self_supervision_and_stay_out_otherwise(root) -> None:
    module = _module(root, train_view="simclr", batch_size=46)
    (batch,) = _epoch(module)
    assert module.num_train == 46
    assert (batch["label"] == -1).sum() == 6
    hidden = _module(root, train_view="simclr", labels=4, batch_size=46)
    (batch,) = _epoch(hidden)
    assert (batch["label"] >= 0).sum() == 4
    assert hidden.num_train == 46
    assert [b["label"].tolist() for b in hidden.eval_loader("train")] == [[0, 0, 1, 1]]
    assert sum(len(b["label"]) for b in hidden.eval_loader("train", unlabeled=True)) == 46


def test_few_labels__by_count_fraction_shots_and_split_file(root, tmp_path) -> None:
    assert [_module(root, **o).num_train for o in ({"labels": 10}, {"labels": 0.1}, {"shots": 3}, {"labels": 1.0})] == [
        10,
        4,
        6,
        40,
    ]
    file = str(tmp_path / "split.txt")
    written, read = (
        _module(root, labels=10, split_file=file, batch_size=2),
        _module(root, split_file=file, batch_size=2),
    )
    assert written.num_train == read.num_train == 10
    assert _same(_epoch(written), _epoch(read))
    with pytest.raises(UserError, match=r"split\.txt.* 10 .* 12"):
        _module(root, labels=12, split_file=file).setup()
    with pytest.raises(UserError, match=r"none\.txt.*split_file"):
        _module(root, split_file=str(tmp_path / "none.txt")).setup()


def test_eval_loader__in_order_each_once_and_limits_spread_over_classes(root) -> None:
    module = _module(root, batch_size=4)
    for in_memory in (True, False):
        loader = _module(root, batch_size=4, in_memory=in_memory).eval_loader("val")
        assert _same(list(loader), list(module.eval_loader("val")))
    batches = list(module.eval_loader("val"))
    assert torch.cat([b["key"][:, 1] for b in batches]).tolist() == list(range(11))
    assert batches[0]["images"].shape == (4, 1, 32, 32, 3)
    stored = cv2.imread(str(root / "val/ant/00.png"))
    assert (batches[0]["images"][0, 0].numpy() == stored).all()
    assert torch.cat([b["label"] for b in module.eval_loader("train", limit=10)]).tolist() == [0] * 5 + [1] * 5
    with pytest.raises(UserError, match="dev"):
        module.eval_loader("dev")


def test_state__goes_on_in_the_middle_of_an_epoch_and_refuses_what_changed(root) -> None:
    module = _module(root)
    whole = _epoch(module, 1)
    module.trainer = _rank(0, 1)
    module.trainer.fit_loop.epoch_loop.batch_progress.total.ready = 7  # one epoch of five batches, and two
    state = module.state_dict()
    resumed = _module(root)
    resumed.load_state_dict(state)
    assert _same(list(resumed.train_dataloader()), whole[2:])
    assert (resumed.state_dict()["epoch"], resumed.state_dict()["samples"]) == (1, 16)
    half = _module(root, batch_size=4)
    half.trainer = _rank(0, 2)
    half.load_state_dict(state)
    rows = torch.cat([b["key"] for b in half.train_dataloader()])
    assert torch.equal(rows, torch.cat([b["key"][:4] for b in whole[2:]]))
    for options, match in (
        ({"seed": 1}, r"data\.seed: .*0.* 1;"),
        ({"batch_size": 4}, "global batch"),
        ({"labels": 8}, "labels, shots or split_file"),
    ):
        with pytest.raises(UserError, match=match):
            _module(root, **options).load_state_dict(state)


def test_bad_images__are_replaced_alike_in_training_and_raise_in_evaluation(root, tmp_path, caplog) -> None:
    for name in ("ant", "bee"):
        for split in ("train", "val"):
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(8):
                (tmp_path / split / name / f"{i}.png").write_bytes(
                    (root / "train" / name / f"{i:02d}.png").read_bytes()
                )
    broken = tmp_path / "train/ant/3.png"
    broken.write_bytes(broken.read_bytes()[:60])
    runs = [
        _epoch(_module(tmp_path, batch_size=16, in_memory=m, num_workers=w))
        for m, w in ((True, 0), (False, 0), (False, 2))
    ]
    assert str(broken) in caplog.text
    assert _same(runs[1], runs[2])
    assert all(
        torch.equal(runs[0][0][k], runs[1][0][k]) for k in ("key", "label")
    )  # the label of the image that is shown
    with pytest.raises(ImageDecodeError, match=r"ant/3\.png"):
        list(_module(tmp_path).eval_loader("train"))
    with pytest.raises(ImageDecodeError, match=r"ant/3\.png"):
        _epoch(_module(tmp_path, on_bad_image="error"))


def test_errors__are_raised_before_any_step(root, tmp_path) -> None:
    for folder, options, match in (
        (root, {"train_view": "mae", "strength": 1.0}, "strength"),
        (root, {"train_view": "dino"}, "dino"),
        (root, {"in_memory": "yes"}, "in_memory"),
        (root, {"on_bad_image": "ignore"}, "on_bad_image"),
    ):
        with pytest.raises(UserError, match=match):
            _module(folder, **options)
    with pytest.raises(UserError, match=r"40 .* 64 .*data\.batch_size"):
        _ = _module(root, batch_size=64).batches_per_epoch
    with pytest.raises(UserError, match=r"none: .*data\.root"):
        _module(tmp_path / "none").setup()
    with pytest.raises(UserError, match=r"in_memory: .* 30 "):
        _module(root, img_size=15, in_memory=True).train_dataloader()


def test_missing_val__is_an_error_for_labels_and_nothing_for_self_supervision(root, tmp_path) -> None:
    for name in ("ant", "bee"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "0.png").write_bytes((root / "train" / name / "00.png").read_bytes())
    assert _module(tmp_path, train_view="mae").val_dataloader() == []
    with pytest.raises(UserError, match="val split"):
        _module(tmp_path).val_dataloader()
    with pytest.raises(UserError, match="test split"):
        _module(tmp_path).test_dataloader()


def test_albumentations__is_a_training_view_in_memory_and_on_disk(root) -> None:
    runs = [
        _epoch(_module(root, train_view="albumentations:light", in_memory=m, num_workers=w))
        for m, w in ((True, 0), (False, 0), (False, 2))
    ]
    assert _same(runs[0], runs[1])
    assert _same(runs[1], runs[2])


class _Watcher(LightningModule):
    """Model that records the keys it gets; one weight, so that there is something to train."""

    def __init__(self):
        super().__init__()
        self.weight, self.keys = torch.nn.Parameter(torch.zeros(())), []

    def training_step(self, batch, _):
        self.keys.append(batch["key"].clone())
        return self.weight * batch["images"].float().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


@pytest.mark.parametrize(
    "option",
    [
        {"batch_size": 0},
        {"copies": 0},
        {"img_size": -2},
        {"seed": -1},
        {"label_seed": -3},
        {"num_workers": -1},
        {"on_bad_image": "drop"},
        {"local_views": -1},
    ],
)
def test_an_argument_out_of_range_is_wrong_usage_that_names_it_alone_and_its_value(tmp_path, option) -> None:
    ((key, value),) = option.items()
    with pytest.raises(UsageError, match=rf"data\.{key}: .?{value}") as caught:
        _module(tmp_path, **option)
    assert str(caught.value).count("data.") == 1


def _fit(root, tmp_path, checkpoint=None, **options) -> tuple[list, Trainer]:
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    trainer = Trainer(
        max_epochs=2, accelerator="cpu", use_distributed_sampler=False, default_root_dir=tmp_path, **quiet
    )
    watcher = _Watcher()
    trainer.fit(watcher, datamodule=_module(root, train_view="mae", **options), ckpt_path=checkpoint, weights_only=True)
    return watcher.keys, trainer


def test_trainer__sees_the_keys_of_each_epoch_and_stores_the_position(root, tmp_path) -> None:
    keys, trainer = _fit(root, tmp_path)
    assert [int(k[0, 0]) for k in keys] == [0] * 5 + [1] * 5
    expected = [b["key"] for epoch in range(2) for b in _epoch(_module(root, train_view="mae"), epoch)]
    assert all(torch.equal(a, b) for a, b in zip(keys, expected))
    trainer.save_checkpoint(tmp_path / "a.ckpt", weights_only=False)
    state = torch.load(tmp_path / "a.ckpt", weights_only=True)["ImageFolderDataModule"]
    assert (state["epoch"], state["samples"], state["global"]) == (2, 0, 8)
    with pytest.raises(UserError, match=r"data\.seed"):
        _fit(root, tmp_path, tmp_path / "a.ckpt", seed=3)


def test_test_images_alone__can_be_measured_but_not_trained_on(root, tmp_path, capsys) -> None:
    (tmp_path / "Test").symlink_to(root / "test")
    module = _module(tmp_path, labels=0.1)  # a recipe's subset of the training labels does not matter here
    module.trainer = _rank(0, 1)
    module.setup("test")
    (batch,) = module.test_dataloader()
    assert batch["label"].tolist() == [0, 0, 0, 1, 1]
    assert "test 5 in 2 classes (Test/)" in capsys.readouterr().out
    for view in ("train", "simclr"):
        with pytest.raises(UserError, match=r"no train split.*data\.train_split"):
            _module(tmp_path, train_view=view).setup("fit")


def test_a_split_without_class_folders__is_refused_before_the_first_batch(root, tmp_path) -> None:
    (tmp_path / "train").symlink_to(root / "train")
    (tmp_path / "val").symlink_to(root / "unlabeled")
    with pytest.raises(UserError, match=r"val: .*no class folders.*validation"):
        _module(tmp_path).val_dataloader()
    assert len(_module(tmp_path, train_view="simclr").val_dataloader()) == 1
