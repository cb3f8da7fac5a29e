from __future__ import annotations

import pytest


@pytest.fixture(params=["cpu", pytest.param("vulkan", marks=pytest.mark.vulkan)])
def spec(request: pytest.FixtureRequest) -> str:
    """Each device that another process can open too, as ``--device`` takes it."""
    return request.getfixturevalue(request.param).info.spec
