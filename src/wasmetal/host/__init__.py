"""Host functions for guests: every guest integer is checked here, once."""
