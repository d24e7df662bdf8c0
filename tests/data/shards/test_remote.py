"""Shards behind a loopback HTTP server: the folder's batches, each byte once, failed requests, cache, reading ahead."""

import multiprocessing
import os
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from toy_shards import write_folder

sys.path.insert(0, str(Path(__file__).parents[3] / "experiments"))
from range_server import RangeServer
from toy_fork import parent_objects_kept

from lit_vision.data import ImageFolderDataModule
from lit_vision.data.lookahead import LookaheadBatches
from lit_vision.data.open_images import open_images
from lit_vision.data.sampler import TrainBatches
from lit_vision.data.shard_writer import write_shards
from lit_vision.data.shards import remote
from lit_vision.data.shards.address import Address, is_address
from lit_vision.data.shards.cache import ByteCache, cache_bytes
from lit_vision.data.shards.index import checksum_of, load_index
from lit_vision.errors import UserError
from lit_vision.io.file_lock import locked


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return write_folder(tmp_path_factory.mktemp("remote") / "folder", 12)


@pytest.fixture(scope="module")
def shards(root) -> Path:
    write_shards(open_images(root), root.parent / "shards", 3)
    return root.parent / "shards"


@pytest.fixture
def served(shards, tmp_path, monkeypatch):
    """Return a function that serves a folder, by default the shards; no cache of other tests is seen."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(remote, "FIRST_WAIT", 0.001)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    servers = []

    def serve(folder: Path = shards, fail_every: int = 0) -> RangeServer:
        servers.append(RangeServer(folder, fail_every=fail_every).start())
        return servers[-1]

    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()


def _batches(source: object, epochs: int = 1, **options) -> list[dict]:
    settings = {"img_size": 16, "batch_size": 2, "num_workers": 0, "train_view": "simclr", "in_memory": False}
    module = ImageFolderDataModule(str(source), **{**settings, **options})
    found = []
    for epoch in range(epochs):
        loader = module.train_dataloader()
        loader.batch_sampler.sampler.set_epoch(epoch)
        found += [*loader, *module.eval_loader("val")]
    return found


def _same(a: list[dict], b: list[dict]) -> bool:
    return len(a) == len(b) and all(torch.equal(x[k], y[k]) for x, y in zip(a, b) for k in ("images", "label", "key"))


def test_batches__are_the_folder_s_and_each_byte_comes_once(root, shards, served) -> None:
    expected = _batches(root, 2)
    stored = int(load_index(shards / "index.safetensors").arrays["length"].sum())
    server = served()
    assert _same(_batches(server.address, 2, cache_gb=0), expected)
    assert server.counts["bytes"] == 2 * stored  # once an epoch
    server.reset()
    assert _same(_batches(server.address, 2), expected)
    assert server.counts["bytes"] == stored  # once
    server.reset()
    assert _same(_batches(server.address, 2), expected)
    assert server.counts == {"requests": 3, "failed": 0, "bytes": 0, "again": 0}  # the index's size and header
    assert _same(_batches(server.address, in_memory="auto"), _batches(root, in_memory="auto"))
    flaky = served(fail_every=3)
    assert _same(_batches(flaky.address, num_workers=2, cache_gb=0), _batches(root))
    assert flaky.counts["failed"] > 5


def test_failures__name_the_file_and_the_key(shards, served, tmp_path, monkeypatch) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in shards.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    address = served(copy).address
    opened = open_images(address, cache_gb=0)
    path = opened.splits["val"].paths[0]
    good = opened.read(path)
    assert pickle.loads(pickle.dumps(opened)).read(path) == good
    tar = copy / "val-00000.tar"
    data = bytearray(tar.read_bytes())
    data[int(opened.index.arrays["offset"][opened.row_of(path)])] ^= 1
    tar.write_bytes(data)
    with pytest.raises(UserError, match=r"val-00000\.tar: altered: .*key 00000012 .*val/ant/000\.jpg"):
        opened.read(path)
    tar.write_bytes(data[:600])
    with pytest.raises(UserError, match=r"val-00000\.tar: 6 requests failed"):
        opened.read(path)
    tar.unlink()
    opened.prefetch([path])
    with pytest.raises(UserError, match=r"val-00000\.tar: no such file"):
        opened.read(path)
    with pytest.raises(UserError, match=r"index\.safetensors: no such file"):
        open_images(address + "/other")
    (copy / "index.safetensors").write_bytes(b"\xff" * 1000)
    with pytest.raises(UserError, match=r"index\.safetensors: is no index"):
        open_images(address)
    with pytest.raises(UserError, match="nowhere://x: "):
        open_images("nowhere://x")
    monkeypatch.setattr(remote, "ATTEMPTS", 1)
    with pytest.raises(UserError, match=r"127\.0\.0\.1:1/set/index\.safetensors: 1 requests failed"):
        open_images("http://127.0.0.1:1/set")


def test_address__is_shown_without_its_password_and_kept_with_it() -> None:
    address = Address("https://me:secret@host/set/")
    assert "secret" not in f"{address} {address / 'a.tar'} {address!r}"
    for same in (address, Address(address), pickle.loads(pickle.dumps(address))):
        assert (same / "a.tar").given == "https://me:secret@host/set/a.tar"
    assert not any(map(is_address, ("photos", "/a/b", "c:/x", "a:b", Path("s3:/x"))))
    assert is_address("s3://bucket/set")


def _fill(folder: Path, seed: int, limit: int) -> None:
    """Store and read in a process of its own; ends with an error if a content is wrong or the limit is passed."""
    cache, rng = ByteCache(folder, limit), np.random.default_rng(seed)
    for _ in range(150):
        data = np.full(int(rng.integers(1, 400)), rng.integers(40), np.uint8).tobytes()
        name = checksum_of(data).hex()
        found = cache.get(name)
        assert found in (None, data)
        cache.put(name, data)
        with locked(folder / "lock"):
            used = sum(size for _, size, _ in cache._files())
        assert used <= limit, used
    os._exit(0)


def test_cache__stays_below_its_limit_between_processes(tmp_path) -> None:
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_fill, args=(tmp_path / "cache", seed, 4000)) for seed in range(3)]
    with parent_objects_kept():
        for process in processes:
            process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]


def test_cache__removes_the_longest_unused_and_survives_damage(tmp_path) -> None:
    cache = ByteCache(tmp_path / "cache", 1000)
    contents = {name * 8: bytes([i]) * 300 for i, name in enumerate("abcd")}
    for age, (name, data) in enumerate(list(contents.items())[:3]):
        cache.put(name, data)
        os.utime(cache._path(name), (age, age))
    assert cache.get("a" * 8) == contents["a" * 8]  # used now
    cache.put("d" * 8, contents["d" * 8])
    assert [cache.get(name) == data for name, data in contents.items()] == [True, False, True, True]
    (tmp_path / "cache/used").write_text("lost")
    cache.put("e" * 8, b"e" * 350)
    assert sum(size for _, size, _ in cache._files()) <= 1000
    cache.put("f" * 8, b"f" * 1001)
    assert cache.get("f" * 8) is None
    ByteCache(tmp_path / "none", 0).put("a" * 8, b"x")
    assert not (tmp_path / "none").exists()
    assert cache_bytes(2.5) == 2_500_000_000
    for wrong in (-1, float("nan"), float("inf")):
        with pytest.raises(UserError, match="cache_gb"):
            cache_bytes(wrong)


def test_altered_cache__is_read_again(shards, served, tmp_path) -> None:
    server = served()
    opened = open_images(server.address)
    path = opened.splits["train"].paths[0]
    good = opened.read(path)
    for file in (tmp_path / "cache/lit_vision/shards").glob("??/*"):
        file.write_bytes(b"wrong")
    assert opened.read(path) == good
    assert server.counts["again"] == len(good)


@pytest.mark.parametrize("content", [b"", b"altered"])
def test_damaged_copy_of_an_index__is_fetched_again(content: bytes, shards, served, tmp_path) -> None:
    server = served()
    good = list(open_images(server.address).splits["train"].paths)
    (copy,) = (tmp_path / "cache/lit_vision/shards/indexes").glob("*.safetensors")
    copy.write_bytes(copy.read_bytes()[:-20] + b"x" * 20 if content else b"")
    assert list(open_images(server.address).splits["train"].paths) == good


def test_servers_that_do_not_say_a_length__are_named(monkeypatch) -> None:
    class NoLength:
        def size(self, url: str) -> None:
            return None

    monkeypatch.setattr(remote, "_open_file_system", lambda address: NoLength())
    with pytest.raises(UserError, match="does not say how long it is"):
        open_images("https://host/set")


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_lookahead__names_what_the_same_worker_gets_next(workers: int) -> None:
    batches = TrainBatches(40, 4, 0, 1, 1, seed=0)
    batches.epoch, batches.first_batch = 2, 1
    plain, ahead = list(batches), LookaheadBatches(batches, workers)
    assert list(ahead) == plain
    assert ahead.sampler is batches
    assert len(ahead) == len(batches)
    step = max(1, workers)
    for i, keys in enumerate(ahead):
        assert keys.upcoming == [
            key for later in (i + step, i + 2 * step) for key in (plain[later : later + 1] or [[]])[0]
        ]


def test_reading_ahead__is_bounded_and_forgets_what_was_not_asked_for(shards, served, monkeypatch) -> None:
    opened = open_images(served().address, cache_gb=0)
    paths = list(opened.splits["train"].paths)
    monkeypatch.setattr(remote, "AHEAD_BYTES", sum(opened.splits["train"].sizes[:3].tolist()))
    storage = opened._remote
    opened.prefetch(paths)
    assert len(storage._ahead) == 3
    opened.prefetch(paths[2:])
    assert set(storage._ahead) == {2, 3, 4} or {2, 3} <= set(storage._ahead)  # files differ in size
    assert storage._ahead_bytes == sum(int(opened.index.arrays["length"][row]) for row in storage._ahead)
    for path in paths:
        opened.read(path)
    assert (storage._ahead, storage._ahead_bytes) == ({}, 0)
