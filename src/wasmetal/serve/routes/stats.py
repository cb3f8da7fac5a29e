"""``/stats``: what happens at the moment, for the page."""

from __future__ import annotations

import time
from importlib.metadata import version
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from wasmetal.models import Embedder, Model
from wasmetal.serve.body import engine_of
from wasmetal.serve.conversations import Conversations
from wasmetal.serve.engine import Engine
from wasmetal.serve.guest_model import GuestModel
from wasmetal.serve.limits import ServerLimits


async def stats(request: Request) -> Response:
    """Figures of the server, and the guests of whoever asks."""
    engine, owner = engine_of(request), request.scope["state"]["owner"]
    body = {
        "version": version("wasmetal"),
        "time": time.monotonic(),
        "draining": engine.admission.draining,
        "running": engine.admission.running,
        "waiting": engine.admission.waiting,
        "places": engine.limits.running,
        "totals": _totals(engine),
        "device": _device(engine),
        "conversations": engine.conversations and _conversations(engine.conversations, engine.limits),
        "models": [
            *(_model(name, model) for name, model in engine.models.items()),
            *_unloaded(engine),
            *map(_guest, engine.guests.values()),
        ],
        "guests": engine.roster.here(owner),
        "ended": engine.roster.ended(owner),
    }
    return JSONResponse(body, headers={"Cache-Control": "no-store"})


def _totals(engine: Engine) -> dict[str, Any]:
    cost = engine.roster.counters()
    return {
        "completion_tokens": engine.metrics.drawn,
        "bytes_copied": cost.bytes_copied,
        "bytes_shared": cost.bytes_shared,
        "device_seconds": round(cost.device_seconds, 4),
        "kernels": cost.dispatches,
    }


def _device(engine: Engine) -> dict[str, Any] | None:
    """The device, and how much of its memory the models use."""
    if engine.device is None:
        return None
    info, models = engine.device, engine.models.values()
    used = sum(_weights(model) + (_cache(model)["bytes"] if isinstance(model, Model) else 0) for model in models)
    return {
        "name": info.name,
        "backend": info.backend,
        "unified": info.unified,
        "memory_bytes": info.memory_bytes,
        "used_bytes": used,
    }


def _conversations(conversations: Conversations, limits: ServerLimits) -> dict[str, int]:
    """Of all keys: how many are awake, and what they hold; the others are frozen."""
    stats = conversations.host.stats()
    return {
        "awake": stats.resident,
        "places": limits.resident,
        "thawed": stats.thawed,
        "memory_bytes": stats.memory_bytes,
        "device_bytes": stats.device_bytes,
    }


def _model(name: str, model: Model | Embedder) -> dict[str, Any]:
    about: dict[str, Any] = {
        "id": name,
        "kind": "text" if isinstance(model, Model) else "embeddings",
        "context": model.context_length,
        "loaded": True,
        "weights_bytes": _weights(model),
    }
    if isinstance(model, Model):
        about["cache"] = _cache(model)
        about["batches"], about["batched"] = model.batches.submitted, model.batches.jobs
    return about


def _guest(guest: GuestModel) -> dict[str, Any]:
    """A guest that is a model itself."""
    return {
        "id": guest.name,
        "kind": "guest",
        "loaded": True,
        "program": guest.program.digest,
        "models": sorted({model.name for model in guest.models.values()}),
    }


def _unloaded(engine: Engine) -> list[dict[str, Any]]:
    return [
        {
            "id": plan.name,
            "kind": "embeddings" if plan.embeds else "text",
            "context": plan.context,
            "loaded": False,
            "planned_bytes": plan.nbytes,
        }
        for plan in engine.shelf.plans()
        if plan.name not in engine.models
    ]


def _weights(model: Model | Embedder) -> int:
    return model.counters.bytes_loaded + model.counters.bytes_shared


def _cache(model: Model) -> dict[str, int]:
    """How much of the KV cache is in use."""
    cache, kept = model.cache, model.prefixes
    return {
        "bytes": cache.held * cache.page_bytes,
        "most_bytes": cache.pages * cache.page_bytes,
        "prefix_bytes": len(kept) * cache.page_bytes if kept else 0,
    }
