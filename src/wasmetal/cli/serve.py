"""``wasmetal serve``."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wasmetal.cli.options import DEFAULT_MODEL, Context, Device, KvType, OptionError, Precision, Quantize, size
from wasmetal.cli.serve_guests import Actors, Guests, guest_spec

if TYPE_CHECKING:
    from wasmetal.serve.recipe import Recipe


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
    conversations: Annotated[int, typer.Option(help="Most conversations that --actors keeps.", min=1)] = 10_000,
    max_tokens: Annotated[int | None, typer.Option(help="Most tokens of a completion.", min=1)] = None,
    piece_tokens: Annotated[
        int,
        typer.Option(help="Most tokens that are streamed together: fewer come sooner, more a second.", min=1, max=128),
    ] = 16,
    deterministic: Annotated[
        bool, typer.Option("--deterministic", help="Let answers not depend, bit for bit, on what else is running.")
    ] = False,
    resident: Annotated[
        int | None, typer.Option(help="Models that are loaded at a time, each when it is asked for.", min=1)
    ] = None,
    memory: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="Memory that models may take, such as 20GB.  [default: the device's]"),
    ] = None,
    idle_seconds: Annotated[
        float | None, typer.Option(help="Unload a model that nobody has asked for so long; it is loaded again.", min=1)
    ] = None,
    log_json: Annotated[
        bool, typer.Option("--log-json", help="Log each request, as a line of JSON on standard error.")
    ] = False,
    log_prompts: Annotated[
        bool, typer.Option("--log-prompts", help="Have these lines hold the prompts' texts.")
    ] = False,
    ray: Annotated[
        bool, typer.Option("--ray", help="Serve on Ray Serve: the cluster that RAY_ADDRESS names, or a new one.")
    ] = False,
    replicas: Annotated[
        int | None, typer.Option(help="Replicas on Ray.  [default: one for each GPU, or one]", min=1)
    ] = None,
    ray_min_replicas: Annotated[
        int | None, typer.Option(help="Fewest replicas on Ray, if their number follows the requests.", min=0)
    ] = None,
    ray_max_replicas: Annotated[
        int | None, typer.Option(help="Have the number of replicas follow the requests, up to this.", min=1)
    ] = None,
    ray_target_requests: Annotated[
        float | None,
        typer.Option(help="Requests of a replica that Ray then aims at.  [default: --parallel]", min=0.1),
    ] = None,
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
        from wasmetal.serve import log
        from wasmetal.serve.keys import new_key as make_key
        from wasmetal.serve.keys import read_keys
        from wasmetal.serve.limits import ServerLimits
        from wasmetal.serve.recipe import Recipe
        from wasmetal.serve.server import LOCAL, Server, is_loopback, listen
    except ModuleNotFoundError as error:
        raise OptionError(
            f"wasmetal serve needs {error.name}; install it with: pip install 'wasmetal[serve]'"
        ) from None

    if new_key is not None:
        print(*make_key(new_key), sep="\n")
        return
    keys = read_keys(api_key, api_keys)
    if not (keys or insecure or is_loopback(host)):
        raise OptionError(f"others can reach {host}: give --api-key or --api-keys, or say --insecure")
    if log_prompts and not log_json:
        raise OptionError("--log-prompts has prompts in the lines of --log-json: give both")
    scale = {"replicas": replicas, "least": ray_min_replicas, "most": ray_max_replicas, "ongoing": ray_target_requests}
    _check_scale(scale, ray=ray)
    if ray and (guest or actors):
        raise OptionError("--guest and --actors are not for --ray: replicas share no folders, and no conversations")
    recipe = Recipe(
        models=models or [DEFAULT_MODEL],
        limits=ServerLimits(
            running=parallel,
            waiting=queue,
            max_tokens=max_tokens,
            piece_tokens=piece_tokens,
            resident=parallel,
            conversations=conversations,
        ),
        keys=keys,
        loading={
            "context": context,
            # One is guaranteed to whoever loads the model, and as many conversations are awake as completions run.
            "contexts": parallel * (2 if actors else 1) + max(prefix_contexts, 1),
            "prefixes": prefix_contexts,
            "kv_type": kv_type,
            "quantize": quantize,
            "deterministic": deterministic,
        },
        device=device,
        precision=precision,
        resident=resident,
        memory_bytes=None if memory is None else size(memory),
        idle_seconds=idle_seconds,
        guests=tuple(map(guest_spec, guest or [])),
        actors=actors,
        # Without keys, the name under which it is asked for is all that keeps other sites' pages away.
        hosts=frozenset({*LOCAL, host}) if is_loopback(host) and not keys else None,
        origins=tuple(cors or ()),
        log_json=log_json,
        log_prompts=log_prompts,
    )
    if ray:
        _serve_on_ray(recipe, host, port, scale)
        return

    def started(address: str) -> None:
        engine = app.state.engine
        news = f"wasmetal serves {', '.join(engine.names)} on {engine.device.name} at {address}/v1"
        if log_json:
            log.log.info(news)
        else:
            _tell(news)

    with ExitStack() as stack:
        listener = stack.enter_context(listen(host, port))
        app = recipe.make(stack)
        Server(app, listener, started).run()


def _check_scale(scale: Mapping[str, float | None], *, ray: bool) -> None:
    """Raise OptionError if the options that say how many replicas there are do not go together."""
    if not ray and any(value is not None for value in scale.values()):
        raise OptionError("--replicas, and the options that begin with --ray-, are for --ray: give both")
    least, most = scale["least"], scale["most"]
    if most is None and (least is not None or scale["ongoing"] is not None):
        raise OptionError("--ray-min-replicas and --ray-target-requests need --ray-max-replicas")
    if most is not None and scale["replicas"] is not None:
        raise OptionError("the number of replicas is --replicas, or up to --ray-max-replicas: give one of them")
    if most is not None and least is not None and least > most:
        raise OptionError(f"--ray-min-replicas {least} is more than --ray-max-replicas {most}")


def _serve_on_ray(recipe: Recipe, host: str, port: int, scale: Mapping[str, Any]) -> None:
    try:
        from wasmetal.serve.on_ray import Scale, on_ray
    except ModuleNotFoundError as error:
        raise OptionError(f"--ray needs {error.name}; install it with: pip install 'wasmetal[ray]'") from None
    stop = threading.Event()
    with on_ray(recipe, host, port, Scale(**scale)) as begun:
        for each in (signal.SIGTERM, signal.SIGINT):  # which Ray has taken
            signal.signal(each, lambda *_: stop.set())
        _tell(f"wasmetal serves {', '.join(recipe.models)} on Ray at http://{host}:{port}/v1")
        if begun:
            stop.wait()
        else:
            _tell("it goes on serving; `serve shutdown` ends it")


def _tell(news: str) -> None:
    print(news, file=sys.stderr, flush=True)
