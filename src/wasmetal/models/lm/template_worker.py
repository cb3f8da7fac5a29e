"""The service that renders chat templates in worker processes."""

from __future__ import annotations

import json
from contextlib import suppress
from functools import lru_cache

from wasmetal.errors import ModelError
from wasmetal.models.lm.jinja_template import JinjaTemplate
from wasmetal.worker.channel import Channel, Header
from wasmetal.worker.child import answer
from wasmetal.worker.confinement import Allowance

_compiled = lru_cache(maxsize=8)(JinjaTemplate)

# Whatever Python and Jinja read at the first use must be read before the worker gives up reading.
for _source in ("{{ strftime_now('%c') }}", "{{ 'a'|wordwrap|pprint }}", "{{ raise_exception('') }}", "{% for %}"):
    with suppress(ModelError):
        _compiled(_source, "", "").render({})


def run(channel: Channel, allowance: Allowance) -> None:
    """Answer requests to compile a template, and to render it if something is given."""
    answer(channel, allowance, _render)


def _render(header: Header, payload: bytearray) -> tuple[Header, bytes]:
    request = json.loads(payload)
    template = _compiled(request["source"], request["bos"], request["eos"])
    if "given" not in request:
        return {}, b""
    prompt = template.render(request["given"])
    return {}, prompt.encode(errors="surrogatepass")
