;; Bulk operations across memories end where the memories end, and write nothing when they would pass it.

(module
  (memory $a (export "a") 1 2)
  (memory $b i64 1)
  (data (memory $a) (i32.const 65532) "\01\02\03\04")
  (data $passive "\05\06\07\08")
  (func (export "copy") (param i64 i32 i32) (memory.copy $b $a (local.get 0) (local.get 1) (local.get 2)))
  (func (export "fill") (param i64 i32 i64) (memory.fill $b (local.get 0) (local.get 1) (local.get 2)))
  (func (export "init") (param i64 i32 i32) (memory.init $b $passive (local.get 0) (local.get 1) (local.get 2)))
  (func (export "load_b") (param i64) (result i32) (i32.load $b (local.get 0))))

(assert_return (invoke "copy" (i64.const 65532) (i32.const 65532) (i32.const 4)))
(assert_return (invoke "load_b" (i64.const 65532)) (i32.const 0x04030201))
(assert_trap (invoke "copy" (i64.const 65533) (i32.const 65532) (i32.const 4)) "out of bounds memory access")
(assert_trap (invoke "copy" (i64.const 0) (i32.const 65533) (i32.const 4)) "out of bounds memory access")
(assert_trap (invoke "copy" (i64.const -4) (i32.const 0) (i32.const 4)) "out of bounds memory access")
(assert_return (invoke "load_b" (i64.const 65532)) (i32.const 0x04030201))
(assert_return (invoke "load_b" (i64.const 0)) (i32.const 0))
(assert_trap (invoke "fill" (i64.const 65535) (i32.const 255) (i64.const 2)) "out of bounds memory access")
(assert_trap (invoke "fill" (i64.const 1) (i32.const 255) (i64.const -1)) "out of bounds memory access")
(assert_return (invoke "load_b" (i64.const 65532)) (i32.const 0x04030201))
(assert_return (invoke "init" (i64.const 65532) (i32.const 0) (i32.const 4)))
(assert_return (invoke "load_b" (i64.const 65532)) (i32.const 0x08070605))
(assert_trap (invoke "init" (i64.const 65533) (i32.const 0) (i32.const 4)) "out of bounds memory access")
(assert_return (invoke "load_b" (i64.const 65532)) (i32.const 0x08070605))
(register "first")

;; One memory, imported by another module, grown there, and seen to have grown by both.
(module
  (memory (import "first" "a") 1 2)
  (func (export "grow") (param i32) (result i32) (memory.grow (local.get 0)))
  (func (export "load") (param i32) (result i32) (i32.load (local.get 0))))

(assert_return (invoke "load" (i32.const 65532)) (i32.const 0x04030201))
(assert_trap (invoke "load" (i32.const 65536)) "out of bounds memory access")
(assert_return (invoke "grow" (i32.const 1)) (i32.const 1))
(assert_return (invoke "load" (i32.const 131068)) (i32.const 0))
(assert_trap (invoke "load" (i32.const 131069)) "out of bounds memory access")
(assert_return (invoke "grow" (i32.const 1)) (i32.const -1))

;; A data segment past the end is a trap at instantiation.
(assert_trap (module (memory 1) (data (i32.const 65533) "\01\02\03\04")) "out of bounds memory access")
(assert_unlinkable (module (memory (import "first" "a") 3)) "incompatible import type")
