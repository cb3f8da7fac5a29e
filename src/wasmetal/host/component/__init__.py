"""Components: compiled, run on Wasmtime's own WASI, and given ``wasi:nn``."""
