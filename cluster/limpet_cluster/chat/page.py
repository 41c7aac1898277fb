"""The pages of the built-in chat: the chat at `/`, and at `/about` what runs and how to connect."""

from __future__ import annotations

import hashlib
import os
import platform
import re
from html import escape
from pathlib import Path
from string import Template
from typing import Final

from aiohttp import web

from limpet_cluster.version import version
from limpet_worker.socketio.server import Server

_FILES: Final = Path(__file__).parent / "chat_page"
_TYPES: Final = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
_HOST: Final = re.compile(
    r"[A-Za-z0-9.-]{1,253}(:[0-9]{1,5})?|\[[0-9A-Fa-f:.]{2,45}\](:[0-9]{1,5})?"
)

_ABOUT: Final = Template("""\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>limpet is running</title>
<link rel="icon" href="/chat/icon.svg">
<style>
:root {
  color-scheme: light dark;
  --ground: #fbfaf8; --text: #22272b; --quiet: #646b72; --line: #dedad3;
  --panel: #ffffff; --accent: #0b6e6e;
}
@media (prefers-color-scheme: dark) {
  :root {
    --ground: #14181b; --text: #e4e7e9; --quiet: #9aa3aa; --line: #2d3439;
    --panel: #1b2125; --accent: #5cc8c0;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0 auto; padding: 2.5rem 1.25rem 4rem; max-width: 46rem;
  background: var(--ground); color: var(--text);
  font: 1rem/1.6 system-ui, -apple-system, "Segoe UI", sans-serif;
}
h1 { margin: 0 0 .25rem; font-size: 1.7rem; line-height: 1.25; }
h2 { margin: 2.25rem 0 .5rem; font-size: 1.1rem; }
p { margin: .5rem 0; }
.quiet { color: var(--quiet); }
.dot {
  display: inline-block; width: .65em; height: .65em; margin-right: .4em;
  border-radius: 50%; background: var(--accent);
}
dl {
  display: grid; grid-template-columns: max-content 1fr; gap: .35rem 1.25rem;
  margin: 1.5rem 0 0; padding: 1rem 1.25rem;
  background: var(--panel); border: 1px solid var(--line); border-radius: .6rem;
}
dt { color: var(--quiet); }
dd { margin: 0; overflow-wrap: anywhere; }
a { color: var(--accent); }
pre {
  margin: .5rem 0; padding: .9rem 1.1rem; overflow-x: auto; tab-size: 4;
  background: var(--panel); border: 1px solid var(--line); border-radius: .6rem;
  font-size: .875rem; line-height: 1.5;
}
code { font-family: ui-monospace, "SF Mono", Menlo, Consolas, monospace; }
table { width: 100%; border-collapse: collapse; font-size: .925rem; }
th, td {
  padding: .35rem .75rem .35rem 0; border-bottom: 1px solid var(--line);
  text-align: left; vertical-align: top;
}
th { color: var(--quiet); font-weight: 500; }
.scroll { overflow-x: auto; }
@media (max-width: 30rem) {
  body { padding-top: 1.5rem; }
  dl { grid-template-columns: 1fr; gap: 0; }
  dd + dt { margin-top: .6rem; }
}
</style>
</head>
<body>
<h1><span class="dot" aria-hidden="true"></span>limpet is running</h1>
<p class="quiet">A Socket.IO server, here with its built-in chat. <a href="/">Chat in the
browser</a>, or with any Socket.IO client.</p>

<dl>
<dt>Address</dt><dd><code>$base</code></dd>
<dt>Version</dt><dd>limpet $version on $python</dd>
<dt>This page</dt><dd>served by $worker</dd>
<dt>Transports</dt><dd>$transports</dd>
<dt>Protocol</dt><dd>Engine.IO 4, Socket.IO 5 on <code>$path</code></dd>
</dl>

<h2>Connect with JavaScript</h2>
<pre><code>import { io } from "$base${path}socket.io.esm.js"; // or "socket.io-client"

const socket = io("$base", { auth: { name: "Ada" } });
socket.on("said", ({ user, text }) =&gt; console.log(user + ": " + text));

const { users } = await socket.emitWithAck("enter", "harbour");
await socket.emitWithAck("say", "harbour", "Hello from JavaScript");</code></pre>

<h2>Connect with Python</h2>
<pre><code>import asyncio
import socketio

async def main():
    client = socketio.AsyncClient()
    client.on("said", lambda said: print(said["user"], said["text"]))
    await client.connect("$base", auth={"name": "Grace"})
    print(await client.call("enter", "harbour"))
    print(await client.call("say", ("harbour", "Hello from Python")))
    await client.wait()

asyncio.run(main())</code></pre>

<h2>What the chat understands</h2>
<div class="scroll">
<table>
<tr><th scope="col">Event</th><th scope="col">Arguments</th><th scope="col">What it does</th></tr>
<tr><td><code>name</code></td><td>name</td><td>take another name</td></tr>
<tr><td><code>enter</code></td><td>room</td><td>enter a room; answers who is in it</td></tr>
<tr><td><code>leave</code></td><td>room</td><td>leave it</td></tr>
<tr><td><code>say</code></td><td>room, text</td><td>say something to the others</td></tr>
<tr><td><code>typing</code></td><td>room, true or false</td><td>tell them that you type</td></tr>
<tr><td><code>who</code></td><td>room</td><td>answers who is in a room</td></tr>
<tr><td><code>shown</code></td><td>room, from, ids</td><td>tell a sender that you saw it</td></tr>
<tr><td><code>picture</code></td><td>room, {id, type, size, name}</td><td>announce one</td></tr>
<tr><td><code>piece</code></td><td>id, number, bytes</td><td>send a piece of it</td></tr>
<tr><td><code>missing</code></td><td>room, from, id, numbers</td><td>ask for pieces again</td></tr>
</table>
</div>
<p class="quiet">The others get <code>entered</code>, <code>left</code>, <code>renamed</code>,
<code>people</code>, <code>said</code>, <code>typing</code>, <code>picture</code> and
<code>piece</code>.</p>

<h2>Look inside</h2>
<pre><code>limpet status
limpet presence rooms
limpet presence members harbour</code></pre>
</body>
</html>
""")


