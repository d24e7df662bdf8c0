"""Orders of an epoch against slow references: permutations, jumps, ranks, resume, and the windowed order's distance."""

import tracemalloc
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
from toy_shards import write_folder

from lit_vision.data import ImageFolderDataModule
from lit_vision.data.order import BLOCK, FullOrder, WindowedOrder, order_line, relative_distance
from lit_vision.data.sampler import TrainBatches
from lit_vision.data.shards.layout import stored_step
from lit_vision.errors import UsageError, UserError

SIZES = [
    (1, 4, 2),
    (7, 4, 2),
    (64, 8, 3),
    (103, 10, 4),
    (103, 1, 7),
    (103, 200, 1),
]  # images, block, blocks of a window


def slow_order(n: int, seed: int, epoch: int, block: int, window_blocks: int) -> list[int]:
    """Return the windowed order of a whole epoch as order.py describes it, image by image."""
    stored = [place * stored_step(n) % n for place in range(n)]
    blocks = [stored[start : start + block] for start in range(0, n, block)]

    def draw(stream: int, count: int, window: int) -> list[int]:
        key = np.array([seed, stream], np.uint64)
        generator = np.random.Generator(np.random.Philox(key=key, counter=[0, 0, window, epoch]))
        return generator.permutation(count).tolist()

    blocks = [blocks[i] for i in draw(1, len(blocks), 0)]
    order = []
    for window, start in enumerate(range(0, len(blocks), window_blocks)):
        images = sorted(image for block in blocks[start : start + window_blocks] for image in block)
        order += [images[i] for i in draw(2 if window else 0, len(images), window)]
    return order


@pytest.mark.parametrize(("n", "block", "window_blocks"), SIZES)
def test_windowed__is_the_slow_reference_from_any_place(n: int, block: int, window_blocks: int) -> None:
    for seed, epoch in ((0, 0), (2**64 - 1, 3)):
        expected = slow_order(n, seed, epoch, block, window_blocks)
        assert sorted(expected) == list(range(n))
        order = WindowedOrder(n, seed, epoch, block, window_blocks)
        assert order.take(0, n).tolist() == expected
        for first, stop in pairwise(range(0, n + 7, 7)):  # jumps, backwards and over the end of windows
            fresh = WindowedOrder(n, seed, epoch, block, window_blocks)
            assert fresh.take(first, stop).tolist() == order.take(first, stop).tolist() == expected[first:stop]


def test_windowed__with_one_window_of_all_blocks_is_the_full_order() -> None:
    for n in (1, 5, 4000):
        for epoch in range(3):
            full, windowed = FullOrder(n, 3, epoch), WindowedOrder(n, 3, epoch)
            assert np.array_equal(full.take(0, n), windowed.take(0, n))
            expected = np.random.Generator(np.random.Philox(key=3, counter=[0, 0, 0, epoch])).permutation(n)
            assert np.array_equal(full.take(0, n), expected)


@pytest.mark.parametrize(("copies", "world", "accumulate"), [(1, 1, 1), (1, 3, 2), (3, 2, 1)])
def test_batches__of_all_ranks_have_each_image_once_and_resume_at_any_step(copies, world, accumulate) -> None:
    n, size = 103, 4
    order = partial(WindowedOrder, block=10, window_blocks=3)
    ranks = [TrainBatches(n, size, rank, world, accumulate, 5, copies, order) for rank in range(world)]
    for epoch in range(2):
        expected = slow_order(n, 5, epoch, 10, 3)
        walked = []
        for batches in ranks:
            batches.set_epoch(epoch)
            walked.append(list(batches))
        in_order = [key for step in zip(*walked) for batch in step for key in batch]
        assert in_order == [(epoch, expected[i // copies], i % copies) for i in range(len(in_order))]
        assert len({key[1:] for key in in_order}) == len(in_order) == len(ranks[0]) * world * size
        for step in range(len(ranks[0])):
            for rank in range(world):
                resumed = TrainBatches(n, size, rank, world, accumulate, 5, copies, order)
                resumed.epoch, resumed.first_batch = epoch, step
                assert list(resumed) == walked[rank][step:]


def test_distance__is_that_of_two_images_of_a_block() -> None:
    n, block, window_blocks = 240, 8, 5
    places = np.empty(n)
    stored = np.arange(n) * stored_step(n) % n
    found = []
    for epoch in range(200):
        places[WindowedOrder(n, 0, epoch, block, window_blocks).take(0, n)] = np.arange(n)
        pairs = places[stored].reshape(-1, block)
        found.append(np.abs(pairs[:, :, None] - pairs[:, None]).sum() / (n * (block - 1)))
    assert np.mean(found) / ((n + 1) / 3) == pytest.approx(relative_distance(n, block, window_blocks), rel=0.02)
    assert relative_distance(n, block, 99) == 1
    tracemalloc.start()
    WindowedOrder(4_000_000, 0, 0, window_blocks=64).take(3_000_000, 3_000_100)
    assert f"windows of {64 * BLOCK:,} images" in order_line(4_000_000, 64)
    assert (
        float(order_line(4_000_000, 64).partition(" MB at most")[0].split()[-1]) * 1e6
        > tracemalloc.get_traced_memory()[1]
    )
    tracemalloc.stop()
    line = order_line(20_000_000, 1024)
    assert "20 windows of 1,048,576 images" in line
    assert "0.05" in line
    assert "160.0 MB" in line


def test_module__chooses_by_the_number_of_images_and_records_the_order(tmp_path, monkeypatch, capsys) -> None:
    root = write_folder(tmp_path / "set")

    def module(**options) -> ImageFolderDataModule:
        return ImageFolderDataModule(str(root), img_size=16, batch_size=2, num_workers=0, **options)

    assert module().data_order == "full"
    monkeypatch.setattr("lit_vision.data.keyed_datamodule.FULL_UP_TO", 3)
    automatic = module()
    assert automatic.data_order == f"windowed, 1024 blocks of {BLOCK}"
    windowed, full = ([b["key"].tolist() for b in module(order=name).train_dataloader()] for name in ("auto", "full"))
    assert windowed == full  # there is one block
    assert capsys.readouterr().out.count("order: windowed, 1 windows") == 1
    state = automatic.state_dict()
    with pytest.raises(UserError, match=r"data\.order"):
        module(order="full").load_state_dict(state)
    del state["order"]  # as in runs of before, and in those of the full order
    with pytest.raises(UserError, match=r"data\.order.*was full"):
        automatic.load_state_dict(state)
    module(order="full").load_state_dict(state)
    for name, value in (("order", "random"), ("window_blocks", 0)):
        with pytest.raises(UsageError, match=name):
            module(**{name: value})
