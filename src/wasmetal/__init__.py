"""wasmetal: GPU inference from sandboxed WebAssembly with no copies."""
