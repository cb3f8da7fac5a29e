"""Bases of contexts that have only a part of what ``nn/backend.py`` describes: the rest is refused."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from wasmetal.nn.errors import NnErrno, NnRefusal
from wasmetal.nn.tensor import NnTensor


class AtOnce:
    """Of a context whose outputs come at once, not piece by piece."""

    NO_PIECES: ClassVar[str]
    """The reason, for the host's log."""

    def compute_single(self) -> None:
        """Refused."""
        raise NnRefusal(NnErrno.UNSUPPORTED_OPERATION, self.NO_PIECES)

    def output_single(self, index: int) -> NDArray[np.uint8]:
        """Refused."""
        raise NnRefusal(NnErrno.UNSUPPORTED_OPERATION, self.NO_PIECES)

    fini_single = compute_single


class Unbound:
    """Of a context that reads and writes copies of tensors alone."""

    NOT_BOUND: ClassVar[str]
    """The reason, for the host's log."""

    def bind_input(self, index: int, tensor: NnTensor) -> None:
        """Refused."""
        raise NnRefusal(NnErrno.UNSUPPORTED_OPERATION, self.NOT_BOUND)

    bind_output = bind_input
