"""A model on a device, ready for sessions."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

from wasmetal.closing import Closing
from wasmetal.counters import Counters
from wasmetal.device.base import CommandList, Device, MemoryKind, Submission
from wasmetal.errors import ModelError, OutOfDeviceMemoryError, setting_up
from wasmetal.forked import Origin
from wasmetal.memory.trim import trim
from wasmetal.models.architectures import read_network
from wasmetal.models.buffers import BufferGroup
from wasmetal.models.files import store
from wasmetal.models.files.download import Progress
from wasmetal.models.files.model_file import ModelFile
from wasmetal.models.files.quantize import quantize as quantize_file
from wasmetal.models.hf_folder import open_model_file
from wasmetal.models.lm import fit
from wasmetal.models.lm.chat_template import chat_template as read_template
from wasmetal.models.lm.heads import Head, TopLogits, Wanted
from wasmetal.models.lm.jobs import Job
from wasmetal.models.lm.kv_cache import PAGE_SIZE, Growth, KVCache, page_count
from wasmetal.models.lm.multi_step import Draws
from wasmetal.models.lm.pacing import Pacing
from wasmetal.models.lm.passes import PASSES, ROWS, SEQUENCES, Pass, Segment
from wasmetal.models.lm.prefix_cache import PrefixCache
from wasmetal.models.lm.quota import Holder
from wasmetal.models.lm.scheduler import Batches, Scheduler
from wasmetal.models.lm.session import Request, Session
from wasmetal.models.lm.states import State
from wasmetal.models.lm.tokenizer import Tokenizer
from wasmetal.models.loaded import Capability
from wasmetal.ops import Tensor

DEFAULT_CONTEXT = 4096
"""Default tokens of context, unless the model was trained for fewer."""
CONTEXTS = 2
"""Default size of the KV cache, which all sessions share, in whole contexts."""


def load_model(
    source: str | Path,
    device: Device,
    *,
    context: int | None = None,
    contexts: int = CONTEXTS,
    prefixes: int = 0,
    kv_type: str | None = None,
    quantize: str | None = None,
    progress: Progress | None = None,
    trusted: bool | None = None,
    chat_template: str | None = None,
    deterministic: bool = False,
    charge: Callable[[int], None] | None = None,
) -> Model:
    """Load a model onto a device: the name of one that was pulled, or a path to a GGUF file or a Hugging Face folder.

    ``context`` is the number of tokens that a session may have, by default DEFAULT_CONTEXT, or what the model was
    trained for if that is less. ``contexts`` is the size of the KV cache that all sessions share, in whole contexts:
    every guest that is granted the model is guaranteed an equal share of it, and so is the caller for its own sessions.
    Its memory is taken as it is used. ``prefixes``: so many of them, fewer than ``contexts``, may keep what sessions of
    guests began with (``Guest(…, prefixes=…)``), for others that begin with the same. ``kv_type`` is the type of its
    elements: "f32", "f16" or "q8_0", by default "f16" on GPUs and "f32" elsewhere. ``quantize``: "q8_0", "q4_0" or
    "q4_k" to quantize matrices of floats while they are loaded (``files/quantize.py`` says which stay); ``progress`` is
    then called with the bytes done and their total.
    ``trusted``: render the model's chat template in this process, without limits on time and memory; by default only
    for known models whose SHA-256 is in the catalogue, which was compared when they were pulled. ``chat_template``: the
    name of a family, such as "chatml", whose template takes the place of the file's (``wasmetal.models.FAMILIES``).
    ``deterministic``: have a session's logits depend on nothing but its tokens, bit for bit, and not on who else uses
    the model meanwhile. A session that is alone is then slower, because it takes the kernels for many rows. Mixtures
    of experts, and the device ``reference``, cannot do that.
    ``charge`` is called with bytes of the device's memory before they are taken, the cache's too, and may raise an
    OutOfDeviceMemoryError; and, negative, once they are released.
    Raises ModelError if the file cannot be used, OutOfDeviceMemoryError if it is too large.
    """
    with setting_up(f"load {source}", ModelError):
        path = store.resolve(source)
        trusted = store.trusted(source) if trusted is None else trusted
        file = open_model_file(path)
        if quantize is not None:
            quantize_file(file, quantize, progress)
        model = Model(
            file,
            store.name_of(source, path),
            device,
            context,
            contexts,
            prefixes=prefixes,
            kv_type=kv_type,
            trusted=trusted,
            chat_template=chat_template,
            deterministic=deterministic,
            charge=charge,
        )
        del file
        trim()
        return model


class Model(Closing):
    """Weights, tokenizer and cache. Use as a context manager, or call :meth:`close`. Safe to use from several threads.

    ``chat_template`` is None if the file has none, and its vocabulary tells of no family.
    """

    capabilities = frozenset({Capability.LANGUAGE})

    def __init__(
        self,
        file: ModelFile,
        name: str,
        device: Device,
        context: int | None = None,
        contexts: int = CONTEXTS,
        *,
        prefixes: int = 0,
        kv_type: str | None = None,
        trusted: bool = False,
        chat_template: str | None = None,
        deterministic: bool = False,
        charge: Callable[[int], None] | None = None,
    ):
        self._network = read_network(file)
        self.device = device
        self.name = name
        self.config = c = self._network.config
        self.tokenizer = Tokenizer(file)
        self.chat_template = read_template(file, self.tokenizer, chat_template, trusted)
        self.vocab_size = c.vocab_size
        self.context_length = min(c.context_length, DEFAULT_CONTEXT) if context is None else context
        if not 1 <= self.context_length <= c.context_length:
            raise file.error(f"a context of {context} tokens; 1 to {c.context_length} are supported")
        if contexts < 1:
            raise file.error(f"a cache of {contexts} contexts; 1 or more are supported")
        if not 0 <= prefixes < contexts:
            raise file.error(f"prefixes in {prefixes} contexts of {contexts}; 0 to {contexts - 1} are supported")
        if deterministic and self._network.mixes_experts:
            raise file.error("a mixture of experts cannot be deterministic: its rows are computed expert by expert")
        tensors = file.tensors.values()
        demand = fit.demand(c, tensors, device.info, self.context_length, contexts, kv_type)
        demand.check(device.info)
        self.digest = file.digest()
        """32 bytes that identify the model's file."""
        self.lock = threading.RLock()
        self.origin = Origin(f"the model {name}")

        self._buffers = BufferGroup(device, charge)
        try:
            self._network.load(self._buffers, self.context_length, ROWS[-1])
            pages = -(-self.context_length // PAGE_SIZE)
            heads = c.head_count_kv, c.head_dim
            self.cache = KVCache(self._buffers, c.block_count, *heads, contexts * pages, demand.dtype)
            self.prefixes = PrefixCache(self.cache, prefixes * pages) if prefixes else None
            parts = device, self._network, self.cache, self._buffers
            passes = [Pass(*parts, pages, deterministic) for _ in range(PASSES)]
        except BaseException as error:
            self._buffers.close()
            if isinstance(error, OutOfDeviceMemoryError):
                raise demand.explain(device.info, error) from error
            raise
        self._pacing = Pacing(ROWS[1] if deterministic else ROWS[-1])
        self._scheduler = Scheduler(passes, self.lock, self._submit, self._pacing)
        self._sessions: weakref.WeakSet[Session] = weakref.WeakSet()
        self._closed = False

    @property
    def weight_bytes(self) -> int:
        """Bytes of weights that the device reads for each decoded token."""
        return self._network.weight_bytes

    @property
    def counters(self) -> Counters:
        """Bytes that loading the model wrapped and loaded."""
        return self._buffers.counters

    @property
    def turn_seconds(self) -> float:
        """For how long a guest should have tokens chosen at a time, by how many use the model just now."""
        return self._pacing.turn()

    @property
    def batches(self) -> Batches:
        """How many submissions there were for sessions, and for how many at a time."""
        return self._scheduler.batches

    def session(self, holder: Holder | None = None) -> Session:
        """A new session, empty. Its pages of the KV cache are held by ``holder``, by default the model's owner."""
        self.origin.check()
        if self._closed:
            raise ModelError(f"the model {self.name} is closed")
        session = Session(self, holder or self.cache.owner)
        self._sessions.add(session)
        return session

    def join(self, charge: Callable[[int], None], prefixes: str | None = None) -> Holder:
        """A holder for the sessions of one guest, for :meth:`session`; it is guaranteed a share of the KV cache.

        ``charge`` is called with the bytes of pages that it takes, and that it has given back (negative): see
        :class:`Holder`. ``prefixes``: with whom its sessions share what they begin with. Raises OutOfDeviceMemoryError
        if not even a page is left for it.
        """
        with self.lock:
            holder = self.cache.quota.join(charge)
            holder.prefixes = prefixes
            return holder

    def rejoin(self, holder: Holder) -> None:
        """Another guest is the same holder, so that its sessions may share pages with the first one's."""
        with self.lock:
            holder.users += 1

    def leave(self, holder: Holder) -> None:
        """The guest has ended: once all who joined as this holder have, its share is there for others."""
        with self.lock:
            self.cache.quota.leave(holder)

    def reclaim(self) -> None:
        """Release the pages of closed sessions now, and not only when the next pages are asked for."""
        with self.lock:
            self.cache.reclaim()

    def logits(self) -> Tensor:
        """A new f32 [vocab_size] tensor in shared memory for :meth:`Session.forward`. It lives as long as the model."""
        return self._buffers.tensor(self.vocab_size, kind=MemoryKind.SHARED)

    def forward(self, requests: Sequence[Request]) -> None:
        """Append tokens to several sessions at once, in as few submissions as possible.

        The cost is added to each session's counters. Raises ModelError if a session is closed, belongs to another model
        or is named twice, and what :meth:`Session.forward` raises. All sessions are then unchanged.
        """
        with closing(self.steps(requests)) as steps:
            for submission in steps:
                if submission is not None:
                    submission.wait()

    def steps(self, requests: Sequence[Request]) -> Generator[Submission | None]:
        """:meth:`forward` in steps, for a caller that has more to do than to wait.

        Yields each submission, which must have ended before the next step is taken; and None between two submissions
        and while all passes are in use, when nothing is held that other callers could be waiting for. If the iterator
        is closed early, the rest is given up, and all sessions are unchanged.
        """
        sessions = [request.session for request in requests]
        if len(requests) == 1 and len(requests[0].tokens) == 1 and sessions[0].model is self:
            session = sessions[0]
            wanted = session.heads_into(requests[0].logits)
            session.check(requests[0].tokens, len(wanted))
            yield from self._decode(session, requests[0].tokens, [(wanted[0], 0)] if wanted else ())
            return
        if len(set(sessions)) < len(sessions) or any(session.model is not self for session in sessions):
            raise ModelError("a batch takes each session once, and only sessions of its own model")
        heads = [request.session.heads_into(request.logits) for request in requests]
        for request, wanted in zip(requests, heads, strict=True):
            request.session.check(request.tokens, len(wanted))
        if (total := sum(map(len, heads))) > SEQUENCES and max(map(len, heads)) > 1:
            raise ModelError(f"logits after {total} tokens; a call gives {SEQUENCES}, or one for each session")
        with self._reserved(requests) as growths:
            counts = [len(request.tokens) for request in requests]
            user = sessions[0].holder if sessions else None
            for batch in _batches(counts, lambda: self._pacing.rows(user)):
                segments, last, begun = [], [], []
                row = 0
                for index, begin, end in batch:
                    request, growth = requests[index], growths[index]
                    tokens = request.tokens[begin:end]
                    segments.append(Segment(tokens, request.session.length + begin, growth.table))
                    row += end - begin
                    if begin == 0:
                        begun.append(growth)
                    first = len(request.tokens) - len(heads[index])  # of the tokens with logits
                    for token in range(max(begin, first), end):
                        last.append((heads[index][token - first], row - (end - token)))
                yield None
                job = Job(segments, last, begun, [growths[index] for index, _, _ in batch])
                submission = yield from self._scheduler.run(job)
                self._pacing.seen(user)
                seconds, dispatches = submission.seconds, submission.dispatches
                self._pacing.took(row, seconds)
                for index, begin, end in batch:
                    requests[index].session.counters.count_submission(seconds * (end - begin) / row, dispatches)
        for request in requests:
            request.session.length += len(request.tokens)

    def choose(self, session: Session, token: int, draws: Draws) -> Generator[Submission | None]:
        """Append a token, have the device choose the next one and append that, and so on, in steps as :meth:`steps`.

        ``draws`` says how, and for how many tokens, for which the context must have room; the last one is not appended.
        They are in ``draws.tokens`` then: fewer if ``draws`` has ended before, or the cache has no room for so many.
        Raises what :meth:`forward` does; the session is then unchanged.
        """
        session.check((token,), 0)
        yield from self._decode(session, (token,), (), draws)

    def forget(self, session: Session) -> None:
        """No batch waits for a session that is being closed. Takes no lock."""
        self._scheduler.forget(id(session))

    def _decode(
        self, session: Session, tokens: Sequence[int], heads: Wanted, draws: Draws | None = None
    ) -> Generator[Submission | None]:
        """Append one token of one session or, with ``draws``, what follows it too: what happens most often."""
        growth, kept = self._growth(session, draws)
        try:
            self._pacing.rows(session.holder)
            yield None
            segments, growths = (Segment(tokens, session.length, growth.table),), (growth,)
            part = yield from self._scheduler.run(Job(segments, heads, growths, growths, id(session), draws))
        except BaseException:
            if not kept:
                with self.lock:
                    self.cache.discard(growth)
            raise
        self._pacing.seen(session.holder)
        session.length += len(draws.tokens) if draws else 1
        if not kept:
            with self.lock:
                self.cache.adopt(session.pages, growth)
                self.cache.release(session.pages, keep=page_count(session.length))
        session.counters.count_submission(part.seconds, part.dispatches)

    def _growth(self, session: Session, draws: Draws | None) -> tuple[Growth, bool]:
        """The pages that a session is to have with one more token, or more; whether they are those that it has.

        If there is no room for all of ``draws``, they become fewer.
        """
        count = len(draws.randoms) if draws else 1
        if self.cache.has_room(session.pages, session.length, count):
            return Growth(list(session.pages), []), True
        try:
            with self.lock:
                return self.cache.grow(session.pages, session.length, count, session.holder), False
        except OutOfDeviceMemoryError:
            if draws is None or count == 1:
                raise
        draws.randoms = draws.randoms[: count // 2]
        return self._growth(session, draws)

    def head(self, logits: Tensor) -> Head:
        """A list that writes logits to a tensor. For sessions."""
        with self.lock:
            return Head(self.device, self._network, logits)

    def _submit(self, taken: Pass, jobs: Sequence[Job]) -> Submission:
        """Start a forward pass for all jobs. Called with the lock."""
        heads: list[tuple[Head | TopLogits | State, int]] = []
        segments: list[Segment] = []
        copies: list[CommandList] = []
        rows = 0
        for job in jobs:
            heads += [(head, rows + row) for head, row in job.heads]
            segments += job.segments
            copies += [commands for growth in job.begun if growth.copied and (commands := self.cache.copying(growth))]
            rows += job.rows
        rows = taken.write(segments)
        draws = [job.draws for job in jobs if job.draws]
        if draws:
            lists = taken.choosing(rows, draws, [segment.position for segment in segments])
            expected = self._pacing.expected(max([each.steps for each in draws]), len(draws))
        else:
            lists = [taken.body(rows), *taken.heads(heads)]
            expected = 0.0
        submission = self.device.submit([*copies, *lists], patient=len(jobs) > 1, expected=expected)
        taken.submission = submission
        for head, _ in heads:
            if isinstance(head, Head):
                head.submission = submission
        for job in jobs:
            for growth in job.written:
                growth.submission = submission
        return submission

    @contextmanager
    def _reserved(self, requests: Sequence[Request]) -> Iterator[list[Growth]]:
        """Reserve pages of the cache for every request. The sessions get them if the ``with`` body succeeds."""
        growths: list[Growth] = []
        try:
            with self.lock:
                for request in requests:
                    session = request.session
                    growths.append(self.cache.grow(session.pages, session.length, len(request.tokens), session.holder))
            yield growths
        except BaseException:
            with self.lock:
                for growth in growths:
                    self.cache.discard(growth)
            raise
        with self.lock:
            for request, growth in zip(requests, growths, strict=True):
                self.cache.adopt(request.session.pages, growth)

    def close(self) -> None:
        """Close the sessions and release the device's memory. Idempotent; nothing happens in a process forked since."""
        if not self.origin.here:
            return
        self._closed = True
        for session in list(self._sessions):
            session.close()
        self._scheduler.close()
        self._buffers.close()


def _batches(counts: Sequence[int], rows: Callable[[], int]) -> Iterator[list[tuple[int, int, int]]]:
    """Cut requests with these token counts into batches of (index of the request, first token, end).

    ``rows`` says how many rows a batch may have.
    """
    batch: list[tuple[int, int, int]] = []
    room = rows()
    for index, count in enumerate(counts):
        begin = 0
        while begin < count:
            end = min(count, begin + room)
            batch.append((index, begin, end))
            room -= end - begin
            begin = end
            if room == 0 or len(batch) == SEQUENCES:
                yield batch
                batch, room = [], rows()
    if batch:
        yield batch
