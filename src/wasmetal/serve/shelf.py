"""Models that are loaded when they are asked for, and unloaded when nobody has for a while."""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from wasmetal.errors import WasmetalError, printable
from wasmetal.models import Embedder, Model
from wasmetal.models.planning import Plan
from wasmetal.serve.errors import ApiError, log

_LOOK = 0.05
"""Seconds between two looks at whether a model in use is idle by now."""


@dataclass(frozen=True, slots=True)
class Stored:
    """A model that can be loaded."""

    plan: Plan
    load: Callable[[], Model | Embedder]
    """Called on a thread. Raises WasmetalError."""


@dataclass(frozen=True, slots=True)
class Room:
    """How many models may be loaded at a time."""

    count: float = math.inf
    nbytes: float = math.inf
    """Of the device's memory, by their plans."""
    idle_seconds: float = math.inf
    """After so long without a request, a model is unloaded."""
    patience: float = 30.0
    """Seconds that a request waits for models in use to make room."""


class Shelf:
    """Loads and unloads models. For one event loop; loads one at a time."""

    def __init__(
        self,
        loaded: dict[str, Model | Embedder],
        stored: Sequence[Stored],
        room: Room,
        in_use: Callable[[str], bool],
    ) -> None:
        """``loaded``: where models are while they are loaded; those that are there already stay. ``in_use``: whether a
        model has completions, also of requests that have ended."""
        self.loads = 0
        """How often a model was loaded."""
        self._loaded = loaded
        self._stored = {each.plan.name: each for each in stored}
        self._room = room
        self._in_use = in_use
        self._leases: Counter[str] = Counter()
        self._used: dict[str, float] = {}
        """When each model that is loaded was last asked for, or given back."""
        self._turn = asyncio.Lock()
        self._loading: dict[str, asyncio.Task[None]] = {}
        self._checks: dict[str, asyncio.Task[None]] = {}

    def plans(self) -> list[Plan]:
        """The plans of all models that it may load."""
        return [each.plan for each in self._stored.values()]

    async def take(self, name: str) -> Callable[[], None]:
        """Have a model loaded, and keep it so until what is returned is called. Nothing happens for other names.

        Raises ApiError 503 if it does not fit, for now or at all.
        """
        if name not in self._stored:
            return lambda: None
        self._leases[name] += 1
        try:
            while name not in self._loaded:
                task = self._loading.get(name)
                if task is None:
                    task = self._loading[name] = asyncio.create_task(self._load(self._stored[name]))
                    task.add_done_callback(partial(self._load_ended, name))
                await asyncio.shield(task)  # it is for others too, and for later
        except BaseException:
            self._give_back(name)
            raise
        self._used[name] = time.monotonic()
        return lambda: self._give_back(name)

    async def close(self) -> None:
        """Unload what was loaded here."""
        for task in [*self._checks.values(), *self._loading.values()]:
            task.cancel()
        await asyncio.gather(*self._checks.values(), *self._loading.values(), return_exceptions=True)
        for name in list(self._used):
            await self._unload(name)

    def _give_back(self, name: str) -> None:
        self._leases[name] -= 1
        self._used_now(name)

    def _load_ended(self, name: str, task: asyncio.Task[None]) -> None:
        del self._loading[name]
        if not task.cancelled():
            task.exception()  # perhaps nobody waits for it any more

    def _used_now(self, name: str) -> None:
        if name in self._loaded:
            self._used[name] = time.monotonic()
            if math.isfinite(self._room.idle_seconds) and name not in self._checks:
                self._checks[name] = task = asyncio.create_task(self._unload_when_idle(name))
                task.add_done_callback(lambda _: self._checks.pop(name))

    async def _load(self, stored: Stored) -> None:
        async with self._turn:
            await self._make_room(stored.plan)
            loading = asyncio.ensure_future(asyncio.to_thread(stored.load))
            try:
                model = await asyncio.shield(loading)
            except asyncio.CancelledError:  # the server ends: what the thread makes must be closed, too
                await asyncio.wait([loading])
                if not loading.exception():
                    await asyncio.to_thread(loading.result().close)
                raise
            except WasmetalError as error:
                log.warning("%s cannot be loaded: %s", stored.plan.name, error)
                raise unavailable(f"{stored.plan.name} cannot be loaded: {printable(str(error))}") from None
            self.loads += 1
            self._loaded[stored.plan.name] = model
            self._used_now(stored.plan.name)

    async def _make_room(self, plan: Plan) -> None:
        """Unload models that are idle, longest first, until there is room. Raises ApiError."""
        if plan.nbytes > self._room.nbytes:
            needed, most = plan.nbytes / 1e9, self._room.nbytes / 1e9
            raise unavailable(f"{plan.name} needs {needed:.2f} GB of memory; models may have {most:.2f} GB")
        deadline = time.monotonic() + self._room.patience
        while not self._has_room(plan):
            idle = [name for name in sorted(self._used, key=self._used.__getitem__) if self._is_idle(name)]
            if idle:
                await self._unload(idle[0])
            elif time.monotonic() < deadline:
                await asyncio.sleep(_LOOK)
            else:
                raise unavailable(f"{plan.name} has to wait for {', '.join(self._used)}, which are in use", retry=True)

    def _has_room(self, plan: Plan) -> bool:
        used = sum(self._stored[name].plan.nbytes for name in self._used)
        return len(self._used) < self._room.count and used + plan.nbytes <= self._room.nbytes

    def _is_idle(self, name: str) -> bool:
        return not self._leases[name] and not self._in_use(name)

    async def _unload_when_idle(self, name: str) -> None:
        while name in self._used:
            if not self._is_idle(name):
                self._used[name] = time.monotonic()
            left = self._used[name] + self._room.idle_seconds - time.monotonic()
            if left <= 0:
                async with self._turn:
                    if self._is_idle(name) and name in self._used:
                        await self._unload(name)
                return
            await asyncio.sleep(max(left, _LOOK))

    async def _unload(self, name: str) -> None:
        """Nobody finds it from now on."""
        del self._used[name]
        await asyncio.to_thread(self._loaded.pop(name).close)


def unavailable(message: str, *, retry: bool = False) -> ApiError:
    """A model that cannot be had, or not now."""
    headers = {"Retry-After": "5"} if retry else {}
    return ApiError(503, message, param="model", code="model_unavailable", kind="server_error", headers=headers)
