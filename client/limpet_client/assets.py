"""The client for browsers as files to be served: its forms, made once of one source."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Final

from limpet_worker.http.files import File

CONTENT_TYPE: Final = "application/javascript; charset=utf-8"

_EXPORTS: Final = "\nexport {"
_CLASSIC: Final = """\
(function () {{
"use strict";
{body}
if (typeof module === "object" && module.exports) module.exports = io;
else if (typeof define === "function" && define.amd) define(() => io);
else globalThis.io = io;
}})();
"""
_BANNER: Final = "/* limpet: the Socket.IO client. To be read: {name} */\n"


@cache
def browser_files() -> Mapping[str, File]:
    """Return what is served below the Engine.IO path, by name.

    ``socket.io.js`` defines the global ``io``, ``socket.io.esm.js`` is a module; the names with
    ``.min`` are the same without comments and indentation.
    """
    module = source()
    script = classic(module)
    return {
        "socket.io.js": _file(script),
        "socket.io.min.js": _file(_BANNER.format(name="socket.io.js") + lean(script)),
        "socket.io.esm.js": _file(module),
        "socket.io.esm.min.js": _file(_BANNER.format(name="socket.io.esm.js") + lean(module)),
    }


def source() -> str:
    """Return the source: an ES module."""
    return (files("limpet_client") / "browser" / "limpet.js").read_text(encoding="utf-8")


def classic(module: str) -> str:
    """Return the module as a classic script: its last statement, the exports, is left out.

    Raises:
        ValueError: the module does not end with its exports.
    """
    body, exports, rest = module.rpartition(_EXPORTS)
    if not exports or not rest.endswith("};\n") or rest.count("}") != 1:
        raise ValueError("the module does not end with its exports")
    return _CLASSIC.format(body=body)


def lean(script: str) -> str:
    """Return a script without blank lines, indentation and comments that have lines of their own.

    No parser: the source has no text over several lines in which this would matter.
    """
    kept: list[str] = []
    comment = False
    for line in map(str.strip, script.splitlines()):
        comment = comment or line.startswith("/*")
        if not comment and line and not line.startswith("//"):
            kept.append(line)
        comment = comment and not line.endswith("*/")
    return "\n".join(kept) + "\n"


def _file(text: str) -> File:
    content = text.encode()
    return File(
        content,
        CONTENT_TYPE,
        hashlib.sha256(content).hexdigest()[:20],
        {
            "gzip": _compressed(content, zlib.MAX_WBITS | 16),
            "deflate": _compressed(content, zlib.MAX_WBITS),
        },
    )


def _compressed(content: bytes, wbits: int) -> bytes:
    compressor = zlib.compressobj(level=9, wbits=wbits)
    return compressor.compress(content) + compressor.flush()
