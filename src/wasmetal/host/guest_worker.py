"""The service that runs one guest with a device and models of its own, for :mod:`wasmetal.host.isolated`."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wasmetal.counters import Counters
from wasmetal.device import Device, open_device
from wasmetal.errors import GuestError, WasmetalError
from wasmetal.host.grants import Dir
from wasmetal.host.guest import Guest
from wasmetal.host.limits import Limits
from wasmetal.host.nn.grants import NnModel, needs_device, path_of
from wasmetal.host.program import Program
from wasmetal.worker.channel import Channel, ChannelError, Header, Payload
from wasmetal.worker.child import MOST
from wasmetal.worker.confinement import Allowance

if TYPE_CHECKING:
    from wasmetal.models import Model

_PIECE = 1 << 20
"""Most bytes of output in one message."""


def run(channel: Channel, allowance: Allowance) -> None:
    """Create the guest, and then use it as the messages say."""
    with ExitStack() as stack:
        service = _Service(channel, allowance, stack)
        while True:
            request, payload = channel.receive(MOST)
            result: Payload = b""
            try:
                value, result = service.do(payload, **request)
                answer: Header = {"value": value}
            except WasmetalError as error:
                answer = {"error": type(error).__name__, "message": str(error)}
            except MemoryError:
                answer = {"error": "LimitError", "message": "limit reached: memory of the guest's process"}
            except ChannelError:
                raise
            except Exception as error:
                answer = {"error": "GuestError", "message": f"{type(error).__name__}: {error}"}
            channel.send(answer | {"counters": service.counters}, result)


class _Service:
    def __init__(self, channel: Channel, allowance: Allowance, stack: ExitStack) -> None:
        self._channel = channel
        self._allowance = allowance
        self._stack = stack
        self._loading = Counters()
        """What it cost to load the models."""
        self._guest: Guest | None = None

    @property
    def counters(self) -> dict[str, int | float]:
        """What the guest has caused so far, by name."""
        total = Counters()
        total.add(self._loading)
        if self._guest:
            total.add(self._guest.counters)
        return total.as_dict()

    def do(self, payload: bytearray, *, do: str, **arguments: Any) -> tuple[Any, Payload]:
        """Do what a message says; a JSON value and bytes."""
        if self._guest is None:
            self._guest = self._create(payload, **arguments)
            return None, b""
        if do == "read":
            return None, self._guest.read(**arguments)
        if do == "write":
            self._guest.write(data=bytes(payload), **arguments)
            return None, b""
        if do == "call":
            return _plain(arguments["name"], self._guest.call(arguments["name"], *arguments["values"])), b""
        return self._guest.run(), b""

    def _create(
        self,
        payload: bytearray,
        *,
        name: str,
        compiled: int,
        is_component: bool,
        device: str | None,
        models: dict[str, str],
        loading: dict[str, Any],
        nn: dict[str, tuple[str, dict[str, Any]]],
        dirs: dict[str, tuple[str, bool]],
        limits: dict[str, Any],
        inherit: bool,
        memory: int,
        **others: Any,
    ) -> Guest:
        """``payload``: the program's code, which has ``compiled`` bytes, and standard input."""
        program = Program.load(name, bytes(payload[:compiled]), is_component)
        given: dict[str, Any] = {"nn": {inside: NnModel(*each) for inside, each in nn.items()}}
        asked = given["nn"] if program.imports_nn else {}
        for_device = {inside: each for inside, each in asked.items() if needs_device(path_of(each.source))}
        if device is not None or models or program.imports_device or for_device:
            given["device"] = opened = self._stack.enter_context(open_device(device))
            # Now, before the memory of this process is limited to what the guest may take.
            given["models"] = {inside: self._load(source, opened, loading) for inside, source in models.items()}
            for inside, each in for_device.items():
                from wasmetal.nn.ggml.backend import load  # noqa: PLC0415 (slow to import, and few guests need it)

                model = load(path_of(each.source), opened, loading | {"trusted": True})
                self._stack.callback(model.close)
                self._loading.add(model.counters)
                given["nn"][inside] = NnModel(model, each.options)
        self._stack.enter_context(self._allowance.granted(memory, None))
        return self._stack.enter_context(
            Guest(
                program,
                **given,
                **others,
                dirs={inside: Dir(path, read_only) for inside, (path, read_only) in dirs.items()},
                limits=Limits(**limits),
                stdin="inherit" if inherit else bytes(payload[compiled:]),
                stdout=partial(self._pass_on, "stdout"),
                stderr=partial(self._pass_on, "stderr"),
            )
        )

    def _load(self, source: str | Path, device: Device, loading: dict[str, Any]) -> Model:
        from wasmetal.models import load_model  # noqa: PLC0415 (slow to import, and few guests need it)

        # Whatever the model does, it does it to this process.
        model = self._stack.enter_context(load_model(source, device, **loading | {"trusted": True}))
        self._loading.add(model.counters)
        return model

    def _pass_on(self, output: str, data: bytes) -> None:
        for start in range(0, len(data), _PIECE):
            self._channel.send({"output": output}, data[start : start + _PIECE])


def _plain(name: str, value: Any) -> Any:
    """A function's result, if it can be sent. Raises GuestError."""
    values = value if isinstance(value, list | tuple) else [value]
    if not all(each is None or isinstance(each, int | float) for each in values):
        raise GuestError(f"the result of {name!r} is a reference, which cannot leave the guest's process")
    return value
