;; The guest of `wasmetal bench dispatch`: over and over it submits the one command at {COMMAND}, on a page range that it
;; shares, and waits for it, in one call if {ONCE} = 1. With {FRESH} = 1 each list differs from the one before, so that the
;; host must record it anew. From {TIMES} on it writes the time, in ns, at first and after each {BATCH} round trips.
(module
  (import "wasmetal_gpu" "buffer_create" (func $buffer_create (param i32 i32 i32 i32) (result i32)))
  (import "wasmetal_gpu" "commands_submit" (func $submit (param i32 i32 i32) (result i32)))
  (import "wasmetal_gpu" "submission_wait" (func $wait (param i32 i64) (result i32)))
  (import "wasmetal_gpu" "commands_run" (func $run (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "clock_time_get" (func $time (param i32 i64 i32) (result i32)))
  (memory (export "memory") 2)
  (data (i32.const {COMMAND}) "{RECORD}")

  (func $check (param $errno i32)
    (if (local.get $errno) (then unreachable)))

  (func $round_trip
    (if (i32.const {ONCE})
      (then (call $check (call $run (i32.const {COMMAND}) (i32.const {COMMAND_SIZE}))))
      (else
        (call $check (call $submit (i32.const {COMMAND}) (i32.const {COMMAND_SIZE}) (i32.const {SUBMISSION})))
        (call $check (call $wait (i32.load (i32.const {SUBMISSION})) (i64.const -1))))))

  (func (export "_start") (local $at i32) (local $round i32)
    ;; Share the second 64 KiB for reading and writing; the handle goes into both operands of the command.
    (call $check (call $buffer_create (i32.const 65536) (i32.const 65536) (i32.const 3) (i32.const {FIRST_BUFFER})))
    (i32.store (i32.const {SECOND_BUFFER}) (i32.load (i32.const {FIRST_BUFFER})))
    (local.set $at (i32.const {TIMES}))
    (loop $batch
      (call $check (call $time (i32.const 1) (i64.const 1) (local.get $at)))
      (if (i32.lt_u (local.get $at) (i32.const {LAST_TIME}))
        (then
          (loop $next
            (local.set $round (i32.add (local.get $round) (i32.const 1)))
            (if (i32.const {FRESH})
              (then (f32.store (i32.const {ATTRIBUTE}) (f32.convert_i32_u (local.get $round)))))
            (call $round_trip)
            (br_if $next (i32.rem_u (local.get $round) (i32.const {BATCH}))))
          (local.set $at (i32.add (local.get $at) (i32.const 8)))
          (br $batch))))))
