"""The interface ``wasmetal_llm``. ``wasmetal.h`` says what each function means."""

# ruff: noqa: D102

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from wasmetal.errors import ModelError
from wasmetal.host import abi
from wasmetal.host.account import Account
from wasmetal.host.errno import Errno, Refusal
from wasmetal.host.functions.output import Output
from wasmetal.host.handles import Handles
from wasmetal.host.metering import MeteredDevice
from wasmetal.host.tokens import TokenCounts
from wasmetal.host.view import GuestMemory
from wasmetal.memory import page_size
from wasmetal.ops import ALIGNMENT, DType, Tensor

if TYPE_CHECKING:
    from wasmetal.models import Model, Session
    from wasmetal.models.lm.quota import Holder
    from wasmetal.models.lm.sampling import Sampler
    from wasmetal.models.loaded import LoadedModel

MAX_TEXT = 1 << 18
"""Bytes of text, or tokens, that the host takes in one call. The tokenizer may need hundreds of bytes of host memory,
and microseconds, for each; a call is not interrupted."""
_MAX_DETOKENIZED = 16 * MAX_TEXT
_MAX_HEADER = 4096
"""An upper bound on the bytes of a saved session other than its keys and values."""


@dataclass(frozen=True, slots=True)
class OpenModel:
    """A model that a guest has opened."""

    name: str
    """The guest's name for it."""
    model: Model
    holder: Holder
    """The guest, for the model's KV cache."""


@dataclass(eq=False, slots=True)
class OpenSession:
    """A session that a guest holds."""

    get: Callable[[], Session]
    """Gives the session. It may have to wait until it has its tokens, and raises what keeps it from getting them."""
    opened: OpenModel
    """The model that it was opened from."""
    logits_at: int = 0
    """Address of ``logits`` in the guest's memory."""
    logits: Tensor | None = None
    """The array in the guest's memory that last received logits, shared with the device."""
    decoded: int | None = -1
    """The length at which it is expected to go on with an answer, by one token; None: at any."""

    @property
    def session(self) -> Session:
        """What ``get`` gives."""
        return self.get()

    @property
    def model(self) -> Model:
        """The session's model."""
        return self.opened.model

    def close(self) -> None:
        """Release the session and the guest's pages."""
        with suppress(Exception):  # it never got its tokens
            self.session.close()
        self.drop_logits()

    def drop_logits(self) -> None:
        """Release the guest's pages."""
        if self.logits:
            self.logits.buffer.close()
            self.logits = None


def ready(session: Session) -> Callable[[], Session]:
    """What gives a session that need not be waited for."""
    return lambda: session


