import os
from pathlib import Path

import pytest

from wasmetal.errors import ModelError
from wasmetal.models.files import store


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The real model's file. Tests that ask for it are marked ``model``."""
    try:
        return store.resolve("smollm2:135m")
    except ModelError as e:
        if os.environ.get("WASMETAL_REQUIRE_MODEL") == "1":
            raise
        pytest.skip(str(e))
