"""Language models: their files, tokenizers and chat templates, and sessions with them on a device."""

from wasmetal.models.lm.chat_template import ChatTemplate
from wasmetal.models.lm.model import Model, load_model
from wasmetal.models.lm.session import Request, Session
from wasmetal.models.lm.tokenizer import Tokenizer

__all__ = ["ChatTemplate", "Model", "Request", "Session", "Tokenizer", "load_model"]
