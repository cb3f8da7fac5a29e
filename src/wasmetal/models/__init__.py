"""Language models: their files, tokenizers and chat templates, and sessions with them on a device."""

from wasmetal.models.chat_template import ChatTemplate
from wasmetal.models.model import Model, load_model
from wasmetal.models.session import Session
from wasmetal.models.tokenizer import Tokenizer

__all__ = ["ChatTemplate", "Model", "Session", "Tokenizer", "load_model"]
