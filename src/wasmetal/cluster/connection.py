"""This process's connection to Ray, of which there is one at most: shared by all clusters, ended by who made it."""

from __future__ import annotations

from threading import Lock

import ray

from wasmetal.closing import Closing
from wasmetal.cluster.directory import NAMESPACE
from wasmetal.cluster.ray_errors import line
from wasmetal.errors import ClusterError, printable

_lock = Lock()
"""Guards the users."""
_users: set[Connection] = set()
"""Of the connection that was made here; empty if there is none, or the program has made it itself."""


class Connection(Closing):
    """The connection, for one user. It ends with the last, unless the program was connected before the first."""

    def __init__(self, address: str) -> None:
        """``address``: Ray's, which counts only if the process is not connected. Raises ClusterError."""
        with _lock:
            if not ray.is_initialized():
                _connect(address)
                _users.clear()  # whose connection the program has ended
            elif not _users:
                return
            _users.add(self)

    def close(self) -> None:
        """See :class:`Closing`."""
        with _lock:
            if self in _users:
                _users.remove(self)
                if not _users:
                    ray.shutdown()


def _connect(address: str) -> None:
    try:
        ray.init(address=address, namespace=NAMESPACE, log_to_driver=False, configure_logging=False)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ClusterError(
            f"no Ray cluster at {printable(address)}: start one with `ray start --head`, and `ray start --address=...` "
            f"on the other machines ({line(error)})"
        ) from None
