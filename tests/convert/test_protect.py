"""Models that are sealed, signed or marked: each format opens in memory as in plain; what is refused is not parsed."""

import io
import logging
import os
import stat
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from toy_models import NAMES, make_classifier, write_images, write_run

import lit_vision
from lit_vision.cli.main import main
from lit_vision.errors import UserError
from lit_vision.io.sealed import read_key_file
from lit_vision.methods.watermark import (
    BITS,
    mean_filter,
    read_watermark,
    watermark_layer,
    watermark_loss,
    watermark_secret,
)
from lit_vision.weights.model_metadata import METADATA_KEY, ModelMetadata

pytest.importorskip("cryptography")
pytest.importorskip("model_signing")


class MeanColor(torch.nn.Module):
    """Images (N, 3, S, S) -> the means of the colors as logits, and as features."""

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        mean = images.mean((2, 3))
        return mean, mean * 1.0


def write_other_formats(folder: Path) -> None:
    """Write MeanColor as model.onnx, .xml with .bin, and .pt2, without the exporters, which take seconds."""
    import onnx
    import openvino
    from onnx import TensorProto, helper

    outputs = ["logits", "features"]
    metadata = ModelMetadata(
        "classification", 16, mean=[0.5, 0.4, 0.3], std=[0.2, 0.3, 0.25], class_names=NAMES, outputs=outputs
    )
    nodes = [helper.make_node("ReduceMean", ["images"], [name], axes=[2, 3], keepdims=0) for name in outputs]
    given = helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 3, 16, 16])
    made = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 3]) for name in outputs]
    graph = helper.make_graph(nodes, "mean_color", [given], made)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    helper.set_model_props(model, {METADATA_KEY: metadata.to_json()})
    onnx.save(model, folder / "model.onnx")
    converted = openvino.convert_model(folder / "model.onnx")
    converted.set_rt_info(metadata.to_json(), [METADATA_KEY])
    openvino.save_model(converted, folder / "model.xml")
    batch = {"images": {0: torch.export.Dim("batch", min=1, max=65536)}}
    program = torch.export.export(MeanColor(), (torch.zeros(2, 3, 16, 16),), dynamic_shapes=batch)
    torch.export.save(program, folder / "model.pt2", extra_files={f"{METADATA_KEY}.json": metadata.to_json()})


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A run, its exports, keys to seal and to sign, and images."""
    folder = tmp_path_factory.mktemp("protect")
    write_run(folder / "run", make_classifier("cnn"))
    write_images(folder / "images", 3)
    lit_vision.export_model(folder / "run", "safetensors", out=folder / "model.safetensors")
    write_other_formats(folder)
    (folder / "words.txt").write_text("correct horse battery staple\n")
    for name, *more in (("a.key",), ("b.key",), ("sign", "--signing"), ("other", "--signing")):
        assert main(["protect", "keygen", str(folder / name), *more]) == 0
    return folder


@pytest.fixture(autouse=True)
def cheap_scrypt(monkeypatch) -> None:
    monkeypatch.setattr("lit_vision.io.sealed.SCRYPT_LOG2_N", 14)


def call(capsys, *words: object) -> str:
    """Run a command that succeeds; return what it printed."""
    assert main([str(word) for word in words]) == 0, capsys.readouterr().err
    return capsys.readouterr().out


def refused(capsys, *words: object) -> str:
    """Run a command that fails with one line; return it."""
    code = main([str(word) for word in words])
    error = capsys.readouterr().err
    assert code in (1, 2), error
    assert error.count("\n") == 1, error
    return error


def probabilities(model: object, place: Path, **options) -> np.ndarray:
    loaded = lit_vision.load(model, "cpu", **options)
    return np.array([found.probabilities for found in loaded.predict(place / "images")])


@pytest.mark.parametrize("name", ["run", "model.safetensors", "model.onnx", "model.xml", "model.pt2"])
def test_every_format_opens_in_memory(name: str, place, tmp_path, capsys, monkeypatch) -> None:
    expected = probabilities(place / name, place, trust_pt2=True)
    out = tmp_path / "copy.sealed"  # the ending of the model inside is in the file, not in its name
    assert call(capsys, "protect", "seal", place / name, "--key", place / "a.key", "--out", out) == f"{out}\n"
    written = []
    hook_is_on = [True]

    def watch(event: str, arguments: tuple) -> None:
        if hook_is_on[0] and event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+"):
            written.append(arguments[0])

    sys.addaudithook(watch)
    found = probabilities(out, place, key=place / "a.key", trust_pt2=True)
    hook_is_on[0] = False
    assert [path for path in written if os.fspath(path) != os.devnull] == []
    np.testing.assert_array_equal(found, expected)
    assert [path.name for path in tmp_path.iterdir()] == ["copy.sealed"]
    assert "is sealed" in refused(capsys, "predict", "--model", out, place / "images", "--out", tmp_path / "p.csv")


def test_sealing_leaves_no_plaintext_and_no_key(place, tmp_path, capsys, caplog, monkeypatch) -> None:
    """Every file that is made, whatever becomes of it, and all that is printed or logged."""
    secret = (place / "a.key").read_text().strip()
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    seen: list[bytes] = []
    replace = os.replace
    monkeypatch.setattr(os, "replace", lambda old, new: (seen.append(Path(old).read_bytes()), replace(old, new)))
    caplog.set_level(logging.DEBUG)
    argv = ["protect", "seal", str(place / "model.safetensors"), "--key", str(place / "a.key")]
    printed = call(capsys, *argv, "--out", tmp_path / "m.sealed")
    printed += call(
        capsys, "predict", "--model", tmp_path / "m.sealed", "--key", place / "a.key", place / "images", "--out",
        tmp_path / "p.csv",
    )  # fmt: skip
    plain = (place / "model.safetensors").read_bytes()
    files = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    for content in (*seen, *files, printed.encode(), caplog.text.encode(), " ".join(argv).encode()):
        assert secret.encode() not in content
        assert bytes.fromhex(secret) not in content
        assert plain[-64:] not in content
        assert b"hyper_parameters" not in content
    assert any(content.startswith(b"LVSEALED") for content in seen)


def test_keys_are_for_their_owner_and_are_not_replaced(place, capsys) -> None:
    for name in ("a.key", "sign"):
        assert stat.S_IMODE((place / name).stat().st_mode) == 0o600
        assert "exists already" in refused(capsys, "protect", "keygen", place / name)
    assert read_key_file(place / "a.key").secret != read_key_file(place / "b.key").secret


def test_wrong_keys_and_passphrases_are_one_line(place, tmp_path, capsys) -> None:
    from lit_vision.convert.protect import seal_model
    from lit_vision.io.sealed import read_passphrase_file

    by_key, by_words = tmp_path / "k.sealed", tmp_path / "w.sealed"
    seal_model(place / "model.safetensors", read_key_file(place / "a.key"), by_key)
    seal_model(place / "model.safetensors", read_passphrase_file(place / "words.txt"), by_words)
    (tmp_path / "wrong.txt").write_text("correct horse battery stapler\n")
    predict = ["predict", place / "images", "--out", tmp_path / "p.csv", "--model"]
    assert "is not the key" in refused(capsys, *predict, by_key, "--key", place / "b.key")
    wrong = refused(capsys, *predict, by_words, "--passphrase_file", tmp_path / "wrong.txt")
    assert "is not the passphrase" in wrong
    assert "stapler" not in wrong
    assert "--passphrase_file" in refused(capsys, *predict, by_words, "--key", place / "a.key")
    both = refused(capsys, *predict, by_key, "--key", place / "a.key", "--passphrase_file", place / "words.txt")
    assert "leave one out" in both
    assert "unrecognized" in refused(capsys, *predict, by_words, "--passphrase", "in the list of processes")
    assert probabilities(by_words, place, passphrase_file=place / "words.txt").shape == (3, 3)


def test_a_passphrase_is_asked_for_on_the_terminal(place, tmp_path, capsys, monkeypatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    asked = []
    monkeypatch.setattr("sys.stdin", Terminal())
    monkeypatch.setattr("getpass.getpass", lambda prompt: asked.append(prompt) or "one two three")
    out = tmp_path / "m.safetensors.sealed"
    call(capsys, "protect", "seal", place / "model.safetensors", "--out", out)
    call(capsys, "protect", "unseal", out)
    assert len(asked) == 3  # twice for a new one
    assert out.with_suffix("").read_bytes() == (place / "model.safetensors").read_bytes()


def test_unseal_writes_the_same_files(place, tmp_path, capsys) -> None:
    out = tmp_path / "m.xml.sealed"
    call(capsys, "protect", "seal", place / "model.xml", "--key", place / "a.key", "--out", out)
    call(capsys, "protect", "unseal", out, "--key", place / "a.key")
    for ending in (".xml", ".bin"):
        assert (tmp_path / f"m{ending}").read_bytes() == (place / f"model{ending}").read_bytes()
    assert "protect unseal" in refused(capsys, "export", out, "--format", "onnx")


# ---- signatures


@pytest.fixture
def signed(place, tmp_path, capsys) -> Path:
    """A folder of signed copies: a checkpoint, every export, and a sealed one."""
    for name in ("model.safetensors", "model.onnx", "model.xml", "model.bin", "model.pt2"):
        (tmp_path / name).write_bytes((place / name).read_bytes())
    (tmp_path / "model.ckpt").write_bytes((place / "run/checkpoints/last.ckpt").read_bytes())
    call(capsys, "protect", "seal", tmp_path / "model.onnx", "--key", place / "a.key")
    return tmp_path


FORMATS = ["model.safetensors", "model.onnx", "model.xml", "model.pt2", "model.ckpt", "model.onnx.sealed"]


def test_signed_models_load_and_changed_ones_are_never_parsed(place, signed, capsys, monkeypatch) -> None:
    key = {"key": place / "a.key", "trust_pt2": True}
    for name in FORMATS:
        path = signed / name
        with pytest.raises(UserError, match="has no signature"):
            lit_vision.load(path, "cpu", **key, require_signature=place / "sign.pub")
        call(capsys, "protect", "sign", path, "--key", place / "sign")
        assert "the signature is one of" in call(capsys, "protect", "verify", path, "--key", place / "sign.pub")
        found = probabilities(path, place, **key, require_signature=place / "sign.pub")
        np.testing.assert_array_equal(found, probabilities(path, place, **key))
    for parser in (
        "torch.load",
        "torch.export.load",
        "safetensors.torch.load",
        "lit_vision.weights.checkpoint_layouts.load_safetensors",
        "lit_vision.weights.checkpoint_layouts.safe_open",
        "onnxruntime.InferenceSession",
        "openvino.Core",
        "zipfile.is_zipfile",
        "lit_vision.io.sealed.read_sealed_header",
    ):
        monkeypatch.setattr(parser, None)  # a call of it is a TypeError, no UserError
    for name in FORMATS:
        path = signed / name
        with pytest.raises(UserError, match="is not one of"):
            lit_vision.load(path, "cpu", **key, require_signature=place / "other.pub")
        changed = path.with_suffix(".bin") if name == "model.xml" else path
        content = bytearray(changed.read_bytes())
        content[-1] ^= 1
        changed.write_bytes(content)
        with pytest.raises(UserError, match="is not one of"):
            lit_vision.load(path, "cpu", **key, require_signature=place / "sign.pub")
        assert "is not one of" in refused(capsys, "protect", "verify", path, "--key", place / "sign.pub")


def test_the_bytes_that_are_hashed_are_the_bytes_that_are_parsed(place, signed, capsys, monkeypatch) -> None:
    """The file is exchanged at the moment in which its signature was found to be right."""
    from lit_vision.weights import protected_files

    path = signed / "model.ckpt"
    call(capsys, "protect", "sign", path, "--key", place / "sign")
    expected = probabilities(path, place)
    other = make_classifier("cnn")
    torch.nn.init.zeros_(other.head.weight)
    write_run(signed / "other", other)
    verify = protected_files.verify_files

    def verify_then_exchange(*arguments: object) -> None:
        verify(*arguments)
        os.replace(signed / "other/checkpoints/last.ckpt", path)

    monkeypatch.setattr(protected_files, "verify_files", verify_then_exchange)
    np.testing.assert_array_equal(probabilities(path, place, require_signature=place / "sign.pub"), expected)
    assert not np.array_equal(probabilities(path, place), expected)


def test_a_signature_is_one_of_model_signing(place, signed, capsys) -> None:
    """OpenSSF's own program takes it for a model of one file, and its signatures are taken here."""
    from model_signing import signing, verifying

    path, signature = signed / "model.onnx", signed / "model.onnx.sig"
    call(capsys, "protect", "sign", path, "--key", place / "sign")
    verifying.Config().use_elliptic_key_verifier(public_key=place / "sign.pub").verify(path, signature)
    signature.unlink()
    signing.Config().use_elliptic_key_signer(private_key=place / "sign").sign(path, signature)
    call(capsys, "protect", "verify", path, "--key", place / "sign.pub")
    for damaged in (b"", b"{}", b"\xff", b"0" * (1 << 21)):
        signature.write_bytes(damaged)
        assert "do not use it" in refused(capsys, "protect", "verify", path, "--key", place / "sign.pub")


