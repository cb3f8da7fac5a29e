"""Language models: tokenizers, chat templates, sessions, and the paged KV cache that they share."""
