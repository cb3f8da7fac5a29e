"""The grammar or JSON schema that a guest's options ask for."""

from __future__ import annotations

from wasmetal.errors import ModelError
from wasmetal.models.lm import grammar
from wasmetal.models.lm.tokenizer import Tokenizer
from wasmetal.nn.errors import NnErrno, NnRefusal, invalid
from wasmetal.nn.ggml.options import GgmlOptions


def constraint(tokenizer: Tokenizer, options: GgmlOptions) -> grammar.Grammar | None:
    """The grammar, or else the schema, of an answer, if there is one. Raises NnRefusal."""
    if not (options.grammar or options.json_schema):
        return None
    if not grammar.installed():
        raise NnRefusal(NnErrno.UNSUPPORTED_OPERATION, "for grammars, pip install 'wasmetal[grammar]'")
    if len(options.grammar) + len(options.json_schema) > grammar.MAX_GRAMMAR:
        most = grammar.MAX_GRAMMAR
        raise NnRefusal(NnErrno.TOO_LARGE, f"a grammar is too long; at most {most} characters are taken")
    try:
        if options.grammar:
            return grammar.Grammar(tokenizer, grammar.gbnf_or_lark(options.grammar))
        return grammar.Grammar(tokenizer, grammar.json_schema(options.json_schema))
    except ModelError as error:
        raise invalid(str(error)) from None