def test_names_and_folders_have_no_signature(place, capsys) -> None:
    for command in (
        ["predict", "--out", place / "p.csv", "--model"],
        ["embed", "--out", place / "i.safetensors", "--model"],
    ):
        line = refused(capsys, *command, "resnet18", place / "images", "--require_signature", place / "sign.pub")
        assert "is no signed file" in line
    with pytest.raises(UserError, match="is no signed file"):
        lit_vision.load("open_clip:ViT-B-32/openai", require_signature=place / "sign.pub")


# ---- watermark


def test_the_loss_is_that_of_the_paper() -> None:
    """Eq. 2 to 4 in loops: y_j = sigmoid(sum_i X_ji w_i), E_R = -sum_j (b_j log y_j + (1 - b_j) log(1 - y_j))."""
    weight = torch.randn(3, 5, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    matrix, bits = torch.randn(7, 20, dtype=torch.float64), torch.tensor([1.0, 0, 0, 1, 1, 0, 1], dtype=torch.float64)
    mean = [sum(float(weight[o].flatten()[i]) for o in range(3)) / 3 for i in range(20)]
    expected = 0.0
    for j in range(7):
        y = 1 / (1 + np.exp(-sum(float(matrix[j, i]) * mean[i] for i in range(20))))
        expected -= np.log(y) if bits[j] else np.log(1 - y)
    assert float(watermark_loss(weight, matrix, bits)) == pytest.approx(expected, rel=1e-12)


def test_the_secret_follows_from_the_key_alone() -> None:
    matrix, bits = watermark_secret(b"k", 300)
    again, other = watermark_secret(b"k", 300), watermark_secret(b"l", 300)
    assert torch.equal(matrix, again[0])
    assert torch.equal(bits, again[1])
    assert not torch.equal(bits, other[1])
    assert matrix.mean().abs() < 0.02
    assert abs(float(matrix.std()) - 1) < 0.02
    assert 0.35 < bits.mean() < 0.65
    # later versions, and those of numpy, must read the marks of this one
    np.testing.assert_allclose(matrix[0, :3], [1.7178, 2.1181, -1.1690], atol=1e-4)


def test_a_wrong_key_has_half_of_the_bits_and_an_honest_p_value() -> None:
    """p-values of unrelated keys are at or above uniform: at most 10 % below 0.1, up to chance."""
    weight = torch.randn(8, 16, 2, 2, generator=torch.Generator().manual_seed(1))
    readings = [read_watermark(weight, bytes([i])) for i in range(200)]
    assert np.mean([reading.errors for reading in readings]) / BITS == pytest.approx(0.5, abs=0.01)
    assert np.mean([reading.p_value < 0.1 for reading in readings]) < 0.17
    by_hand = sum(float(torch.exp(_log_choose(BITS, k) - BITS * np.log(2))) for k in range(100))
    assert np.isclose(_p_value_of(99), by_hand)


def _log_choose(n: int, k: int) -> torch.Tensor:
    n_, k_ = torch.tensor(float(n), dtype=torch.float64), torch.tensor(float(k), dtype=torch.float64)
    return torch.lgamma(n_ + 1) - torch.lgamma(k_ + 1) - torch.lgamma(n_ - k_ + 1)


def _p_value_of(errors: int) -> float:
    """Return the p-value of a reading with this many errors, of weights made so."""
    matrix, bits = watermark_secret(b"p", 300)
    signs = 2 * bits - 1
    signs[:errors] *= -1
    w = torch.linalg.lstsq(matrix.double(), signs.double()[:, None]).solution[:, 0]
    reading = read_watermark(w.reshape(1, 300, 1, 1), b"p")
    assert reading.errors == errors
    return reading.p_value


def test_training_embeds_the_mark_and_checkpoints_do_not_name_the_key(place, tmp_path, capsys) -> None:
    method = make_classifier("cnn", watermark=str(place / "a.key"))
    assert "watermark" not in method.hparams
    assert not any("mark" in name for name in method.state_dict())
    name, weight = watermark_layer(method.backbone)
    method.log = lambda *args, **kwargs: None
    method.train()
    optimizer = torch.optim.AdamW(method.parameters(), 0.01)
    batch = {
        "images": torch.randn(6, 1, 3, 16, 16), "label": torch.arange(6) % 3, "key": torch.zeros(6, 3, dtype=torch.long)
    }  # fmt: skip
    for _ in range(40):
        optimizer.zero_grad()
        method.training_step(batch, 0).backward()
        optimizer.step()
    run = write_run(tmp_path / "run", method)
    assert call(capsys, "protect", "check", run, "--key", place / "a.key").startswith(
        f"0 of {BITS} bits wrong in {name}"
    )
    wrong = call(capsys, "protect", "check", run, "--key", place / "b.key")
    assert 90 < int(wrong.split()[0]) < 166
    assert mean_filter(weight).shape == (weight[0].numel(),)


def test_a_convolution_that_cannot_hold_the_mark_is_refused(place) -> None:
    with pytest.raises(UserError, match="set tune to full"):
        make_classifier("cnn", watermark=str(place / "a.key"), tune="linear")
    with pytest.raises(UserError, match="filters have 256 weights"):
        make_classifier("vit", watermark=str(place / "a.key"))
