"""``wasmetal serve``."""

from __future__ import annotations

import logging
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from wasmetal.cli.options import DEFAULT_MODEL, Context, Device, KvType, OptionError, Precision, Quantize
from wasmetal.cli.serve_guests import Actors, Guests, GuestSpec

if TYPE_CHECKING:
    from wasmetal.models import Embedder


def serve(
    models: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[MODEL]...",
            help=f"Models by name, GGUF files or folders; for text, or for embeddings.  [default: {DEFAULT_MODEL}]",
            show_default=False,
        ),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0 is a free one.", min=0, max=65535)] = 8080,
    api_key: Annotated[
        str | None,
        typer.Option(
            envvar="WASMETAL_API_KEY", metavar="KEY", help="Ask for this key. Others can see it in the process list."
        ),
    ] = None,
    api_keys: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Ask for one of the keys whose SHA-256 is in a file.")
    ] = None,
    new_key: Annotated[
        str | None, typer.Option(metavar="NAME", help="Print a new key, and its line for --api-keys, and exit.")
    ] = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Ask for no key, though others can reach the server.")
    ] = False,
    cors: Annotated[
        list[str] | None, typer.Option(metavar="ORIGIN", help="Let pages of this site use the server from a browser.")
    ] = None,
    parallel: Annotated[int, typer.Option(help="Completions at a time.", min=1, max=256)] = 8,
    queue: Annotated[int, typer.Option(help="Completions that may wait for their turn.", min=0)] = 64,
    prefix_contexts: Annotated[
        int, typer.Option(help="Contexts of the KV cache for what prompts have in common; 0: none.", min=0, max=256)
    ] = 1,
    guest: Guests = None,
    actors: Actors = None,
    max_tokens: Annotated[int | None, typer.Option(help="Most tokens of a completion.", min=1)] = None,
    deterministic: Annotated[
        bool, typer.Option("--deterministic", help="Let answers not depend, bit for bit, on what else is running.")
    ] = False,
    context: Context = None,
    kv_type: KvType = None,
    quantize: Quantize = None,
    device: Device = None,
    precision: Precision = None,
) -> None:
    """Serve models to clients of OpenAI's API. Every completion is a guest in its own sandbox.

    It listens on this machine alone unless --host says otherwise, and then wants keys. SIGTERM and Ctrl-C let running
    requests finish; a second one ends them.
    """
    try:
        from wasmetal.serve.app import application
        from wasmetal.serve.engine import Engine
        from wasmetal.serve.keys import new_key as make_key
        from wasmetal.serve.keys import read_keys
        from wasmetal.serve.limits import ServerLimits
        from wasmetal.serve.server import LOCAL, Server, is_loopback, listen
    except ModuleNotFoundError as error:
        raise OptionError(
            f"wasmetal serve needs {error.name}; install it with: pip install 'wasmetal[serve]'"
        ) from None
    from wasmetal.device import open_device
    from wasmetal.models import Model, load_embedder, load_model

    if new_key is not None:
        print(*make_key(new_key), sep="\n")
        return
    keys = read_keys(api_key, api_keys)
    if not (keys or insecure or is_loopback(host)):
        raise OptionError(f"others can reach {host}: give --api-key or --api-keys, or say --insecure")
    specs = [GuestSpec.parse(each) for each in guest or []]
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s", level=logging.WARNING)

    def load(name: str) -> Model | Embedder:
        if _makes_embeddings(name):
            return stack.enter_context(load_embedder(name, opened))
        model = load_model(
            name,
            opened,
            context=context,
            # One is guaranteed to whoever loads the model, and as many conversations are awake as completions run.
            contexts=parallel * (2 if actors else 1) + max(prefix_contexts, 1),
            prefixes=prefix_contexts,
            kv_type=kv_type,
            quantize=quantize,
            deterministic=deterministic,
        )
        return stack.enter_context(model)

    def granted(name: str) -> Model:
        """A model for a guest: one that is served, or another."""
        model = loaded.get(name) or extra.get(name) or load(name)
        if not isinstance(model, Model):
            raise OptionError(f"{name} makes embeddings, and cannot be granted to a guest")
        extra[name] = model
        return model

    def started(address: str) -> None:
        served = f"{', '.join([*engine.models, *engine.guests])} on {opened.info.name}"
        print(f"wasmetal serves {served} at {address}/v1", file=sys.stderr, flush=True)

    with ExitStack() as stack:
        listener = stack.enter_context(listen(host, port))
        opened = stack.enter_context(open_device(device, precision))
        loaded = {name: load(name) for name in models or [DEFAULT_MODEL]}
        extra: dict[str, Model] = {}
        first = next((model for model in loaded.values() if isinstance(model, Model)), None)
        engine = Engine(
            list(loaded.values()),
            ServerLimits(running=parallel, waiting=queue, max_tokens=max_tokens, resident=parallel),
            guests=[spec.load(first, granted) for spec in specs],
            actors=actors,
        )
        # Without keys, the name under which it is asked for is all that keeps other sites' pages away.
        hosts = {*LOCAL, host} if is_loopback(host) and not keys else None
        server = Server(application(engine, keys=keys, hosts=hosts, origins=cors or ()), listener, started)
        server.run()


def _makes_embeddings(name: str) -> bool:
    from wasmetal.models.architectures.bert import Bert
    from wasmetal.models.files import store
    from wasmetal.models.hf_folder import open_model_file

    return open_model_file(store.resolve(name)).get("general.architecture", str, "") == Bert.name
