"""DatasetDataModule: the pixels, labels and keys of a folder with the same images, and exact resume."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset

from lit_vision.data import DatasetDataModule, ImageFolderDataModule
from lit_vision.errors import UserError


class Colors(Dataset):
    """Images of noise, as one of the accepted kinds; class i % 3."""

    def __init__(self, count: int, kind: str = "pil"):
        self.count, self.kind = count, kind

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, i: int):
        pixels = np.random.default_rng(i).integers(0, 256, (20, 24, 3), dtype=np.uint8)
        image = Image.fromarray(pixels)
        if self.kind == "bytes":
            import io

            buffer = io.BytesIO()
            image.save(buffer, "PNG")
            return buffer.getvalue(), i % 3
        return {"pil": image, "array": pixels, "float": pixels / 255}[self.kind], i % 3


def options(**more):
    return {"img_size": 16, "batch_size": 4, "train_view": "train", "seed": 3, "num_workers": 0, **more}


@pytest.mark.parametrize("kind", ["pil", "array", "bytes"])
@pytest.mark.parametrize("in_memory", [False, True])
def test_batches_are_those_of_a_folder(tmp_path, kind: str, in_memory: bool) -> None:
    for i in range(12):
        folder = tmp_path / "train" / f"class{i % 3}"
        folder.mkdir(parents=True, exist_ok=True)
        Colors(12)[i][0].save(folder / f"{i:02d}.png")
    of_folder = ImageFolderDataModule(str(tmp_path), **options(in_memory=in_memory))
    own = DatasetDataModule(Colors(12, kind), class_names=["a", "b", "c"], **options(in_memory=in_memory))
    expected = {}
    of_folder.setup()
    views = of_folder._dataset("train", train=True)
    for index, path in enumerate(of_folder.folder.splits["train"].paths):
        expected[int(path[-6:-4])] = views.__getitems__([(0, index, 0)])
    seen = 0
    for batch in own.train_dataloader():
        for images, label, key in zip(batch["images"], batch["label"], batch["key"]):
            i = int(key[1])
            assert label == i % 3
            # the same view of the same pixels: the keys differ in order only, so compare under the folder's key
            want = own._dataset("train", train=True).__getitems__([tuple(key.tolist())])["images"][0]
            assert torch.equal(images, want)
            seen += 1
    assert seen == 12
    of_own = own.eval_loader("train")
    for batch in of_own:
        for images, key in zip(batch["images"], batch["key"]):
            index = [int(p[-6:-4]) for p in of_folder.folder.splits["train"].paths].index(int(key[1]))
            want = of_folder._dataset("train", train=False).__getitems__([(0, index, 0)])["images"][0]
            assert torch.equal(images, want)


def test_a_position_is_restored_and_other_data_are_refused() -> None:
    first = DatasetDataModule(Colors(24), **options())
    batches = [batch["key"] for batch in first.train_dataloader()]
    first.cursor = (0, 8)
    state = first.state_dict()
    again = DatasetDataModule(Colors(24), **options())
    again.load_state_dict(state)
    rest = [batch["key"] for batch in again.train_dataloader()]
    assert len(rest) == len(batches) - 2
    assert all(torch.equal(a, b) for a, b in zip(rest, batches[2:]))
    with pytest.raises(UserError, match="data"):
        DatasetDataModule(Colors(25), **options()).load_state_dict(state)


def test_splits_names_and_workers() -> None:
    data = DatasetDataModule(Colors(12), Colors(6), Colors(3), class_names=["x", "y", "z"], **options(num_workers=2))
    data.setup()
    assert data.class_names == ["x", "y", "z"]
    assert [len(batch["label"]) for batch in data.val_dataloader()] == [4, 2]
    alone = DatasetDataModule(Colors(12), **options())
    for a, b in zip(data.train_dataloader(), alone.train_dataloader()):
        assert torch.equal(a["images"], b["images"])
        assert torch.equal(a["key"], b["key"])


def test_images_without_a_label_are_not_evaluated() -> None:
    val = [0, -1, 2, 0, 1, -1]
    data = DatasetDataModule(Colors(12), Colors(6), labels={"val": val}, **options())
    labels = torch.cat([batch["label"] for batch in data.val_dataloader()])
    assert labels.tolist() == [0, 2, 0, 1]


def test_a_validation_split_is_drawn_from_the_training_data_set() -> None:
    data = DatasetDataModule(Colors(24), **options(val_fraction=0.25))
    train, val = ({int(k[1]) for batch in loader for k in batch["key"]} for loader in
                  (data.train_dataloader(), data.val_dataloader()))  # fmt: skip
    assert (len(train), len(val)) == (16, 6)  # 18 images, of which 16 fill batches
    paths = {name: set(split.paths) for name, split in data.folder.splits.items()}
    assert (len(paths["train"]), len(paths["val"])) == (18, 6)
    assert not paths["train"] & paths["val"]
    pixels = next(iter(data.val_dataloader()))["images"]
    views, first = data._dataset("val", train=False), data.folder.splits["val"].paths[0]
    assert first.startswith("train/")  # read from the data set that it was drawn from
    assert torch.equal(pixels[0], views.__getitems__([(0, 0, 0)])["images"][0])
    with pytest.raises(UserError, match="val split already"):
        DatasetDataModule(Colors(24), Colors(6), **options(val_fraction=0.25)).setup()


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: DatasetDataModule(Colors(0), **options()), "empty"),
        (lambda: DatasetDataModule(Colors(6), class_names=["a"], **options()), "class_names"),
        (lambda: DatasetDataModule(Colors(6), labels={"train": [0, 1]}, **options()), "6 images"),
        (lambda: DatasetDataModule(Colors(6), **options(root="x")), "root"),
        (lambda: DatasetDataModule(Colors(6), **options(train_split="x")), "train_split"),
        (lambda: DatasetDataModule(Colors(6, "float"), **options(in_memory=False)), "float64"),
    ],
)
def test_what_cannot_work_is_refused(make, named: str) -> None:
    with pytest.raises(UserError, match=named):
        next(iter(make().train_dataloader()))
