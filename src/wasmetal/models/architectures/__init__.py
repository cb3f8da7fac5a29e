"""Model architectures, one module each, by the name that GGUF's ``general.architecture`` has for them."""

from __future__ import annotations

from collections.abc import Callable

from wasmetal.models.architectures.bert import Bert
from wasmetal.models.architectures.gemma3 import Gemma3
from wasmetal.models.architectures.gpt_oss import GptOss
from wasmetal.models.architectures.granite import Granite
from wasmetal.models.architectures.llama import Llama
from wasmetal.models.architectures.network import Network
from wasmetal.models.architectures.olmo2 import Olmo2
from wasmetal.models.architectures.phi3 import Phi3
from wasmetal.models.architectures.qwen2 import Qwen2
from wasmetal.models.architectures.qwen3 import Qwen3
from wasmetal.models.architectures.qwen3moe import Qwen3MoE
from wasmetal.models.architectures.smollm3 import SmolLM3
from wasmetal.models.files.model_file import ModelFile

ARCHITECTURES: dict[str, Callable[[ModelFile], Network]] = {
    architecture.name: architecture
    for architecture in (Gemma3, GptOss, Granite, Llama, Olmo2, Phi3, Qwen2, Qwen3, Qwen3MoE, SmolLM3)
}


def read_network(file: ModelFile) -> Network:
    """The network that a file describes, not loaded yet. Raises ModelError if it is unsupported or malformed."""
    name = file.require("general.architecture", str)
    architecture = ARCHITECTURES.get(name)
    if name == Bert.name:
        raise file.error("an embedding model: use wasmetal embed, or load_embedder")
    if architecture is None:
        supported = ", ".join(sorted(ARCHITECTURES))
        raise file.error(f"the architecture {name!r} is not supported; supported: {supported}")
    return architecture(file)
