"""Small guests, as WebAssembly text."""

EXIT = """
(module
  (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
  (memory (export "memory") 1)
  (func (export "_start") (call $exit (i32.const 7))))
"""

TRAP = """
(module
  (memory (export "memory") 1)
  (func $stumble (export "_start") unreachable))
"""

SPIN = """
(module
  (memory (export "memory") 1)
  (func (export "_start") (loop $again (br $again))))
"""

GROW = """
(module ;; exits with 1 where its memory does not grow by 16 MiB
  (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
  (memory (export "memory") 1)
  (func (export "_start")
    (call $exit (i32.eq (memory.grow (i32.const 256)) (i32.const -1)))))
"""

_WRITE = """
  (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
  (func $print (param $at i32) (param $count i32)
    (i32.store (i32.const 0) (local.get $at))
    (i32.store (i32.const 4) (local.get $count))
    (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8))))
"""

FLOOD = f"""
(module ;; writes for ever
  {_WRITE}
  (memory (export "memory") 1)
  (func (export "_start") (loop $again (call $print (i32.const 1024) (i32.const 1024)) (br $again))))
"""

CAT = f"""
(module ;; standard input to standard output
  (import "wasi_snapshot_preview1" "fd_read" (func $read (param i32 i32 i32 i32) (result i32)))
  {_WRITE}
  (memory (export "memory") 1)
  (func (export "_start")
    (loop $again
      (i32.store (i32.const 16) (i32.const 1024))
      (i32.store (i32.const 20) (i32.const 4096))
      (drop (call $read (i32.const 0) (i32.const 16) (i32.const 1) (i32.const 24)))
      (if (i32.load (i32.const 24))
        (then (call $print (i32.const 1024) (i32.load (i32.const 24))) (br $again))))))
"""


def strings(what: str) -> str:
    """A guest that writes its arguments ("args") or its environment ("environ"), a zero byte after each."""
    return f"""
(module
  (import "wasi_snapshot_preview1" "{what}_sizes_get" (func $sizes (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "{what}_get" (func $get (param i32 i32) (result i32)))
  {_WRITE}
  (memory (export "memory") 1)
  (func (export "_start")
    (drop (call $sizes (i32.const 16) (i32.const 20)))
    (drop (call $get (i32.const 1024) (i32.const 4096)))
    (call $print (i32.const 4096) (i32.load (i32.const 20)))))
"""


PREOPENED = f"""
(module ;; writes the guest's name for its first directory; exits with 1 where it has none
  (import "wasi_snapshot_preview1" "fd_prestat_get" (func $prestat (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_prestat_dir_name" (func $name (param i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
  {_WRITE}
  (memory (export "memory") 1)
  (func (export "_start")
    (if (call $prestat (i32.const 3) (i32.const 16)) (then (call $exit (i32.const 1))))
    (drop (call $name (i32.const 3) (i32.const 1024) (i32.load (i32.const 20))))
    (call $print (i32.const 1024) (i32.load (i32.const 20)))))
"""


CREATE = """
(module ;; writes 1000 bytes to a new file in its first directory; exits with the first errno
  (import "wasi_snapshot_preview1" "path_open"
    (func $open (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
  (memory (export "memory") 1)
  (data (i32.const 100) "new")
  (func $check (param i32) (if (local.get 0) (then (call $exit (local.get 0)))))
  (func (export "_start")
    (call $check (call $open (i32.const 3) (i32.const 0) (i32.const 100) (i32.const 3) (i32.const 1) (i64.const 64)
      (i64.const 0) (i32.const 0) (i32.const 16)))
    (i32.store (i32.const 0) (i32.const 1024))
    (i32.store (i32.const 4) (i32.const 1000))
    (call $check (call $write (i32.load (i32.const 16)) (i32.const 0) (i32.const 1) (i32.const 8)))))
"""
