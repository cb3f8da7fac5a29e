"""Worker processes: what must not be able to harm this process is done in another one, which the system limits.

A *service* is a module with a function ``serve(header, payload)``. A worker process imports it, gives up what it does
not need (:mod:`~wasmetal.worker.confinement`), and answers one request at a time. It may run out of memory or time, or
crash: that costs the one request, which raises an error of one line.
"""

from wasmetal.worker.pool import WorkerPool

__all__ = ["WorkerPool"]
