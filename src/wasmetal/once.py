"""What a process has one of, made at its first use."""

from __future__ import annotations

from collections.abc import Callable
from threading import Lock
from typing import Generic, TypeVar, TypeVarTuple

Args = TypeVarTuple("Args")
T = TypeVar("T")


class once(Generic[*Args, T]):
    """Decorates a function that is called once for the same arguments, even by several threads at the same time.

    ``functools.cache`` would let each of the threads make a result and keep only the last, so that the others, still in
    use, could be released.
    """

    def __init__(self, function: Callable[[*Args], T]) -> None:
        self._function = function
        self.clear()

    def __call__(self, *args: *Args) -> T:
        """The result for these arguments. Raises what the function raises, which is then called again next time."""
        if args not in self._results:
            with self._making:
                if args not in self._results:
                    self._results[args] = self._function(*args)
        return self._results[args]

    def clear(self) -> None:
        """Forget all results: for a forked process, in which the lock may be held by a thread that it has not."""
        self._making = Lock()
        self._results: dict[tuple[*Args], T] = {}
