"""Batch metadata: which rows of a submission are valid, and the position and sequence of each.

A command list is recorded for up to T rows and replayed for any number of them, which may belong to several sequences:
rows of a prompt and rows of sequences that decode, side by side. What changes from one submission to the next is in two
tensors in shared memory, so nothing is recorded again for a token:

    batch      I32 [1 + T, 2]   the number of valid rows and a 0; then the position and the sequence of each row
    sequences  I32 [S, 1 + P]   for each sequence: its length, then its page table

Valid rows come first; rows after them are left as they are. A row's sequence is an index into ``sequences``. A length
is the number of the sequence's positions in the KV cache once this submission's rows are appended: rows at or past it
are neither appended nor attended to. A page table names the page of the cache that holds each run of
``page_size`` positions (W. Kwon et al., "PagedAttention", 2023), so sequences can share pages.

The contents may be a guest's: kernels read them as unsigned and clamp them, and no value leads outside the tensors. A
length is at most what the page table covers, and at most the number of slots in the cache's pool.
"""

from __future__ import annotations


def batch_shape(rows: int) -> tuple[int, int]:
    """The shape of ``batch`` for up to ``rows`` rows."""
    return 1 + rows, 2


def sequences_shape(sequences: int, pages: int) -> tuple[int, int]:
    """The shape of ``sequences`` for that many sequences of up to ``pages`` pages each."""
    return sequences, 1 + pages
