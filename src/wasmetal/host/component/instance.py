"""An instance of a component, as a guest has it: Wasmtime's WASI, ``wasi:nn``, and its run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import wasmtime

from wasmetal.errors import GuestError
from wasmetal.host.component.component import Component
from wasmetal.host.component.linking import define
from wasmetal.host.component.nn import ComponentNn
from wasmetal.host.component.pipes import Pipes
from wasmetal.host.grants import Dir
from wasmetal.host.link import GuestContext
from wasmetal.host.wasi import Input
from wasmetal.memory.anonymous_file import anonymous_file

INSTANCES = 64
"""Modules that a component may have instances of, and tables. What adapts a command of WASI preview 1 has four."""


def configure(config: wasmtime.WasiConfig, stdin: Input, dirs: Mapping[str, str | Path | Dir]) -> None:
    """Give a component its input and directories.

    Raises GuestError for input that a function gives, and for a directory that is not only to be read: Wasmtime counts
    no bytes written, and knows nothing of model files that are in use.
    """
    if callable(stdin):
        raise GuestError("a component's standard input is bytes or the process's own; it cannot be a function")
    if stdin == "inherit":
        config.inherit_stdin()
    elif stdin:
        with anonymous_file(stdin) as path:
            config.stdin_file = path  # opened now
    for name, given in dirs.items():
        directory = given if isinstance(given, Dir) else Dir(given)
        if not directory.read_only:
            raise GuestError(f"a component can be granted directories for reading only: {directory.path}::{name}:ro")
        try:
            config.preopen_dir(str(directory.path), name, fs_mutable=False)
        except wasmtime.WasmtimeError:
            raise GuestError(f"cannot grant {directory.path}: it is no directory that can be read") from None


class ComponentInstance:
    """A component's instance."""

    def __init__(
        self,
        component: Component,
        store: wasmtime.Store,
        context: GuestContext,
        nn: ComponentNn | None,
        pipes: Pipes,
    ) -> None:
        """Raises GuestError, and what Wasmtime raises."""
        self._component, self._store, self._pipes = component, store, pipes
        self._instance = component.instantiate(store, lambda linker: define(linker, nn, context) if nn else None)

    def run(self) -> int:
        """Run the command; its exit code. Raises what Wasmtime raises."""
        with self._pipes.passing_on():
            return self._component.run(self._store, self._instance)
