"""Model files: where they are found, and what is in them."""
