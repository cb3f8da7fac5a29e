"""A server that speaks OpenAI's API. Every completion is a guest in its own sandbox."""
