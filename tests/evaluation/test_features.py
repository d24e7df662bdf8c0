"""Feature extraction: exact, order kept, modes restored, the same over two processes."""

import socket

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from toy_fork import parent_objects_kept

from lit_vision.errors import UserError
from lit_vision.evaluation.features import extract_features

MEAN, STD = torch.tensor([0.4, 0.5, 0.6]), torch.tensor([0.2, 0.3, 0.1])


def batches(rows, size=3, views=1):
    g = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (11, 2, 8, 8, 3), generator=g, dtype=torch.uint8)
    for part in torch.tensor(rows).split(size):
        key = torch.stack([torch.zeros_like(part), part, torch.zeros_like(part)], 1)
        yield {"images": images[part, :views], "label": part % 3 - 1, "key": key}


def encoder():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Flatten(), nn.Linear(144, 5))


def slow_features(rows):
    model = encoder().eval()
    out = []
    for batch in batches(rows, size=1):
        pixels = (batch["images"][0, 0].permute(2, 0, 1) / 255 - MEAN[:, None, None]) / STD[:, None, None]
        out.append(model(pixels[None])[0].detach())
    return torch.stack(out)


@pytest.mark.parametrize("views", [1, 2])
def test_equals_one_image_at_a_time_in_the_loaders_order(views):
    rows = [5, 3, 10, 0, 7, 1, 2]
    found = extract_features(encoder(), batches(rows, views=views), MEAN, STD)
    torch.testing.assert_close(found.features, slow_features(rows))
    assert found.keys[:, 1].tolist() == rows
    assert found.labels.tolist() == [r % 3 - 1 for r in rows]
    assert found.features.dtype == torch.float32
    assert not found.features.requires_grad
    assert len(found.select(found.labels >= 0)) == 5
    head = nn.Linear(5, 2)
    head(found.features).sum().backward()  # ordinary tensors: a head can be trained on them
    assert found.select([2, 0]).keys[:, 1].tolist() == [10, 5]


def test_modes_come_back_as_they_were_even_after_an_error():
    model = encoder().train()
    model[1].eval()  # frozen statistics inside a model in training
    before = [module.training for module in model.modules()]
    statistics = model[1].running_mean.clone()
    extract_features(model, batches([0, 1]), MEAN, STD)
    assert [module.training for module in model.modules()] == before
    assert torch.equal(model[1].running_mean, statistics)
    with pytest.raises(KeyError):
        extract_features(model, [{"image": 0}], MEAN, STD)
    assert [module.training for module in model.modules()] == before
    model(torch.rand(2, 3, 8, 8)).sum().backward()  # inference mode left nothing behind


def test_no_sample_and_nan_are_refused():
    with pytest.raises(UserError, match="no samples"):
        extract_features(encoder(), [], MEAN, STD)
    model = encoder()
    nn.init.constant_(model[4].bias, float("nan"))
    with pytest.raises(UserError, match="4 of 4 samples"):
        extract_features(model, batches([0, 1, 2, 3]), MEAN, STD)


def _two(rank, port, shares, out):
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    for number, share in enumerate(shares):
        found = extract_features(encoder(), batches(share[rank]) if share[rank] else [], MEAN, STD)
        torch.save((found.features, found.labels, found.keys), f"{out}/{number}-{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_give_every_sample_once_on_both(tmp_path):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    shares = [([0, 2, 4, 6, 8, 10], [1, 3, 5, 7, 9]), ([0, 1], []), ([0, 2, 4], [1, 3, 0])]  # uneven, empty, padded
    with parent_objects_kept():
        mp.start_processes(_two, (port, shares, str(tmp_path)), nprocs=2, start_method="fork")
    for number, (a, b) in enumerate(shares):
        rows = sorted(set(a + b))
        for rank in range(2):
            features, labels, keys = torch.load(tmp_path / f"{number}-{rank}.pt")
            assert keys[:, 1].tolist() == rows
            assert labels.tolist() == [r % 3 - 1 for r in rows]
            torch.testing.assert_close(features, slow_features(rows))
