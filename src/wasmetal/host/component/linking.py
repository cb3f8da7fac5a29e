"""The functions of ``wasi:nn``, as Wasmtime calls them for a component: nothing is raised into the guest.

The package wasmtime passes on what a host function raises through a variable that all threads share, so ours raise its
own errors only.
"""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter
from typing import Any

import wasmtime
from wasmtime import component

from wasmetal.errors import LimitError
from wasmetal.host.component.nn import VERSION, ComponentNn, Resource
from wasmetal.host.errno import Refusal
from wasmetal.host.link import STOPS, GuestContext, failed
from wasmetal.host.nn.errnos import nn_errno
from wasmetal.nn.errors import NnErrno

_RESOURCES = {
    "errors": {"error": Resource.ERROR},
    "tensor": {"tensor": Resource.TENSOR},
    "inference": {"graph-execution-context": Resource.CONTEXT},
    "graph": {"graph": Resource.GRAPH},
}
_FALLIBLE = {"compute": False, "init-execution-context": True, "load": True, "load-by-name": True}
"""The functions that return a result, which can be an error, and whether the package wasmtime wants to be told which.
Whatever the others meet ends the guest's run."""
_USED = {"tensor": (), "errors": (), "inference": ("errors", "tensor"), "graph": ("errors", "tensor", "inference")}
"""The interfaces whose resources an interface has, too."""


def define(linker: component.Linker, nn: ComponentNn, context: GuestContext) -> None:
    """Add ``wasi:nn``, for one guest."""
    for interface, functions in nn.functions().items():
        with linker.root() as root, root.add_instance(f"wasi:nn/{interface}@{VERSION}") as instance:
            for name, kind in _RESOURCES[interface].items():
                instance.add_resource(name, component.ResourceType.host(kind), _destructor(nn, context))
            for used in _USED[interface]:
                for name, kind in _RESOURCES[used].items():
                    instance.add_resource(name, component.ResourceType.host(kind), _destructor(nn, context))
            for name, function in functions.items():
                instance.add_func(name, _adapt(f"wasi:nn/{interface}.{name}", function, nn, context))


def _adapt(name: str, function: Callable[..., Any], nn: ComponentNn, context: GuestContext) -> Callable[..., Any]:
    tagged = _FALLIBLE.get(name.rpartition(".")[2])

    def call(store: wasmtime.StoreContext, *values: Any) -> Any:
        begin = perf_counter()
        context.host_time.begun = begin
        try:
            context.counters.host_calls += 1
            given = [_plain(each, store) for each in values]
            if tagged is None:
                return function(*given)
            tag, result = _result(name, lambda: function(*given), nn, context)
            return component.Variant(tag, result) if tagged else result
        except BaseException as error:
            raise _stopped(context, error) from None
        finally:
            context.host_time.called(perf_counter() - begin)

    return call


def _result(name: str, act: Callable[[], Any], nn: ComponentNn, context: GuestContext) -> tuple[str, Any]:
    """What a function returns, or the error that it gives. Raises what ends the guest's run."""
    try:
        return "ok", act()
    except BaseException as error:
        if error is context.interrupt.reason or isinstance(error, STOPS):
            raise
        if (errno := nn_errno(error)) is NnErrno.RUNTIME_ERROR:
            failed(context, name, error, errno)
        return "err", nn.refused(error)


def _destructor(nn: ComponentNn, context: GuestContext) -> Callable[[wasmtime.StoreContext, int], None]:
    def drop(_: wasmtime.StoreContext, handle: int) -> None:
        try:
            nn.drop(handle)
        except BaseException as error:
            raise _stopped(context, error) from None

    return drop


def _stopped(context: GuestContext, error: BaseException) -> wasmtime.WasmtimeError:
    """End the guest's run for this reason: what is to be raised into Wasmtime."""
    context.interrupt.stop(LimitError(str(error)) if isinstance(error, Refusal) else error)
    return wasmtime.WasmtimeError("stopped by the host")


def _plain(value: Any, store: wasmtime.StoreContext) -> Any:
    """A parameter, with resources as their numbers."""
    if isinstance(value, component.ResourceAny):
        return value.to_host(store).rep
    if isinstance(value, list):
        return [_plain(each, store) for each in value]
    if isinstance(value, tuple):
        return tuple(_plain(each, store) for each in value)
    return value
