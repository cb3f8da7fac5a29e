from __future__ import annotations

from pathlib import Path

import pytest

from tests.host.probe import PAGE, Probe
from tests.models.tiny import write_tiny_llama
from wasmetal import Guest, Limits, load_model
from wasmetal.device import Device

ATTACKER = Path(__file__).parents[2] / "guests" / "attacker.wasm"
LIMITS = Limits(device_bytes=16 << 20, handles=200)


def test_no_attack_gets_through(device: Device, tmp_path: Path) -> None:
    """While another guest, whose handle the attacker has stolen, holds buffers on the same device."""
    with load_model(write_tiny_llama(tmp_path / "tiny.gguf"), device) as model, Probe(device) as victim:
        victim.bytes[:] = 0x5A
        stolen = victim.share(PAGE, 4 * PAGE)
        free = model.cache.free
        said: list[bytes] = []
        with Guest(
            ATTACKER, device=device, models={"default": model}, args=[str(stolen)], limits=LIMITS, stdout=said.append
        ) as guest:
            code = guest.run()
            assert code == 0, b"".join(said).decode()
            assert guest._account.device_bytes == 0
        assert int(b"".join(said).split()[0]) > 800
        assert (victim.bytes[PAGE:] == 0x5A).all()
        assert model.cache.free == free


@pytest.mark.parametrize("granted", [True, False])
def test_it_does_not_depend_on_what_is_granted(granted: bool, tmp_path: Path) -> None:
    models = {"default": write_tiny_llama(tmp_path / "tiny.gguf")} if granted else {}
    with Guest(ATTACKER, device="cpu", models=models, limits=LIMITS) as guest:
        assert guest.run() == 0