class Llm:
    """One guest's models and sessions. Each method that ``wasmetal.h`` names is a host function.

    The guest's device memory is charged for every page of a model's KV cache that it holds, once for all sessions that
    share the page.
    """

    def __init__(
        self,
        account: Account,
        handles: Handles,
        device: MeteredDevice,
        models: Mapping[str, LoadedModel],
        family: Llm | None = None,
        prefixes: str | None = None,
    ) -> None:
        """``prefixes``: as for :class:`Guest`.
        ``family``: the interface of a guest whose sessions this one's may share pages with.

        The two, and what is in either's family, then have one share of each KV cache together, and the device memory
        of its pages is charged to the first of them.
        """
        self._account = account
        self._handles = handles
        self._device = device
        self._models = models
        self._page_size = max(page_size(), device.info.page_alignment)
        self._counts = TokenCounts()
        self._language_models: dict[str, OpenModel] = {}
        try:
            for name, model in models.items():
                self._join(name, model, family, prefixes)
        except BaseException:
            self.close()
            raise

    def _join(self, name: str, model: LoadedModel, family: Llm | None, prefixes: str | None) -> None:
        """Make the guest a holder of the model's KV cache, if the model has one."""
        from wasmetal.models.lm.heads import TopLogits  # noqa: PLC0415 (slow to import; here it is loaded)
        from wasmetal.models.loaded import Capability  # noqa: PLC0415

        self._top_logits = TopLogits
        if Capability.LANGUAGE in model.capabilities:
            language_model = cast("Model", model)
            if family:
                holder = family.opened(name).holder
                language_model.rejoin(holder)
            else:
                holder = language_model.join(self._account.charge, prefixes)
            self._language_models[name] = OpenModel(name, language_model, holder)

    def model_open(self, memory: GuestMemory, ptr: int, nbytes: int, out: int) -> None:
        handle = memory.array(out, 1, np.uint32)
        name = _text(memory, ptr, nbytes)
        if name not in self._models:
            raise Refusal(Errno.NOENT, f"no model {name!r} was granted to the guest")
        if name not in self._language_models:
            raise Refusal(Errno.NOTSUP, f"the model {name!r} is not a language model")
        handle[0] = self._handles.add(self._language_models[name])

    def model_describe(self, memory: GuestMemory, handle: int, out: int) -> None:
        record = memory.array(out, 1, abi.MODEL_INFO)
        model = self._model(handle)
        record["vocab_size"] = model.vocab_size
        record["context_length"] = model.context_length
        record["end_tokens"] = len(model.tokenizer.end_of_generation)
        record["chat_template"] = model.chat_template is not None

    def model_end_tokens(self, memory: GuestMemory, handle: int, out: int, cap: int, needed: int) -> None:
        output = Output(memory, out, cap, needed, np.uint32)
        output.give(np.array(sorted(self._model(handle).tokenizer.end_of_generation), np.uint32))

    def model_vocabulary(self, memory: GuestMemory, handle: int, out: int, cap: int, needed: int) -> None:
        memory.array(out, 0, np.uint32)
        output = Output(memory, out, cap, needed, np.uint8)
        pieces = self._model(handle).tokenizer.pieces()
        offsets = np.zeros(len(pieces) + 1, np.uint32)
        offsets[1:] = pieces.ends
        output.give_bytes(offsets.tobytes() + pieces.data)

    def model_tokenize(
        self, memory: GuestMemory, handle: int, ptr: int, nbytes: int, flags: int, out: int, cap: int, needed: int
    ) -> None:
        output = Output(memory, out, cap, needed, np.uint32)
        tokenizer = self._model(handle).tokenizer
        _check_flags(flags, abi.TokenizeFlags.PARSE_SPECIAL | abi.TokenizeFlags.ADD_BOS)
        ids = tokenizer.encode(
            _text(memory, ptr, nbytes),
            parse_special=bool(flags & abi.TokenizeFlags.PARSE_SPECIAL),
            add_bos=None if flags & abi.TokenizeFlags.ADD_BOS else False,
        )
        output.give(np.array(ids, np.uint32))

    def model_detokenize(
        self, memory: GuestMemory, handle: int, ptr: int, count: int, out: int, cap: int, needed: int
    ) -> None:
        output = Output(memory, out, cap, needed, np.uint8)
        model = self._model(handle)
        ids = _tokens(memory, ptr, count, model)
        pieces = model.tokenizer.pieces()
        if (total := sum(len(pieces[i]) for i in ids)) > _MAX_DETOKENIZED:  # before it is made
            raise Refusal(Errno.TOOBIG, f"{total} bytes of text; at most {_MAX_DETOKENIZED} are given in one call")
        output.give_bytes(model.tokenizer.decode(ids).encode())

    def model_apply_template(
        self, memory: GuestMemory, handle: int, ptr: int, nbytes: int, flags: int, out: int, cap: int, needed: int
    ) -> None:
        output = Output(memory, out, cap, needed, np.uint8)
        template = self._model(handle).chat_template
        _check_flags(flags, abi.TemplateFlags.GENERATION_PROMPT)
        if template is None:
            raise Refusal(Errno.NOTSUP, "the model has no chat template")
        messages = _messages(_text(memory, ptr, nbytes))
        prompt = template.render(messages, add_generation_prompt=bool(flags & abi.TemplateFlags.GENERATION_PROMPT))
        try:
            output.give_bytes(prompt.encode())
        except UnicodeEncodeError:
            raise Refusal(Errno.ILSEQ, "the messages hold half of a surrogate pair") from None

    def session_open(self, memory: GuestMemory, handle: int, out: int) -> None:
        new_handle = memory.array(out, 1, np.uint32)
        opened = self._handles.get(handle, OpenModel)
        self._handles.check_room()
        session = opened.model.session(opened.holder)
        new_handle[0] = self._handles.add(OpenSession(ready(session), opened))

    def session_close(self, memory: GuestMemory, handle: int) -> None:
        held = self._session(handle)
        self._handles.remove(handle)
        held.close()
        held.model.reclaim()

    def session_length(self, memory: GuestMemory, handle: int, out: int) -> None:
        memory.array(out, 1, np.uint32)[0] = self._session(handle).session.length

    def session_forward(self, memory: GuestMemory, handle: int, ptr: int, count: int, logits_ptr: int) -> None:
        held = self._session(handle)
        tokens = _next_tokens(memory, ptr, count, held)
        logits = self._logits(memory, held, logits_ptr) if logits_ptr else None
        before = held.session.length
        self._device.drive(held.session.steps(tokens, logits), _joins(held, tokens))
        self._count(held, before, count, 1 if logits_ptr else 0)

    def session_forward_top(
        self, memory: GuestMemory, handle: int, ptr: int, count: int, rows: int, k: int, out: int, totals: int
    ) -> None:
        held = self._session(handle)
        if not 1 <= rows <= min(count, abi.MAX_TOP_ROWS):
            raise Refusal(Errno.INVAL, f"logits after {rows} of {count} tokens; at most {abi.MAX_TOP_ROWS} are given")
        if not 1 <= k <= abi.MAX_TOP:
            raise Refusal(Errno.INVAL, f"the {k} largest logits; 1 to {abi.MAX_TOP} can be found")
        candidates = memory.raw(out, rows * k, abi.CANDIDATE).view(np.int32).reshape(rows, k, 2)
        sums = memory.raw(totals, rows, abi.LOGIT_TOTALS).view(np.float32).reshape(rows, 2)
        tokens = _next_tokens(memory, ptr, count, held)
        tops = [self._top_logits(k) for _ in range(rows)]
        before = held.session.length
        self._device.drive(held.session.steps(tokens, tops), _joins(held, tokens))
        self._count(held, before, count, 1, is_draft=rows > 1)
        for row, top in enumerate(tops):
            candidates[row], sums[row] = top.found, top.sums

    def session_generate(
        self,
        memory: GuestMemory,
        handle: int,
        ptr: int,
        count: int,
        sampling: int,
        stops: int,
        stop_count: int,
        out: int,
        cap: int,
        needed: int,
    ) -> None:
        from wasmetal.models.lm.sampling import Sampler, generate  # noqa: PLC0415 (slow to import; here it is loaded)

        held = self._session(handle)
        room, length = memory.array(out, cap, np.uint32), memory.size(needed)
        record = memory.array(sampling, 1, abi.SAMPLING)
        if cap == 0:
            raise Refusal(Errno.INVAL, "no room for a token")
        sampler = _sampler(Sampler, record)
        ends = frozenset(_tokens(memory, stops, stop_count, held.model))
        tokens = _next_tokens(memory, ptr, count, held)
        chosen: list[int] = []
        before = held.session.length
        try:
            steps = generate(held.session, tokens, sampler, cap, ends, chosen, held.model.turn_seconds)
            self._device.drive(steps, _joins(held, tokens))
        finally:
            room[: len(chosen)], length[0], record["seed"] = chosen, len(chosen), sampler.seed
        self._count(held, before, count, len(chosen))

    def session_fork(self, memory: GuestMemory, handle: int, out: int) -> None:
        new_handle = memory.array(out, 1, np.uint32)
        held = self._session(handle)
        self._handles.check_room()
        fork = ready(held.session.fork())
        new_handle[0] = self._handles.add(OpenSession(fork, held.opened, decoded=held.decoded))

    def session_truncate(self, memory: GuestMemory, handle: int, count: int) -> None:
        held = self._session(handle)
        length = held.session.length
        if count > length:
            raise Refusal(Errno.INVAL, f"cannot truncate {length} tokens to {count}")
        held.session.truncate(count)

    def session_save(self, memory: GuestMemory, handle: int, out: int, cap: int, needed: int) -> None:
        output = Output(memory, out, cap, needed, np.uint8)
        session = self._session(handle).session
        output.claim(session.state_bytes)  # before the copy is made
        with self._device.copying(session.counters):
            state = session.save()
        output.give_bytes(state)

    def session_restore(self, memory: GuestMemory, handle: int, ptr: int, nbytes: int) -> None:
        state = memory.array(ptr, nbytes)
        held = self._session(handle)
        if nbytes > _MAX_HEADER + held.model.context_length * held.model.cache.bytes_as(DType.F32):
            raise Refusal(Errno.INVAL, f"{nbytes} bytes are more than any state of this model")
        with self._device.copying(held.session.counters):
            held.session.restore(state.tobytes())

    def close(self) -> None:
        """Release the guest's sessions."""
        for held in self._handles:
            if isinstance(held, OpenSession):
                held.close()
        while self._language_models:
            _, opened = self._language_models.popitem()
            opened.model.leave(opened.holder)

    @property
    def reused(self) -> int:
        """Tokens that the guest's sessions did not have to run, since other guests had."""
        return sum(opened.holder.reused for opened in self._language_models.values())

    @property
    def counts(self) -> TokenCounts:
        """What the guest's models have read and chosen."""
        return self._counts + TokenCounts(cached=self.reused)

    def opened(self, name: str) -> OpenModel:
        """A granted model. Raises KeyError."""
        return self._language_models[name]

    def _model(self, handle: int) -> Model:
        return self._handles.get(handle, OpenModel).model

    def _session(self, handle: int) -> OpenSession:
        return self._handles.get(handle, OpenSession)

    def _count(self, held: OpenSession, before: int, tokens: int, chosen: int, *, is_draft: bool = False) -> None:
        """Count a pass. One that goes on with an answer has the token that was chosen last, and drafts after it."""
        goes_on = is_draft or (tokens == 1 and held.decoded in (None, before))
        self._counts.count(before, tokens, chosen, is_prompt=not goes_on)
        held.decoded = None if is_draft else held.session.length

    def _logits(self, memory: GuestMemory, held: OpenSession, ptr: int) -> Tensor:
        """The guest's array of logits as a tensor. Guests use the same array in every call, so it is wrapped once."""
        if held.logits is None or held.logits_at != ptr:
            aperture = memory.covering(ptr, 4 * held.model.vocab_size, ALIGNMENT, self._page_size)
            buffer = self._device.wrap(aperture)
            held.drop_logits()
            held.logits_at = ptr
            held.logits = Tensor(buffer, ptr - aperture.offset, DType.F32, (held.model.vocab_size,))
        return held.logits


