"""GGUF models on wasmetal's own engine, with the options of WasmEdge's GGML backend."""
