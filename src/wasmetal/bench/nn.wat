;; The guest of `wasmetal bench nn`: has a model with one input and one output run on an image, over and over.
(module
  (import "wasi_ephemeral_nn" "load_by_name" (func $load (param i32 i32 i32) (result i32)))
  (import "wasi_ephemeral_nn" "init_execution_context" (func $context (param i32 i32) (result i32)))
  (import "wasi_ephemeral_nn" "set_input" (func $set_input (param i32 i32 i32) (result i32)))
  (import "wasi_ephemeral_nn" "bind_input" (func $bind_input (param i32 i32 i32) (result i32)))
  (import "wasi_ephemeral_nn" "bind_output" (func $bind_output (param i32 i32 i32) (result i32)))
  (import "wasi_ephemeral_nn" "compute" (func $compute (param i32) (result i32)))
  (import "wasi_ephemeral_nn" "get_output" (func $get_output (param i32 i32 i32 i32 i32) (result i32)))
  (memory (export "memory") {PAGES})
  (data (i32.const 0) "m")
  (data (i32.const {INPUT}) "{INPUT_RECORD}")
  (data (i32.const {OUTPUT}) "{OUTPUT_RECORD}")
  (global $handle (mut i32) (i32.const 0))

  (func $check (param $errno i32)
    (if (local.get $errno) (then unreachable)))

  ;; A new context.
  (func $open
    (call $check (call $load (i32.const 0) (i32.const 1) (i32.const 8)))
    (call $check (call $context (i32.load (i32.const 8)) (i32.const 8)))
    (global.set $handle (i32.load (i32.const 8))))

  (func (export "copied") (param $rounds i32)
    (call $open)
    (loop $next
      (call $check (call $set_input (global.get $handle) (i32.const 0) (i32.const {INPUT})))
      (call $check (call $compute (global.get $handle)))
      (call $check (call $get_output
        (global.get $handle) (i32.const 0) (i32.const {RESULT}) (i32.const {RESULT_SIZE}) (i32.const 8)))
      (br_if $next (local.tee $rounds (i32.sub (local.get $rounds) (i32.const 1))))))

  (func (export "bound") (param $rounds i32)
    (call $open)
    (call $check (call $bind_input (global.get $handle) (i32.const 0) (i32.const {INPUT})))
    (call $check (call $bind_output (global.get $handle) (i32.const 0) (i32.const {OUTPUT})))
    (loop $next
      (call $check (call $compute (global.get $handle)))
      (br_if $next (local.tee $rounds (i32.sub (local.get $rounds) (i32.const 1)))))))
