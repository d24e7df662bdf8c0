"""save_tensors: the same contents have the same bytes, and are read back as they were."""

import torch
from safetensors import safe_open
from safetensors.torch import load_file

from lit_vision.io.safetensors_file import save_tensors


def test_equal_contents_have_equal_bytes(tmp_path) -> None:
    tensors = {"b": torch.arange(6.0).reshape(2, 3), "a": torch.ones(3, dtype=torch.int64), "c": torch.zeros(1).half()}
    metadata = {f"key {i}": f'"{chr(i)}\\ä\u2028😀{chr(127)}' for i in range(40)}
    contents = set()
    for turn in range(4):  # the package's own writer gives four different files
        path = tmp_path / f"{turn}.safetensors"
        save_tensors(dict(sorted(tensors.items(), reverse=turn % 2 == 1)), path, metadata)
        contents.add(path.read_bytes())
    assert len(contents) == 1
    found = load_file(path)
    assert all(torch.equal(found[name], value) and found[name].dtype == value.dtype for name, value in tensors.items())
    with safe_open(path, "pt") as file:
        assert file.metadata() == metadata
