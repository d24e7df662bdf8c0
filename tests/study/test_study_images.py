"""Images of a study: no single file decides its size or whether it starts, and pool and test are made alike."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from broken_files import encode, picture
from torch.utils.flop_counter import FlopCounterMode

from lit_vision.backbones.backbone import Backbone
from lit_vision.backbones.create import patch_side
from lit_vision.data.folder import scan
from lit_vision.data.labeled_folder import label_options
from lit_vision.data.shard_writer import write_shards
from lit_vision.errors import UserError
from lit_vision.study import costs, pixel_cache, training
from lit_vision.study.images import FLAT_SIDE, MARGIN, StudyImages, eval_batches, read_images, read_unlabeled
from lit_vision.study.pixel_cache import PixelCache
from lit_vision.study.presets import preset_for
from lit_vision.study.training import TrainingCost
from lit_vision.study.training_data import StudyData


def _write(root: Path, count: int, side: int, splits: tuple[str, ...] = ("train", "test")) -> Path:
    for s, split in enumerate(splits):
        for c, name in enumerate(("cat", "dog")):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                data = encode(picture(1000 * s + 100 * c + i, side, side + 4), "PNG")
                (root / split / name / f"{i:03d}.png").write_bytes(data)
    return root


def test_size__is_that_of_the_median_image_wherever_an_icon_or_an_empty_file_sorts(tmp_path) -> None:
    root = _write(tmp_path, 6, 40)
    assert read_images(root).size == 40
    for name in ("000", "005"):  # first and last of the class
        path = root / "train/cat" / f"{name}.png"
        whole = path.read_bytes()
        path.write_bytes(encode(picture(1, 10, 10), "PNG"))
        assert read_images(root).size == 40
        path.write_bytes(b"")
        images = read_images(root)
        assert (images.size, len(images.pool)) == (40, 11)
        assert "1 unreadable" in " ".join(images.notes)
        path.write_bytes(whole)


def test_unreadable_files__stop_the_study_by_their_number_not_their_place(tmp_path) -> None:
    for place in (("000", "001"), ("004", "005")):
        root = _write(tmp_path / place[0], 6, 20)
        for name in place:
            (root / "train/dog" / f"{name}.png").write_bytes(b"x")
        with pytest.raises(UserError, match=r"2 of 12 images cannot be read"):
            read_images(root)


def test_pool_and_test__of_large_images_are_made_alike_and_crops_are_cut_from_larger_copies(tmp_path) -> None:
    root = _write(tmp_path, 3, 100, splits=("train",))
    shutil.copytree(root / "train", root / "test")
    images = read_images(root, 32)
    np.testing.assert_array_equal(images.pool, images.test)
    assert images.large.shape == (6, round(32 * MARGIN), round(32 * MARGIN), 3)
    data = StudyData(images, np.arange(6), "eval", {}, 6, 0)
    seen = next(iter(data.train_dataloader()))
    order = seen["key"][:, 1].numpy()
    (expected,) = eval_batches(images.large[order], images.labels[order], 32)
    assert (seen["images"] == expected["images"]).all()
    assert read_images(root, 100).large is None  # not larger than the input
    assert read_unlabeled(root, 32).pool.shape[1] == round(32 * MARGIN)


@pytest.mark.parametrize(("side", "size"), [(100, 32), (20, 32), (100, 68), (70, 72)])
@pytest.mark.parametrize("gigabytes", [0.0, 0.00003, 1.0])
def test_cache__gives_the_pixels_of_memory_whatever_its_limit(tmp_path, side, size, gigabytes, monkeypatch) -> None:
    monkeypatch.setattr(pixel_cache, "_AT_ONCE", 4)
    root = _write(tmp_path / "set", 5, side)
    (root / "train/cat/002.png").write_bytes(b"x")
    lines, counted = [], []
    with PixelCache(tmp_path / "run", gigabytes, lines.append) as cache:
        cached = read_images(root, size, cache=cache, on_image=lambda *n: counted.append(n))
        memory = read_images(root, size)
        assert (len(cached.pool), cached.labels.tolist()) == (9, memory.labels.tolist())
        for name in ("pool", "large", "test"):
            one, other = getattr(cached, name), getattr(memory, name)
            assert (one is None) == (other is None)
            if one is not None:
                assert one.shape == other.shape
                np.testing.assert_array_equal(one[:], other)
                np.testing.assert_array_equal(one[[3, 1]], other[[3, 1]])
                np.testing.assert_array_equal(one[4], other[4])
        for one, other in zip(cached.flat_pixels(), memory.flat_pixels()):
            np.testing.assert_array_equal(one[:], other[:])
        np.testing.assert_array_equal(cached.test_view(size + 28)[:], memory.test_view(size + 28))
        data = [StudyData(images, np.arange(1, 8), "train", {}, 4, 0).train_dataloader() for images in (cached, memory)]
        assert all((a["images"] == b["images"]).all() for a, b in zip(*data))
    assert counted[9] == (10, 10)
    assert "1 unreadable" in cached.notes[0]
    assert not (tmp_path / "run").exists()  # nothing is left, not even the folder
    assert bool(lines) == (gigabytes > 0)
    assert ("--cache_gb" in " ".join(lines)) == (gigabytes == 0.00003)


def test_flat_pixels__of_large_images_are_small(tmp_path) -> None:
    pool, test = read_images(_write(tmp_path, 3, 100), 96).flat_pixels()
    assert (pool.shape, test.shape) == ((6, FLAT_SIDE**2 * 3), (6, FLAT_SIDE**2 * 3))
    assert pool[:2].dtype == np.float32
    assert pool[[0]].max() <= 1


def test_cache__refuses_a_short_disk_before_it_writes(tmp_path, monkeypatch) -> None:
    root = _write(tmp_path / "set", 3, 40)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 10**6))
    free = r"1\.0 MB are free; make room, or give --cache_gb 0\.0"
    cache = PixelCache(tmp_path / "run", log=lambda line: None)
    with pytest.raises(UserError, match=free), cache:
        read_images(root, cache=cache)
    assert not (tmp_path / "run").exists()


def test_shards__are_read_as_their_folder(tmp_path) -> None:
    root = _write(tmp_path / "set", 3, 20)
    write_shards(scan(root), tmp_path / "shards")
    folder, shards = read_images(root), read_images(tmp_path / "shards")
    np.testing.assert_array_equal(folder.pool, shards.pool)
    assert (folder.test_paths, folder.fingerprint) == (shards.test_paths, shards.fingerprint)


def test_notes__say_which_folder_is_which_split_and_what_was_left_out(tmp_path) -> None:
    root = _write(tmp_path, 3, 20, splits=("training", "Test"))
    (root / "training/cat/a.cr2").write_bytes(b"x")
    notes = " ".join(read_images(root).notes)
    assert "training was taken as the train split" in notes
    assert "Test was taken as the test split" in notes
    assert "1 .cr2" in notes
    assert str(tmp_path) not in notes


def test_steps__are_measured_with_more_classes_than_rows(monkeypatch) -> None:
    preset, classes = preset_for(16), 200
    labels = np.arange(2 * classes) % classes
    pixels = np.zeros((2 * classes, 16, 16, 3), np.uint8)
    names = [str(i) for i in range(2 * classes)]
    images = StudyImages(pixels, labels, names, pixels[:4], labels[:4], names[:4], names[:classes], "f", 16)
    measured = []

    def measure_step(module, data, limit) -> TrainingCost:
        measured.append(data.rows)
        return TrainingCost(1.0, 2.0, 0.0)

    monkeypatch.setattr(training, "measure_step", measure_step)
    found = costs.measure_trainings(images, images, preset, ["scratch-cnn", "simclr"], [], classes, 1.0, print)
    assert found == dict.fromkeys(["scratch-cnn", "simclr"], (1.0, 2.0 / costs.MEASURED_IMAGES))
    (rows,) = measured  # both have one network
    assert len(set(rows.tolist())) == len(rows) == costs.MEASURED_IMAGES
    assert labels[rows].min() >= 0


def test_frozen_side__is_the_largest_that_the_time_allows(monkeypatch) -> None:
    now, seen = [0.0], []

    class Network(torch.nn.Module):
        def forward(self, images):
            seen.append(images.shape[-1])
            now[0] += len(images) * (images.shape[-1] / 224) ** 2  # a second an image at 224
            return images.mean((2, 3))

    def load(side: int) -> Network:
        return Network()

    monkeypatch.setattr(costs.time, "perf_counter", lambda: now[0])
    allowed = {seconds: costs.choose_frozen_side(load, 224, 96, 100, seconds) for seconds in (101, 74, 52, 33, 5)}
    assert allowed == {101: 224, 74: 192, 52: 160, 33: 128, 5: 96}
    assert 96 not in seen  # the smallest is taken whatever it costs
    assert costs.choose_frozen_side(load, 96, 96, 100, 0.0) == 96


def test_frozen_side_of_a_vit__is_built_for_each_side_in_whole_patches() -> None:
    built = []

    def load(side: int) -> Backbone:
        built.append(side)
        return Backbone("vit_tiny_patch16_224", img_size=side, patch_size=14, depth=1, embed_dim=12, num_heads=1)

    patch = patch_side(load(224).model)
    assert costs.choose_frozen_side(load, 224, 98, 10**9, 0.0, patch) == 98
    assert built[1:] == [224, 196, 168, 140]  # 98 is the smallest


@pytest.mark.parametrize("groups", [1, 4])
def test_multiply_adds__of_a_step_are_three_times_those_of_its_forward_pass(groups) -> None:
    layers = [torch.nn.Conv2d(4, 8, 3, padding=1), torch.nn.Conv2d(8, 8, 3, groups=groups), torch.nn.Flatten()]
    network, images = torch.nn.Sequential(*layers), torch.rand(2, 4, 9, 9)
    forward = 2 * (81 * 8 * 4 * 9 + 49 * 8 * (8 // groups) * 9)
    counter = FlopCounterMode(display=False, custom_mapping=costs.CONVOLUTION_BACKWARD)
    with counter:
        network(images).sum().backward()
    first = 2 * 81 * 8 * 4 * 9  # the images need no gradient
    assert counter.get_total_flops() == 2 * (3 * forward - first)
    assert costs.forward_multiply_adds(network, 9, 4) == forward / 2


def test_fingerprint__another_test_split_of_the_same_images_is_another_study(tmp_path) -> None:
    root, table = _write(tmp_path / "set", 4, 20, splits=("",)), tmp_path / "labels.csv"

    def read(*roles: str, group_by: str | None = None) -> StudyImages:
        rows = [f"{c}/{i:03d}.png,{c},{roles[i] if roles else ''},{i % 2}" for c in ("cat", "dog") for i in range(4)]
        table.write_text("\n".join([f"path,label,{'split' if roles else 'unused'},group", *rows]))
        return read_images(root, labels=label_options(table, group_by=group_by))

    splits = ("train", "train", "test", "test")
    found = [read(*splits), read(*splits[::-1]), read(group_by="group"), read()]
    assert len({tuple(images.test_paths) for images in found}) == 4
    assert len({images.fingerprint for images in found}) == 4
    assert read(*splits).fingerprint == found[0].fingerprint
