"""Our own scripts in the suite's format, and proof that the runner notices what is wrong."""

import os
import shutil
from pathlib import Path

import pytest

from tests.spec import runner

CASES = sorted((Path(__file__).parent / "cases").glob("*.wast"))


@pytest.fixture(autouse=True)
def wabt() -> None:
    if shutil.which("wast2json") is None:
        missing = "wast2json is not on the PATH (install wabt)"
        if os.environ.get("WASMETAL_REQUIRE_WABT") == "1":
            pytest.fail(missing)
        pytest.skip(missing)


@pytest.mark.parametrize("case", CASES, ids=lambda path: path.stem)
def test_case(case: Path) -> None:
    report = runner.run_file(case)
    assert report.failures == []
    assert report.not_converted == 0
    assert report.passed == case.read_text().count("\n(")


MODULE = """(module (memory 1) (func (export "load") (param i32) (result i32) (i32.load (local.get 0)))
  (func (export "nan") (result f32) (f32.const nan:0x200001)))
"""


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        ('(assert_return (invoke "load" (i32.const 0)) (i32.const 1))', "expected"),
        ('(assert_return (invoke "nan") (f32.const nan:0x200000))', "expected"),
        ('(assert_return (invoke "nan") (f32.const nan:canonical))', "expected"),
        ('(assert_return (invoke "load" (i32.const 65536)) (i32.const 0))', "Trap"),
        ('(assert_trap (invoke "load" (i32.const 0)) "out of bounds memory access")', "no error"),
        ('(assert_trap (invoke "load" (i32.const 65536)) "unreachable")', "expected 'unreachable'"),
        ('(assert_unlinkable (module (import "spectest" "memory" (memory 1 2))) "unknown import")', "no error"),
        ('(assert_malformed (module quote "(memory 1)") "whatever")', "accepted"),
        ('(module (import "nowhere" "memory" (memory 1)))', "unknown import"),
    ],
)
def test_runner_reports_what_is_wrong(tmp_path: Path, command: str, reason: str) -> None:
    script = tmp_path / "wrong.wast"
    script.write_text(MODULE + '(assert_return (invoke "nan") (f32.const nan:0x200001))\n' + command)
    report = runner.run_file(script)
    assert report.passed == 2
    assert len(report.failures) == 1
    assert "wrong.wast:4" in report.failures[0]
    assert reason in report.failures[0]


def test_what_wabt_cannot_parse_is_counted_and_the_rest_runs(tmp_path: Path) -> None:
    script = tmp_path / "future.wast"
    script.write_text(
        MODULE
        + '(module (the future)) ;; "(" (; ( ;)\n'
        + '(assert_return (invoke "load" (i32.const 0)) (i32.const 1))\n'  # of the module that is not there
        + '(register "future")\n'
        + MODULE
        + '(assert_return (invoke "load" (i32.const 0)) (i32.const 0))\n'
        + '(module (import "future" "memory" (memory 1)))\n'
    )
    report = runner.run_file(script)
    assert (report.passed, report.failures, report.not_converted) == (3, [], 4)


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "right.wast").write_text(MODULE)
    assert runner.main([str(tmp_path), "--filter", "right"]) == 0
    assert "right.wast: 1 passed, 0 failed" in capsys.readouterr().out
    (tmp_path / "wrong.wast").write_text(MODULE + '(assert_return (invoke "load" (i32.const 0)) (i32.const 1))')
    assert runner.main([str(tmp_path)]) == 1
    assert "2 files: 2 passed, 1 failed" in capsys.readouterr().out
    assert runner.main([str(tmp_path), "--filter", "nothing"]) == 2
