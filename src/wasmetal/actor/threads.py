"""Work on other threads, which is done on the caller's where no more threads can be started."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from wasmetal.host.threads import HostThread

A = TypeVar("A")
T = TypeVar("T")


class Ahead(Generic[T]):
    """A call on another thread, which begins soon; or on the thread of who waits for it, if it has not begun then."""

    def __init__(self, function: Callable[[], T]) -> None:
        self._function: Callable[[], T] | None = function
        self._results: list[T] = []
        self._error: BaseException | None = None
        self._thread = HostThread(self._call)
        self._thread.launch()

    def wait(self) -> None:
        """Return once the call has ended; if it has not begun, it never will."""
        if not self._thread.withdraw():
            while not self._thread.wait(1.0):
                pass

    def result(self) -> T:
        """What the function returns, once it has. Raises what it does. Asked again, it takes no lock."""
        if not self._results:
            self.wait()
            if not self._results and not self._error:
                self._call()
            if self._error:
                raise self._error
        return self._results[0]

    def _call(self) -> None:
        function, self._function = self._function, None  # nothing that it refers to is to be kept
        assert function
        try:
            self._results.append(function())
        except BaseException as error:
            self._error = error


def each(function: Callable[[A], T], items: Sequence[A], threads: int) -> list[T]:
    """What a function returns for each item: called on so many threads at a time, of which the caller's is one.

    Raises what a call raises; then no more are begun.
    """
    results: dict[int, T] = {}
    numbers = iter(range(len(items)))
    taking = threading.Lock()
    failed = False

    def work() -> None:
        nonlocal failed
        while not failed:
            with taking:
                number = next(numbers, None)
            if number is None:
                return
            try:
                results[number] = function(items[number])
            except BaseException:
                failed = True
                raise

    helpers = [Ahead(work) for _ in range(min(threads, len(items)) - 1)]
    try:
        work()
    finally:
        for helper in helpers:
            helper.wait()
    for helper in helpers:
        helper.result()
    return [results[number] for number in range(len(items))]