def _joins(held: OpenSession, tokens: Sequence[int]) -> object:
    """The model, if the session decodes: then it is in the same batches as others, at hardly any cost to them."""
    return held.session.model if len(tokens) == 1 else None


def _text(memory: GuestMemory, ptr: int, nbytes: int) -> str:
    data = memory.array(ptr, nbytes)
    if nbytes > MAX_TEXT:
        raise Refusal(Errno.TOOBIG, f"{nbytes} bytes of text; at most {MAX_TEXT} are taken in one call")
    try:
        return data.tobytes().decode()
    except UnicodeDecodeError as error:
        raise Refusal(Errno.ILSEQ, f"the text is not UTF-8: {error}") from None


def _tokens(memory: GuestMemory, ptr: int, count: int, model: Model) -> list[int]:
    tokens = memory.array(ptr, count, np.uint32)
    if count > MAX_TEXT:
        raise Refusal(Errno.TOOBIG, f"{count} tokens; at most {MAX_TEXT} are taken in one call")
    ids: list[int] = tokens.tolist()
    if ids and (largest := max(ids)) >= model.vocab_size:
        raise Refusal(Errno.INVAL, f"token {largest} is not below the vocabulary's {model.vocab_size}")
    return ids


def _next_tokens(memory: GuestMemory, ptr: int, count: int, held: OpenSession) -> list[int]:
    """The tokens that a guest wants to append to a session."""
    if count == 0:
        raise Refusal(Errno.INVAL, "no tokens")
    length, most = held.session.length, held.model.context_length
    if length + count > most:
        raise Refusal(Errno.OVERFLOW, f"{length} + {count} tokens are more than the context of {most}")
    return _tokens(memory, ptr, count, held.model)


def _sampler(make: type[Sampler], record: NDArray[Any]) -> Sampler:
    """What a guest's record says."""
    temperature, top_k, top_p, min_p, seed = (
        record[name][0].item() for name in ("temperature", "top_k", "top_p", "min_p", "seed")
    )
    try:
        return make(temperature, top_k, top_p, min_p, seed)
    except ModelError as error:
        raise Refusal(Errno.INVAL, str(error)) from None


def _messages(text: str) -> list[dict[str, str]]:
    try:
        messages = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Refusal(Errno.INVAL, f"messages are not JSON: {error}") from None
    if not isinstance(messages, list) or not all(map(_is_message, messages)):
        raise Refusal(Errno.INVAL, 'messages are not an array of objects with the strings "role" and "content"')
    return messages


def _is_message(value: object) -> bool:
    if not isinstance(value, dict) or value.keys() != {"role", "content"}:
        return False
    return all(isinstance(text, str) for text in value.values())


def _check_flags(flags: int, known: int) -> None:
    if flags & ~known:
        raise Refusal(Errno.INVAL, f"flags {flags:#x} are not known")
