"""Apple GPUs, through Metal. Guest pages are wrapped in place (``newBufferWithBytesNoCopy``).

Importing any module of this package loads the Metal framework; except on macOS, that raises DeviceNotFoundError.
"""
