"""Actors: guests that handle messages, and that can be frozen, thawed and forked between them."""
