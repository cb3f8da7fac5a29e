"""Worker processes: what must not be able to harm this process is done in another one, which the system limits.

A worker process imports a service, which is a module with a function ``run``, and gives up what that does not need
(:mod:`~wasmetal.worker.confinement`). It may run out of memory or time, or crash: that costs the one request on which
it worked, which raises an error of one line.
"""

from wasmetal.worker.pool import WorkerPool

__all__ = ["WorkerPool"]
