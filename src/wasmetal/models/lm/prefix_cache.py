"""Keys and values of what sessions began with, for later sessions that begin with the same.

Whole pages of the KV cache are kept, each under a digest of all tokens up to its end, so that one look-up for each page
finds the longest beginning that is there. Nothing is copied: a session holds the pages that it reuses together with the
cache, and they are never written to again. After L. Zheng et al., "SGLang", 2024, with pages in place of tokens.

Only guests of one scope find each other's pages: how long a prompt takes tells whether somebody has sent its beginning.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterator, Sequence

import numpy as np

from wasmetal.models.lm.kv_cache import PAGE_SIZE, KVCache


class PrefixCache:
    """At most so many pages of a KV cache, held by its owner. The model's lock guards it."""

    def __init__(self, cache: KVCache, pages: int) -> None:
        self._cache = cache
        self._most = pages
        self._pages: OrderedDict[bytes, int] = OrderedDict()
        """By digest; what was used last at the end, and each page after those that follow it."""

    def __len__(self) -> int:
        """How many pages are kept."""
        return len(self._pages)

    def find(self, scope: str, tokens: Sequence[int]) -> list[int]:
        """The pages of the longest beginning of these tokens that is there, for a session, which must release them."""
        found: list[bytes] = []
        for digest in _digests(scope, tokens):
            if digest not in self._pages:
                break
            found.append(digest)
        self._use(found)
        return self._cache.share([self._pages[digest] for digest in found])

    def add(self, scope: str, tokens: Sequence[int], pages: Sequence[int]) -> None:
        """Keep what a session holds, whose tokens these are: as many of its whole pages as there is room for."""
        used: list[bytes] = []
        for digest, page in zip(_digests(scope, tokens), pages, strict=False):
            if digest not in self._pages:
                if len(self._pages) >= self._most and not self._drop(used):
                    break
                self._cache.keep(page)
                self._pages[digest] = page
            used.append(digest)
        self._use(used)

    def _use(self, digests: Sequence[bytes]) -> None:
        for digest in reversed(digests):
            self._pages.move_to_end(digest)

    def _drop(self, used: Sequence[bytes]) -> bool:
        """Release the page that was not used for longest, of those that no session holds; False if there is none."""
        self._cache.reclaim()
        kept = set(used)
        for digest, page in self._pages.items():
            if digest not in kept and not self._cache.shared(page):
                del self._pages[digest]
                self._cache.release([page])
                return True
        return False


def _digests(scope: str, tokens: Sequence[int]) -> Iterator[bytes]:
    """A digest of the tokens up to the end of each whole page."""
    words = np.asarray(tokens, np.uint32)
    running = hashlib.sha256(f"{len(scope)} {scope}".encode(errors="surrogatepass"))
    for end in range(PAGE_SIZE, len(words) + 1, PAGE_SIZE):
        running.update(words[end - PAGE_SIZE : end].tobytes())
        yield running.digest()
