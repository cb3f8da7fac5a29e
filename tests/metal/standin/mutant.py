"""The Metal device with a mistake in it, to see that the stand-in notices."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import CodeType, ModuleType

from metal.standin.install import PACKAGE


@contextmanager
def mutant(module: str, old: str, new: str) -> Iterator[None]:
    """Whoever imports the device's ``module`` within it gets one with ``new`` in place of the first ``old``."""

    class Loader(SourceFileLoader):
        def get_code(self, fullname: str) -> CodeType:
            source = self.get_data(self.path).decode()
            if old not in source:  # no assertion: those are what some mutations are to be noticed by
                raise LookupError(f"{module} has no {old!r}: the mutation is out of date")
            return compile(source.replace(old, new, 1), self.path, "exec")

    class Finder:
        @staticmethod
        def find_spec(name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
            if name != f"{PACKAGE}.{module}":
                return None
            spec = PathFinder.find_spec(name, path)
            spec.loader = Loader(name, spec.origin)
            return spec

    finder = Finder()
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
