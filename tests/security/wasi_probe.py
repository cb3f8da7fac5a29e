"""A guest that calls WASI's functions for files with the test's own arguments."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from wasmetal import Guest
from wasmetal.host import wasi_abi
from wasmetal.host.abi import U64
from wasmetal.host.errno import WasiErrno

OUT = 64
_PATHS = (1024, 8192)
_DATA = 65536
READ, WRITE = 1 << 1, 1 << 6


def module() -> bytes:
    imports, exports = [], []
    for name, kinds in {**wasi_abi.FILES, **wasi_abi.PATHS}.items():
        params = " ".join("i64" if kind == U64 else "i32" for kind in kinds)
        imports.append(f'(import "{wasi_abi.MODULE}" "{name}" (func ${name} (param {params}) (result i32)))')
        arguments = " ".join(f"(local.get {i})" for i in range(len(kinds)))
        exports.append(f'(func (export "{name}") (param {params}) (result i32) (call ${name} {arguments}))')
    return f'(module {" ".join(imports)} (memory (export "memory") 8) {" ".join(exports)})'.encode()


class WasiProbe:
    """The guest. Methods raise the errno that a call gave, as OSError; directories begin with descriptor 3."""

    def __init__(self, dirs: Mapping[str, Any], **grants: Any) -> None:
        self.guest = Guest(module(), dirs=dirs, **grants)

    def __enter__(self) -> WasiProbe:
        return self

    def __exit__(self, *_: object) -> None:
        self.guest.close()

    def __getattr__(self, name: str) -> Callable[..., None]:
        """Any function, with its own parameters; a path is given as one string."""

        def call(*arguments: int | str) -> None:
            values: list[int] = []
            for argument in arguments:
                if isinstance(argument, str):
                    at, data = _PATHS[argument is arguments[-1]], argument.encode()
                    self.guest.write(at, data)
                    values += [at, len(data)]
                else:
                    values.append(argument)
            errno = self.guest.call(name, *values)
            if errno:
                raise OSError(errno, WasiErrno(errno).name)

        return call

    def out(self, dtype: Any = np.uint32) -> Any:
        return np.frombuffer(self.guest.read(OUT, np.dtype(dtype).itemsize), dtype)[0]

    def open(
        self, path: str, rights: int = READ, oflags: int = 0, fdflags: int = 0, fd: int = 3, follow: int = 1
    ) -> int:
        self.path_open(fd, follow, path, oflags, rights, 0, fdflags, OUT)
        return int(self.out())

    def write(self, fd: int, data: bytes, offset: int | None = None) -> int:
        self.guest.write(0, np.array([_DATA, len(data)], np.uint32).tobytes())
        self.guest.write(_DATA, data)
        if offset is None:
            self.fd_write(fd, 0, 1, OUT)
        else:
            self.fd_pwrite(fd, 0, 1, offset, OUT)
        return int(self.out())

    def read(self, fd: int, nbytes: int = 1000) -> bytes:
        self.guest.write(0, np.array([_DATA, nbytes], np.uint32).tobytes())
        self.fd_read(fd, 0, 1, OUT)
        return self.guest.read(_DATA, int(self.out()))

    def names(self, fd: int = 3, room: int = 4096) -> list[str]:
        """What a directory holds, asked for with so much room at a time."""
        names: list[str] = []
        cookie = 0
        while True:
            self.fd_readdir(fd, _DATA, room, cookie, OUT)
            data = self.guest.read(_DATA, int(self.out()))
            whole = 0
            while len(data) >= wasi_abi.DIRENT.itemsize:
                entry = np.frombuffer(data[: wasi_abi.DIRENT.itemsize], wasi_abi.DIRENT)[0]
                end = wasi_abi.DIRENT.itemsize + int(entry["length"])
                if len(data) < end:
                    break
                names.append(data[wasi_abi.DIRENT.itemsize : end].decode())
                data, cookie, whole = data[end:], int(entry["next"]), whole + 1
            if int(self.out()) < room:
                return names
            assert whole, "no room for a single entry"
