"""What the device uses of Foundation and of ``objc``: plain methods and properties, of which no wheel tells."""

from __future__ import annotations

from typing import Any

from tests.metal.standin.bridge import Object, Pool, Struct, not_in_wheel
from tests.metal.standin.gpu import Gpu


class NSError(Object):
    """What went wrong."""

    def __init__(self, domain: str, code: int, text: str) -> None:
        self._domain, self._code, self._text = domain, code, text

    @not_in_wheel("q")
    def code(self) -> int:
        return self._code

    @not_in_wheel("@")
    def localizedDescription(self) -> str:
        return self._text


class Url(Object):
    """An NSURL."""

    def __init__(self, path: str) -> None:
        self.path = path


class NSURL:
    """The class object."""

    @staticmethod
    def fileURLWithPath_(path: str) -> Url:
        assert type(path) is str
        return Url(path)


class _ProcessInfo(Object):
    def __init__(self, gpu: Gpu) -> None:
        self._gpu = gpu

    @not_in_wheel("@")
    def operatingSystemVersionString(self) -> str:
        return f"Version {self._gpu.macos}.0 (emulated)"


class NSRange(Struct):
    encoding = "{_NSRange=QQ}"


class Foundation:
    """What ``import Foundation`` gives."""

    NSURL = NSURL

    @staticmethod
    def NSMakeRange(location: int, length: int) -> NSRange:
        return NSRange((location, length))

    def __init__(self, gpu: Gpu) -> None:
        info = _ProcessInfo(gpu)

        class NSProcessInfo:
            @staticmethod
            def processInfo() -> _ProcessInfo:
                return info

        self.NSProcessInfo: Any = NSProcessInfo


class Objc:
    """What ``import objc`` gives."""

    autorelease_pool = Pool

    def __init__(self, gpu: Gpu) -> None:
        self._gpu = gpu

    def macos_available(self, major: int, minor: int = 0, patch: int = 0) -> bool:
        return self._gpu.macos >= major
