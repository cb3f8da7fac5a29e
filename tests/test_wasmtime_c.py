"""What wasmetal uses of Wasmtime's private API: all there, and a clear word where it is not."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from wasmtime import _bindings

from wasmetal import wasmtime_c
from wasmetal.errors import WasmetalError

NAMES = [(home, name) for home, names in wasmtime_c.PRIVATE.items() for name in names]


def test_this_version_has_all_of_it() -> None:
    assert wasmtime_c.missing() == []
    wasmtime_c.check_version()


@pytest.mark.parametrize(("home", "name"), NAMES)
def test_what_is_missing_is_named(home: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    owner = wasmtime_c._find(home)
    for each in owner.__mro__ if isinstance(owner, type) else [owner]:
        if name in vars(each):
            monkeypatch.delattr(each, name)
    assert f"{home}.{name}" in wasmtime_c.missing()
    with pytest.raises(WasmetalError, match=rf"has no .*{name}.*supports wasmtime{wasmtime_c.SUPPORTED}: pip install"):
        wasmtime_c.check_version()


def test_a_module_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(wasmtime_c.PRIVATE, "wasmtime._none", ("NAME",))
    assert wasmtime_c.missing() == ["wasmtime._none.NAME"]


def test_nothing_off_the_list_can_be_used() -> None:
    assert hasattr(_bindings, "wasmtime_store_new")
    with pytest.raises(AttributeError):
        wasmtime_c._c.wasmtime_store_new  # noqa: B018


def test_importing_wasmetal_with_another_version_says_what_to_do() -> None:
    script = """
import wasmtime._bindings
del wasmtime._bindings.wasmtime_caller_context
import wasmetal
try:
    wasmetal.Guest
except wasmetal.errors.WasmetalError as error:
    print(error)
"""
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert ran.stderr == ""
    [line] = ran.stdout.splitlines()
    assert "has no wasmtime._bindings.wasmtime_caller_context; wasmetal supports wasmtime>=" in line


def test_the_range_is_that_of_the_package() -> None:
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    assert f"wasmtime{wasmtime_c.SUPPORTED}" in project["dependencies"]
