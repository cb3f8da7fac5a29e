"""Logs: lines for people or, with ``--log-json``, a JSON document in each line."""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime

from wasmetal.serve.record import Record

log = logging.getLogger("wasmetal.serve")


class JsonLines(logging.Formatter):
    """A log record as one line of JSON. Those of requests have the request's fields."""

    def format(self, record: logging.LogRecord) -> str:
        """See logging.Formatter."""
        said = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            said["exception"] = self.formatException(record.exc_info)
        return json.dumps(said)


def configure(*, as_json: bool) -> None:
    """Log warnings to standard error and, as JSON, what :func:`write` is told, and other news of the server."""
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s", level=logging.WARNING)
    if as_json:
        for handler in logging.getLogger().handlers:
            handler.setFormatter(JsonLines())
        log.setLevel(logging.INFO)


def write(record: Record) -> None:
    """Log a request that has been answered."""
    log.info("request", extra={"fields": record.as_dict()})
