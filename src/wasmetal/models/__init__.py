"""Models: files, tokenizers, chat templates and one module per architecture; nothing here knows of Wasm."""
