"""Install the system packages that `make demo` and `make test` use, or say what is missing without them.

As root on Debian or Ubuntu the missing packages are installed with apt-get. Otherwise each is named, with what does not
work without it, and the exit status is still 0: everything else works. Runs before there is a virtual environment, so
it uses only the standard library.

Usage: python3 scripts/system_packages.py {run|test}
"""

import ctypes.util
import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

VULKAN_DIRECTORIES = ("/usr/share", "/usr/local/share", "/etc", "/opt/homebrew/share")


class Package(NamedTuple):
    """A Debian package, how to tell that it (or an equivalent from elsewhere) is present, and what needs it."""

    name: str
    present: Callable[[], bool]
    lost: str


def command(*names: str) -> Callable[[], bool]:
    """Present if one of these commands is on PATH."""
    return lambda: any(map(shutil.which, names))


def vulkan_file(pattern: str) -> Callable[[], bool]:
    """Present if the Vulkan loader finds a manifest of that name."""
    return lambda: any(next(Path(d, "vulkan").glob(pattern), None) for d in VULKAN_DIRECTORIES)


def c_headers() -> bool:
    """Present if the C library's headers are where a compiler finds them."""
    return sys.platform == "darwin" or Path("/usr/include/stdio.h").exists()


VENV = f"python{sys.version_info.major}.{sys.version_info.minor}-venv"
RUN = (
    Package(VENV, lambda: importlib.util.find_spec("ensurepip") is not None, "no virtual environment can be made"),
    Package("libvulkan1", lambda: ctypes.util.find_library("vulkan") is not None, "no Vulkan devices"),
    Package(
        "mesa-vulkan-drivers",
        vulkan_file("icd.d/*.json"),
        "no Vulkan device, unless a GPU maker's own driver is installed",
    ),
)
TEST = (
    *RUN,
    Package(
        "vulkan-validationlayers",
        vulkan_file("explicit_layer.d/VkLayer_khronos_validation*.json"),
        "the Vulkan tests run without validation",
    ),
    Package("wabt", command("wast2json"), "the WebAssembly specification tests are skipped"),
    Package("spirv-tools", command("spirv-val"), "the compiled kernels are not validated"),
    Package("gcc", command("cc"), "C code for guests is tested for undefined behaviour alone, not for stray accesses"),
    Package("libc6-dev", c_headers, "as without gcc"),
    Package("chromium", command("chromium", "chromium-browser", "google-chrome"), "the server's page is not tested"),
)


def missing(packages: Iterable[Package]) -> list[Package]:
    """Those whose check fails."""
    return [package for package in packages if not package.present()]


def install(packages: Iterable[Package]) -> None:
    """Install with apt-get, each by itself if they cannot all be had; on failure show its last words."""
    names = [package.name for package in packages]
    print("installing", *names, flush=True)
    apt_get("update")
    if not apt_get("install", "--yes", "--no-install-recommends", *names) and len(names) > 1:
        for name in names:
            apt_get("install", "--yes", "--no-install-recommends", name)


def apt_get(*arguments: str) -> bool:
    """Whether it succeeded."""
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    done = subprocess.run(["apt-get", "-qq", *arguments], env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        print(f"apt-get {arguments[0]} failed:", *done.stderr.splitlines()[-3:], sep="\n  ", file=sys.stderr)
    return done.returncode == 0


def main(wanted: str) -> None:
    """Install what is missing, and name what is missing still."""
    packages = {"run": RUN, "test": TEST}[wanted]
    lacking = missing(packages)
    if lacking and os.geteuid() == 0 and shutil.which("apt-get"):
        install(lacking)
        lacking = missing(packages)
    for package in lacking:
        print(f"missing: {package.name} ({package.lost}); install it with your package manager", file=sys.stderr)


if __name__ == "__main__":
    main(sys.argv[1])
