"""How many tokens a guest's models have read and chosen."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class TokenCounts:
    """What a guest has had its language models do. A guest may choose tokens itself, from logits: each pass that gives
    logits counts as a token that is chosen."""

    prompt: int = 0
    """Tokens of prompts, with what their sessions held already."""
    cached: int = 0
    """Of those, the ones that were not run: their sessions held them, or other guests had run them."""
    chosen: int = 0

    def count(self, before: int, tokens: int, chosen: int, *, is_prompt: bool) -> None:
        """Count a pass: tokens appended to a session that held ``before``, after which ``chosen`` were chosen."""
        self.chosen += chosen
        if is_prompt:
            self.prompt += before + tokens
            self.cached += before

    def __add__(self, other: TokenCounts) -> TokenCounts:
        """Both together."""
        return TokenCounts(self.prompt + other.prompt, self.cached + other.cached, self.chosen + other.chosen)

    def __sub__(self, before: TokenCounts) -> TokenCounts:
        """What has been added since."""
        return TokenCounts(self.prompt - before.prompt, self.cached - before.cached, self.chosen - before.chosen)
