"""The page at `/` of the built-in chat: what runs here, and how to connect to it."""

from __future__ import annotations

import os
import platform
from html import escape
from string import Template
from typing import Final

from limpet_cluster.version import version

_PAGE: Final = Template("""\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>limpet is running</title>
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
<p class="quiet">A Socket.IO server, here with its built-in chat. Any Socket.IO client can talk to
it; a page that is a client itself comes later.</p>

<dl>
<dt>Address</dt><dd><code>$base</code></dd>
<dt>Version</dt><dd>limpet $version on $python</dd>
<dt>This page</dt><dd>served by $worker</dd>
<dt>Transports</dt><dd>$transports</dd>
<dt>Protocol</dt><dd>Engine.IO 4, Socket.IO 5 on <code>$path</code></dd>
</dl>

<h2>Connect with JavaScript</h2>
<pre><code>import { io } from "socket.io-client";

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
</table>
</div>
<p class="quiet">The others get <code>entered</code>, <code>left</code>, <code>renamed</code>,
<code>said</code> and <code>typing</code>.</p>

<h2>Look inside</h2>
<pre><code>limpet status
limpet presence rooms
limpet presence members harbour</code></pre>
</body>
</html>
""")


def page(*, base: str, path: str, transports: tuple[str, ...], worker: str) -> str:
    """Return the page.

    Args:
        base: the address as the browser knows it, for example ``http://localhost:8080``.
        path: the Engine.IO path.
        transports: what clients may connect by.
        worker: which worker answers.
    """
    interpreter = f"{platform.python_implementation()} {platform.python_version()}"
    return _PAGE.substitute(
        base=escape(base),
        path=escape(path),
        version=escape(version()),
        python=escape(interpreter),
        transports=escape(" and ".join(transports)),
        worker=escape(f"worker {worker}, pid {os.getpid()}"),
    )
