"""``/v1/embeddings``. Embedding models have no interface for guests, so these are computed by the server itself."""

from __future__ import annotations

import base64

import numpy as np
from numpy.typing import NDArray
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from wasmetal.errors import ModelError
from wasmetal.serve.body import engine_of, read
from wasmetal.serve.errors import bad_request
from wasmetal.serve.schema import EmbeddingBody


async def embeddings(request: Request) -> Response:
    """A vector for each text."""
    engine, body = engine_of(request), await read(request, EmbeddingBody)
    model = engine.embedder(body.model)
    request.scope["state"]["record"].model = model.name
    texts = [body.input] if isinstance(body.input, str) else body.input
    if len(texts) > engine.limits.inputs:
        raise bad_request(f"{len(texts)} texts; at most {engine.limits.inputs} are taken", "input")
    if body.dimensions not in (None, model.dimension):
        raise bad_request(f"{model.name} gives {model.dimension} dimensions, and no other number", "dimensions")

    def embed() -> tuple[NDArray[np.float32], int]:
        return model.embed(texts), sum(map(model.count, texts))

    try:
        vectors, tokens = await engine.on_a_thread(embed, request.scope["state"]["owner"])
    except ModelError as error:
        raise bad_request(str(error), "input") from None
    as_bytes = body.encoding_format == "base64"
    data = [
        {
            "object": "embedding",
            "index": index,
            "embedding": base64.b64encode(vector.tobytes()).decode() if as_bytes else vector.tolist(),
        }
        for index, vector in enumerate(vectors.astype("<f4"))
    ]
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return JSONResponse({"object": "list", "data": data, "model": model.name, "usage": usage})
