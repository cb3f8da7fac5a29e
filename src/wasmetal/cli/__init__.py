"""The command line."""

from wasmetal.cli.app import app, main

__all__ = ["app", "main"]
