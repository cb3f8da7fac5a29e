"""Pages of mapped files."""

from __future__ import annotations

import gc
import mmap
import weakref
from pathlib import Path

import numpy as np
import pytest

from wasmetal.memory import FilePages, page_size


@pytest.mark.parametrize("nbytes", [1, page_size() - 1, page_size(), page_size() + 1, 5 * page_size() + 123])
def test_whole_pages_of_a_file(tmp_path: Path, nbytes: int) -> None:
    content = np.random.default_rng(0).integers(1, 256, nbytes, np.uint8)
    path = tmp_path / "file"
    path.write_bytes(content.tobytes())
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    pages = FilePages(mapped)
    assert pages.address % page_size() == pages.nbytes % page_size() == 0
    assert 0 <= pages.nbytes - nbytes < page_size()
    view = pages.view()
    assert view.ctypes.data == pages.address
    assert view.size == pages.nbytes
    assert not view.flags.writeable
    assert np.array_equal(view[:nbytes], content)
    assert not view[nbytes:].any()

    gone = weakref.ref(mapped)
    del mapped, pages
    gc.collect()
    assert np.array_equal(view[:nbytes], content)  # a view is enough to keep it mapped
    assert gone() is not None
    del view
    gc.collect()
    assert gone() is None
