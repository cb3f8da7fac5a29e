;; The guest that `wasmetal doctor` proves the chain with: it writes and checks arithmetic progressions of f32 in its
;; own memory, with its own instructions. 320 pages are 20 MiB; growth goes up to 64 MiB.
(module
  (memory (export "memory") 320 1024)

  ;; Write `count` values first, first + step, … at `at`.
  (func (export "write") (param $at i32) (param $count i32) (param $first f32) (param $step f32)
    (local $i i32)
    (loop $next
      (f32.store
        (i32.add (local.get $at) (i32.shl (local.get $i) (i32.const 2)))
        (f32.add (local.get $first) (f32.mul (local.get $step) (f32.convert_i32_u (local.get $i)))))
      (br_if $next
        (i32.lt_u (local.tee $i (i32.add (local.get $i) (i32.const 1))) (local.get $count)))))

  ;; How many of the `count` values at `at` are not first, first + step, …
  (func (export "mismatches") (param $at i32) (param $count i32) (param $first f32) (param $step f32) (result i32)
    (local $i i32) (local $wrong i32)
    (loop $next
      (local.set $wrong
        (i32.add (local.get $wrong)
          (f32.ne
            (f32.load (i32.add (local.get $at) (i32.shl (local.get $i) (i32.const 2))))
            (f32.add (local.get $first) (f32.mul (local.get $step) (f32.convert_i32_u (local.get $i)))))))
      (br_if $next
        (i32.lt_u (local.tee $i (i32.add (local.get $i) (i32.const 1))) (local.get $count))))
    (local.get $wrong))

  ;; Grow the memory by `pages`; the size before, or -1.
  (func (export "grow") (param $pages i32) (result i32)
    (memory.grow (local.get $pages))))
