"""How a call of wasi-nn ends."""

from __future__ import annotations

from wasmetal.documented import Documented


class NnErrno(Documented):
    """What a function of wasi-nn returns: 0 to 8 are the standard's, the others those of WasmEdge's GGML backend."""

    SUCCESS = 0, "Done."
    INVALID_ARGUMENT = 1, "A pointer, handle, index, shape or option that is wrong, or a call out of order."
    INVALID_ENCODING = 2, "Models of this encoding are not supported, the model is damaged, or the JSON does not parse."
    MISSING_MEMORY = 3, 'The guest exports no memory named "memory".'
    BUSY = 4, "The guest's limit on handles is reached: free some first."
    RUNTIME_ERROR = 5, "The model could not be run; the host's log says why."
    UNSUPPORTED_OPERATION = 6, "The host does not do this, or was not asked to allow it."
    TOO_LARGE = 7, "The output does not fit, or a limit on memory is reached."
    NOT_FOUND = 8, "No model of that name was granted to the guest."
    END_OF_SEQUENCE = 100, "The text has ended."
    CONTEXT_FULL = 101, "The context is full. What was generated can be had."
    PROMPT_TOO_LONG = 102, "The prompt has more tokens than the context has room for."
    MODEL_NOT_FOUND = 103, "The model was granted, but its file is not there."


class NnRefusal(Exception):
    """A call ends with this errno; the message, one line, is for the host's log."""

    def __init__(self, errno: NnErrno, message: str) -> None:
        super().__init__(message)
        self.errno = errno


def invalid(message: str) -> NnRefusal:
    """The refusal of a wrong argument."""
    return NnRefusal(NnErrno.INVALID_ARGUMENT, message)
