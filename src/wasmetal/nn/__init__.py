"""What answers wasi-nn: backends, each of which runs one kind of model. They know tensors, and nothing of Wasm."""
