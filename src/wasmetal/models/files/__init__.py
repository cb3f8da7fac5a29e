"""Model files: finding them and reading them."""
