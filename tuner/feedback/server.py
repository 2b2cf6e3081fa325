"""A server for the page that keeps to itself: on this machine unless told otherwise, nothing to or from elsewhere."""

from __future__ import annotations

import contextlib
import ipaddress
import secrets
import socket
from pathlib import Path
from typing import Any
from urllib.parse import quote

from tuner.errors import ArgumentError, from_extra, notice

HERE = Path(__file__).parent
COOKIE = "tuner_token"
# The browser then fetches from this server alone, whatever a page or a library in it asks for.
POLICY = "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; frame-ancestors 'none'; form-action 'self'"
HEADERS = [(b"content-security-policy", POLICY.encode()), (b"referrer-policy", b"no-referrer")]


def listen(host: str, port: int) -> socket.socket:
    """Take an address; an ArgumentError where it cannot be had. Nobody is answered yet."""
    try:
        family, kind, proto, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        taken = socket.socket(family, kind, proto)
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(address)
    except OSError as error:
        raise ArgumentError(f"--host {host} --port {port}: {error.strerror or error}.") from None
    return taken


def serve(page: Any, taken: socket.socket, host: str, token: str | None) -> None:
    """Answer until Ctrl-C.

    Args:
        taken: from `listen`.
        token: needed for anything at all; None for none on this machine's own address, and for a new one on another.
    """
    gradio, fastapi, uvicorn = (from_extra(name, "ui") for name in ("gradio", "fastapi", "uvicorn"))
    address, port = taken.getsockname()[:2]
    own = ipaddress.ip_address(address).is_loopback
    names = {"127.0.0.1", "::1", "localhost", host} if own else None
    token = token or (None if own else secrets.token_urlsafe(24))
    app = fastapi.FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(Gate, token=token, names=names)
    gradio.mount_gradio_app(
        app, page, path="", footer_links=[], run_history=False, ssr_mode=False, enable_monitoring=False, pwa=False,
        mcp_server=False, theme=gradio.themes.Soft(font=_font("system-ui", "sans-serif"), font_mono=_font("monospace")),
        css_paths=HERE / "page.css", head=f"<script>{(HERE / 'page.js').read_text(encoding='utf-8')}</script>",
    )  # fmt: skip
    shown = f"[{host}]" if ":" in host else host
    taken.listen()  # who comes from now on waits for the answer
    notice(f"http://{shown}:{port}/{f'?token={quote(token)}' if token else ''}  (Ctrl-C stops)")
    config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1)
    with contextlib.suppress(KeyboardInterrupt):
        uvicorn.Server(config).run(sockets=[taken])


class Gate:
    """Who comes without the token gets nothing. It is brought once as `?token=`, then as a cookie, or as
    `Authorization: Bearer`. On a loopback address the name that was asked for must be one too, so that no page of
    another site reaches the server under a name of its own (DNS rebinding)."""

    def __init__(self, app: Any, token: str | None, names: set[str] | None):
        self.app, self.token, self.names = app, token, names

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """ASGI."""
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        from starlette.requests import HTTPConnection
        from starlette.responses import PlainTextResponse, RedirectResponse

        asked = HTTPConnection(scope)
        if self.names is not None and asked.url.hostname not in self.names:
            return await PlainTextResponse("Unknown host.", 400)(scope, receive, send)
        brought = asked.query_params.get("token")
        if self.token is not None:
            bearer = asked.headers.get("authorization", "").removeprefix("Bearer ")
            if not any(_same(given, self.token) for given in (brought, asked.cookies.get(COOKIE), bearer)):
                return await PlainTextResponse("A token is needed.", 401)(scope, receive, send)
            if _same(brought, self.token):
                answer = RedirectResponse("/", 303)
                answer.set_cookie(COOKIE, self.token, httponly=True, samesite="strict")
                return await answer(scope, receive, send)

        async def send_with_policy(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *HEADERS]
            await send(message)

        await self.app(scope, receive, send_with_policy)


def _same(given: str | None, token: str) -> bool:
    return given is not None and secrets.compare_digest(given.encode(), token.encode())


def _font(*names: str) -> list[Any]:
    # A name alone would be one to fetch from the net.
    return [from_extra("gradio.themes", "ui").Font(name) for name in names]
