"""Sealed files: every changed byte and every other order of chunks is refused; keys, passphrases, forged headers."""

import struct
from pathlib import Path

import pytest

from lit_vision.errors import UserError
from lit_vision.io import sealed
from lit_vision.io.sealed import MasterKey

pytest.importorskip("cryptography")

KEY = MasterKey(bytes(range(32)), False, "--key k")
WORDS = MasterKey(b"correct horse", True, "the passphrase")
PARTS = [bytes(range(256)) * 2, b"weights" * 20]
HEADER, CHUNK, TAG = 133, 64, 16
PATH = Path("model.sealed")


def seal(parts: list[bytes] = PARTS, key: MasterKey = KEY) -> bytes:
    return b"".join(sealed.seal(parts, ".xml", key, CHUNK, 14))


def chunks_of(content: bytes) -> list[bytes]:
    body = content[HEADER:]
    return [body[at : at + CHUNK + TAG] for at in range(0, len(body), CHUNK + TAG)]


def test_what_is_sealed_is_opened() -> None:
    for parts in (PARTS, [b""], [bytes(CHUNK - 8)], [bytes(CHUNK - 7)]):  # the last two: one full chunk, and two
        assert sealed.open_sealed(seal(parts), PATH, KEY) == (".xml", parts)
    assert len(chunks_of(seal())) == 11


def test_two_seals_of_a_model_share_no_chunk() -> None:
    first, second = seal(), seal()
    assert not set(chunks_of(first)) & set(chunks_of(second))
    assert b"weights" not in first


def test_each_flipped_bit_is_refused() -> None:
    content = seal()
    for at in range(len(content)):
        flipped = bytearray(content)
        flipped[at] ^= 1 << at % 8
        with pytest.raises(UserError, match=r"model\.sealed"):
            sealed.open_sealed(bytes(flipped), PATH, KEY)


def test_each_cut_and_addition_is_refused() -> None:
    content = seal()
    for end in range(len(content)):
        with pytest.raises(UserError, match=r"model\.sealed"):
            sealed.open_sealed(content[:end], PATH, KEY)
    for more in (b"\0", bytes(TAG), bytes(CHUNK + TAG), chunks_of(content)[-1]):
        with pytest.raises(UserError, match="differs from what was sealed"):
            sealed.open_sealed(content + more, PATH, KEY)


def test_each_other_order_of_chunks_is_refused() -> None:
    """Two exchanged, one left out, one twice, and each taken from another file of the same key and content."""
    content, other = seal(), chunks_of(seal())
    header, chunks = content[:HEADER], chunks_of(content)
    orders = []
    for i in range(len(chunks)):
        orders += [
            chunks[:i] + chunks[i + 1 :],
            chunks[: i + 1] + chunks[i:],
            [*chunks[:i], other[i], *chunks[i + 1 :]],
        ]
        for j in range(i):
            exchanged = list(chunks)
            exchanged[i], exchanged[j] = exchanged[j], exchanged[i]
            orders.append(exchanged)
    for order in orders:
        with pytest.raises(UserError, match="differs from what was sealed"):
            sealed.open_sealed(header + b"".join(order), PATH, KEY)


def test_chunks_are_aes_256_gcm_of_nist() -> None:
    """Test case 16 of the GCM specification (McGrew and Viega, revised), which NIST SP 800-38D refers to."""
    key = bytes.fromhex("feffe9928665731c6d6a8f9467308308" * 2)
    nonce = bytes.fromhex("cafebabefacedbaddecaf888")
    plain = bytes.fromhex(
        "d9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a72"
        "1c3c0c95956809532fcf0e2449a6b525b16aedf5aa0de657ba637b39"
    )
    associated = bytes.fromhex("feedfacedeadbeeffeedfacedeadbeefabaddad2")
    expected = bytes.fromhex(
        "522dc1f099567d07f47f37a32a84427d643a8cdcbfe5c0c97598a2bd2555d1aa"
        "8cb08e48590dbb3da7b08b1056828838c5f61e6393ba7a0abcc9f662"
        "76fc6ece0f4e1768cddf8853bb2d551b"
    )
    assert sealed.encrypt_chunk(key, nonce, plain, associated) == expected
    assert sealed.decrypt_chunk(key, nonce, expected, associated) == plain


def test_another_key_is_named_in_one_line() -> None:
    with pytest.raises(UserError, match="--key other is not the key that it was sealed with"):
        sealed.open_sealed(seal(), PATH, MasterKey(bytes(32), False, "--key other"))
    with pytest.raises(UserError, match="was sealed with a key file"):
        sealed.open_sealed(seal(), PATH, WORDS)


def test_a_passphrase_opens_and_another_does_not() -> None:
    content = seal(key=WORDS)
    assert sealed.open_sealed(content, PATH, WORDS)[1] == PARTS
    with pytest.raises(UserError, match="is not the passphrase that it was sealed with"):
        sealed.open_sealed(content, PATH, MasterKey(b"correct house", True, "the passphrase"))
    assert "horse" not in repr(WORDS)


@pytest.mark.parametrize("forged", [(31, 8, 1), (19, 8, 1), (17, 255, 1), (17, 8, 255), (1, 8, 1), (0, 0, 0)])
def test_a_forged_header_of_scrypt_costs_nothing(forged: tuple[int, int, int], monkeypatch) -> None:
    content = bytearray(seal(key=WORDS))
    content[10:13] = bytes(forged)
    monkeypatch.setattr("cryptography.hazmat.primitives.kdf.scrypt.Scrypt", None)  # a call of it is a TypeError
    with pytest.raises(UserError, match="never writes"):
        sealed.open_sealed(bytes(content), PATH, WORDS)
    content[29:33] = struct.pack(">I", 2**32 - 1)  # the chunk size
    content[10:13] = 14, 8, 1
    with pytest.raises(UserError, match="never writes"):
        sealed.open_sealed(bytes(content), PATH, WORDS)
