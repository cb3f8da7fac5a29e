"""What the host logs as its own failure, although a guest caused it."""

from __future__ import annotations

import logging

ON_PURPOSE = "on purpose"
"""In the message of an error that a test has injected."""


class HostFailures(logging.Handler):
    """Collects them, instead of printing them."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self._records: list[logging.LogRecord] = []
        logger = logging.getLogger("wasmetal")
        logger.addHandler(self)
        logger.propagate = False

    def emit(self, record: logging.LogRecord) -> None:
        if ON_PURPOSE not in record.getMessage():
            self._records.append(record)

    def first(self) -> BaseException | None:
        """The cause of the first one, if there is one."""
        if not self._records:
            return None
        record = self._records[0]
        return getattr(record, "cause", None) or AssertionError(f"the host failed: {record.getMessage()}")
