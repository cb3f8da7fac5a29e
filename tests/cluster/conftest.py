"""Nodes for the tests of clusters: started once, since that takes seconds."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.cluster.nodes import Nodes, running


@pytest.fixture(scope="session")
def nodes() -> Iterator[tuple[Nodes, list[Any]]]:
    """A head that runs no actors of the type "worker", and two nodes that do."""
    with running(2) as found:
        yield found
