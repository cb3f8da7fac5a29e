"""Trying a guest's own model in a worker process: here, nothing would limit what LiteRT allocates for it."""

from __future__ import annotations

from wasmetal.errors import ModelError
from wasmetal.nn.errors import NnErrno, NnRefusal
from wasmetal.worker import WorkerPool

_SECONDS = 20.0
_MEMORY = 256 << 20
"""Bytes that a model may take there, beyond those of its tensors that its guest may have: LiteRT's own, and weights in
another order."""
_pool = WorkerPool("wasmetal.nn.tflite.trial_worker", ModelError, advice="grant the model to the guest if you trust it")


def tensor_bytes(model: bytes, room: int) -> int:
    """Bytes of all tensors of a model.

    Raises NnRefusal if it is damaged, has results whose size depends on what is computed, or takes more than ``room``.
    """
    memory = room + _MEMORY
    try:
        answer, _ = _pool.request("a model of the guest's own", {}, model, seconds=_SECONDS, memory=memory, most=0)
    except ModelError as error:
        raise NnRefusal(NnErrno.TOO_LARGE, str(error)) from None
    nbytes, errno, reason = (answer.get(name) for name in ("nbytes", "errno", "reason"))
    if errno is not None:
        refused = NnErrno.UNSUPPORTED_OPERATION if errno == NnErrno.UNSUPPORTED_OPERATION else NnErrno.INVALID_ENCODING
        raise NnRefusal(refused, str(reason)[:300])
    if not isinstance(nbytes, int) or nbytes < 0:
        raise NnRefusal(NnErrno.RUNTIME_ERROR, "the process that tried the model sent what is no answer")
    return nbytes
