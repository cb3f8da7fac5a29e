"""What all requests share: the models, and a bounded pool of threads for the guests."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from wasmetal import packaged
from wasmetal.actor.program import ActorProgram
from wasmetal.errors import SnapshotError, WasmetalError
from wasmetal.host.program import Program
from wasmetal.models import Embedder, Model
from wasmetal.serve.admission import Admission
from wasmetal.serve.conversations import Conversations
from wasmetal.serve.errors import ApiError, bad_request
from wasmetal.serve.guest_model import GuestModel
from wasmetal.serve.limits import ServerLimits
from wasmetal.serve.metrics import Metrics
from wasmetal.serve.roster import Roster
from wasmetal.serve.shelf import Room, Shelf, Stored

T = TypeVar("T")

log = logging.getLogger("wasmetal.serve")


class Engine:
    """Models by the names that clients have for them."""

    def __init__(
        self,
        models: Sequence[Model | Embedder],
        limits: ServerLimits | None = None,
        guest: str | Path | None = None,
        *,
        stored: Sequence[Stored] = (),
        room: Room | None = None,
        guests: Sequence[GuestModel] = (),
        actors: Path | None = None,
    ) -> None:
        """The models stay the caller's. ``guest``: another program than wasmetal's own that makes completions.
        ``stored``: models that are loaded when they are asked for, as far as there is ``room``. ``guests``: those that
        are models themselves. ``actors``: the folder for conversations; None: none are kept.

        Raises WasmetalError if two models have the same name, GuestError if the program cannot be loaded, and
        SnapshotError if the folder cannot be used.
        """
        self.limits = limits = limits or ServerLimits()
        self.models: dict[str, Model | Embedder] = {model.name: model for model in models}
        """Those that are loaded."""
        self.guests = {each.name: each for each in guests}
        """Guests that clients see as models."""
        planned = [each.plan for each in stored]
        self.names = [each.name for each in (*models, *planned, *guests)]
        """All of them."""
        devices = [*(model.device.info for model in models), *(each.device for each in planned)]
        self.device = devices[0] if devices else None
        """The device that they are on, if there are any."""
        if len(set(self.names)) < len(self.names):
            raise WasmetalError(f"two models have the same name: {', '.join(sorted(self.names))}")
        self.started = int(time.time())
        self.program = Program(guest or packaged.guest("complete"), trusted=guest is None)
        self.admission = Admission(limits.running, limits.waiting)
        self.metrics = Metrics()
        self.roster = Roster()
        self.pool = ThreadPoolExecutor(limits.running, thread_name_prefix="completion")
        self.log_prompts = False
        """Whether the text of prompts goes into the records of requests."""
        self.tasks: set[asyncio.Task[None]] = set()
        """Completions that run or wait."""
        self.unfinished: dict[object, Callable[[ApiError], object]] = {}
        """What gives up each request whose completions they are."""
        self.shelf = Shelf(self.models, stored, room or Room(), self.roster.has)
        language = {model.name: model for model in models if isinstance(model, Model)}
        self.conversations = Conversations(actors, self._with_conversations(language), limits) if actors else None
        self.metrics.watch(lambda: self.admission.running, lambda: self.admission.waiting, self.models)

    def model(self, name: str) -> Model:
        """A language model. Raises ApiError."""
        if not isinstance(model := self._find(name), Model):
            raise bad_request(f"{name} makes embeddings, not text", "model")
        return model

    def embedder(self, name: str) -> Embedder:
        """An embedding model. Raises ApiError."""
        if not isinstance(model := self._find(name), Embedder):
            raise bad_request(f"{name} makes text, not embeddings", "model")
        return model

    async def on_a_thread(self, work: Callable[[], T], owner: str = "") -> T:
        """Do what takes some time and is no completion, such as embedding, in its turn. Raises ApiError."""
        self.admission.reserve()
        try:
            async with self.admission.place(owner):
                return await asyncio.get_running_loop().run_in_executor(self.pool, work)
        finally:
            self.admission.give_back()

    def check_health(self) -> None:
        """Raise DeviceError if a device does not answer."""
        for device in {model.device for model in self.models.values()}:
            device.allocate(1).close()

    def give_up(self, error: ApiError) -> None:
        """Stop all completions, and give this error to those who wait for them."""
        for give_up in list(self.unfinished.values()):
            give_up(error)

    async def close(self) -> None:
        """Wait until all completions have ended, which they do soon once their requests have been given up."""
        if self.tasks:
            await asyncio.wait(self.tasks)
        await self.shelf.close()
        self.pool.shutdown()
        if self.conversations:
            try:
                await asyncio.to_thread(self.conversations.close)
            except SnapshotError as error:
                log.warning("%s", error)

    def _with_conversations(self, models: Mapping[str, Model]) -> dict[str, GuestModel]:
        """Whatever a conversation may be with: a model by itself is spoken for by a guest that comes with wasmetal."""
        program = ActorProgram(packaged.guest("converse"), trusted=True)
        return {name: GuestModel(name, program, {"default": model}) for name, model in models.items()} | self.guests

    def _find(self, name: str) -> Model | Embedder:
        if name in self.guests:
            raise bad_request(f"{name} is a guest, which answers chats and responses alone", "model")
        if name not in self.models:
            there = ", ".join(self.names)
            raise ApiError(404, f"there is no model {name!r}; there is {there}", param="model", code="model_not_found")
        return self.models[name]
