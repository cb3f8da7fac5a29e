"""Authentication: what the holder of a key refuses."""

from __future__ import annotations

import hashlib
import hmac
from contextlib import suppress
from pathlib import Path

import pytest

from tests.actor.snapshots import load, save
from wasmetal.actor.store import DirectoryStore, Ed25519Key, HmacKey, Key
from wasmetal.errors import SnapshotError

SECRET = bytes(range(32))


def test_the_tag_is_hmac_over_the_fields_before_it(tmp_path: Path) -> None:
    """As docs/snapshot-format.md says, computed here without the store."""
    save(DirectoryStore(tmp_path, key=HmacKey(SECRET)), "a", [b"x"])
    data = (tmp_path / "actors" / "a.snapshot").read_bytes()
    assert data[192:224] == hmac.new(SECRET, data[:192], hashlib.sha256).digest()
    assert data[224:256] == bytes(32)
    assert data[24:56] == hashlib.sha256(data[256:]).digest()


def test_the_tag_is_a_signature_of_the_fields_before_it(tmp_path: Path) -> None:
    ed25519 = pytest.importorskip("cryptography.hazmat.primitives.asymmetric.ed25519")
    key = Ed25519Key.from_private(SECRET)
    save(DirectoryStore(tmp_path, key=key), "a", [b"x"])
    data = (tmp_path / "actors" / "a.snapshot").read_bytes()
    ed25519.Ed25519PublicKey.from_public_bytes(key.public).verify(data[192:256], data[:192])


def others() -> list[Key | None]:
    """Keys that are not SECRET's HMAC."""
    found: list[Key | None] = [None, HmacKey(SECRET[::-1])]
    with suppress(SnapshotError):  # without cryptography
        found.append(Ed25519Key.from_private(SECRET))
    return found


@pytest.mark.parametrize("other", others(), ids=lambda key: type(key).__name__)
def test_what_another_key_made_is_refused(tmp_path: Path, other: Key | None) -> None:
    save(DirectoryStore(tmp_path, key=other), "a", [b"x"])
    with pytest.raises(SnapshotError, match="authenticated"):
        DirectoryStore(tmp_path, key=HmacKey(SECRET)).load("a")
    assert load(DirectoryStore(tmp_path), "a")[1] == {b"x"}  # who has no key sees only damage


def test_a_public_key_checks_and_does_not_sign(tmp_path: Path) -> None:
    pytest.importorskip("cryptography")
    private = Ed25519Key.from_private(SECRET)
    public = Ed25519Key.from_public(private.public)
    save(DirectoryStore(tmp_path, key=private), "a", [b"x"])
    store = DirectoryStore(tmp_path, key=public)
    assert load(store, "a")[1] == {b"x"}
    with pytest.raises(SnapshotError, match="save with the private key"):
        save(store, "a", [b"y"])
    assert load(store, "a")[1] == {b"x"}
    path = Path(store.layout.snapshot("a"))
    data = bytearray(path.read_bytes())
    for at in range(8, 256):  # each byte of the header but the magic
        path.write_bytes(data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :])
        with pytest.raises(SnapshotError, match=r"authenticated|format version"):
            store.load("a")


def test_keys_that_are_none_are_refused() -> None:
    with pytest.raises(SnapshotError, match="too short"):
        HmacKey(b"password")
    with pytest.raises(SnapshotError, match=r"32 bytes, not 31|cryptography"):
        Ed25519Key.from_private(bytes(31))
    with pytest.raises(SnapshotError, match=r"32 bytes, not 33|cryptography"):
        Ed25519Key.from_public(bytes(33))