def about(*, base: str, path: str, transports: tuple[str, ...], worker: str) -> str:
    """Return the page that says what runs.

    Args:
        base: the address as the browser knows it, for example ``http://localhost:8080``.
        path: the Engine.IO path, with a slash at its end.
        transports: what clients may connect by.
        worker: which worker answers.
    """
    interpreter = f"{platform.python_implementation()} {platform.python_version()}"
    return _ABOUT.substitute(
        base=escape(base),
        path=escape(path),
        version=escape(version()),
        python=escape(interpreter),
        transports=escape(" and ".join(transports)),
        worker=escape(f"worker {worker}, pid {os.getpid()}"),
    )


def content_policy(host: str) -> str:
    """Return the Content-Security-Policy of the chat: its own files, and nothing that is inline.

    Args:
        host: the ``Host`` of the request. Not every browser takes ``'self'`` to include
            WebSockets of the same origin, so they are named.
    """
    sockets = f" ws://{host} wss://{host}" if _HOST.fullmatch(host) else ""
    return "; ".join((
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' blob:",
        f"connect-src 'self'{sockets}",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        # Text can only become text: what would make markup of a string throws.
        "require-trusted-types-for 'script'",
    ))  # fmt: skip


def add_routes(io: Server) -> None:
    """Serve the chat's pages and their files."""
    index = Template((_FILES / "index.html").read_text(encoding="utf-8"))
    path = f"{io.options.path.rstrip('/')}/"
    page = index.substitute(path=escape(path))

    async def chat(request: web.Request) -> web.Response:
        policy = content_policy(request.host)
        return _answer(request, page.encode(), "text/html", {"Content-Security-Policy": policy})

    async def what_runs(request: web.Request) -> web.Response:
        text = about(
            base=str(request.url.origin()),
            path=path,
            transports=io.options.transports,
            worker=io.worker_name,
        )
        # The page brings everything along; whatever else gets into it is not run.
        policy = "default-src 'none'; style-src 'unsafe-inline'; img-src 'self'"
        return _answer(request, text.encode(), "text/html", {"Content-Security-Policy": policy})

    router = io.app.router
    router.add_get("/", chat)
    router.add_get("/about", what_runs)
    for file in sorted(_FILES.iterdir()):
        if file.suffix in _TYPES:
            router.add_get(f"/chat/{file.name}", _File(file).serve)


class _File:
    """One file of the page, read once."""

    __slots__ = ("_body", "_type")

    def __init__(self, path: Path) -> None:
        self._body = path.read_bytes()
        self._type = _TYPES[path.suffix]

    async def serve(self, request: web.Request) -> web.Response:
        return _answer(request, self._body, self._type, {})


def _answer(request: web.Request, body: bytes, type_: str, headers: dict[str, str]) -> web.Response:
    """Answer with something a browser may keep, but asks about each time whether it is still so."""
    tag = hashlib.sha256(body).hexdigest()[:20]
    headers = {
        "Cache-Control": "no-cache",
        "ETag": f'"{tag}"',
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
        **headers,
    }
    if any(one.value in {tag, "*"} for one in request.if_none_match or ()):
        return web.Response(status=304, headers=headers)
    response = web.Response(body=body, content_type=type_, charset="utf-8", headers=headers)
    response.enable_compression()
    return response
