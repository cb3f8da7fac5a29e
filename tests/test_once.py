"""What is made once per process, when several threads are the first to use it."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from wasmetal.once import once

THREADS = 6


def test_threads_that_ask_at_the_same_time_get_the_same() -> None:
    barrier = threading.Barrier(THREADS)

    @once
    def make(name: str) -> object:
        time.sleep(0.05)
        return [name]

    def ask(name: str) -> object:
        barrier.wait(10)
        return make(name)

    with ThreadPoolExecutor(THREADS) as threads:
        made = list(threads.map(ask, "ababab"))
    assert made == [["a"], ["b"]] * 3
    assert len({id(each) for each in made}) == 2


def test_a_failure_is_not_kept() -> None:
    answers = iter([ValueError("not yet"), "made"])

    @once
    def make() -> str:
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    with pytest.raises(ValueError, match="not yet"):
        make()
    assert make() == "made"


FIRST_GUESTS = """
import gc, sys, threading
from concurrent.futures import ThreadPoolExecutor
from wasmetal import Guest, Program

sys.setswitchinterval(1e-5)
CLOCK = '''(module
  (import "wasi_snapshot_preview1" "clock_time_get" (func $now (param i32 i64 i32) (result i32)))
  (memory (export "memory") 1)
  (func (export "now") (result i32) (call $now (i32.const 0) (i64.const 1) (i32.const 64))))'''
N = 6
barrier = threading.Barrier(N)

def use(i):
    barrier.wait(30)
    with Guest(Program(CLOCK.encode())) as guest:
        barrier.wait(30)
        gc.collect()
        return guest.call("now")

with ThreadPoolExecutor(N) as threads:
    print(list(threads.map(use, range(N))))
"""


def test_threads_whose_guests_are_the_first_of_the_process() -> None:
    command = [sys.executable, "-X", "faulthandler", "-c", FIRST_GUESTS]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str([0] * THREADS)
