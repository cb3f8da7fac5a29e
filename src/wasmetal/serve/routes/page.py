"""``/``: a page to chat with the models, and to watch the guests. Its files are in ``serve/page/``."""

from __future__ import annotations

from pathlib import Path

from starlette.requests import Request
from starlette.responses import FileResponse, Response

_FOLDER = Path(__file__).parents[1] / "page"
_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
FILES = {
    "/": "index.html",
    **{f"/page/{path.name}": path.name for path in sorted(_FOLDER.iterdir()) if path.suffix in (".css", ".js", ".svg")},
}
"""Each path, and its file. They hold nothing that is secret, and need no key."""
_HEADERS = {
    "Cache-Control": "no-cache",
    # Nothing from elsewhere, nothing written into the page, and the page in nobody's frame.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


async def file(request: Request) -> Response:
    """One of them."""
    path = _FOLDER / FILES[request.url.path]
    return FileResponse(path, media_type=_TYPES[path.suffix], headers=_HEADERS)
