"""Devices: one protocol (base) and a module each; nothing here knows of Wasm or of models."""
