"""Hostile input: what a guest, a file or a caller may do to the host, and what it may not."""
