"""Files that are served beside Engine.IO, below its path: the client for browsers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from limpet_worker.http import answers
from limpet_worker.http.compression import negotiate
from limpet_worker.http.request import Head


@dataclass(frozen=True, slots=True)
class File:
    """A file that lives in memory, with its compressed forms.

    Anybody may load it from any page: it has no secret in it, and a module of another origin
    could not be imported otherwise.
    """

    content: bytes
    content_type: str
    etag: str
    """What changes with the content; the same for all of its forms, so it is sent as a weak one."""
    encoded: Mapping[str, bytes] = field(default_factory=dict)
    """By content coding (``gzip``, ``deflate``)."""

    def answer(self, head: Head, lines: bytes, *, compress: bool = True) -> bytes:
        """Return the answer to a request for the file; that to HEAD has the body too.

        Args:
            head: the request.
            lines: finished header lines (date, ``Connection``).
            compress: whether a compressed form may be sent.
        """
        if head.method not in {b"GET", b"HEAD"}:
            return answers.empty(405, b"Allow: GET, HEAD\r\n" + lines)
        lines = b"".join(
            (
                b"Cache-Control: public, max-age=0\r\n",
                b'ETag: W/"%b"\r\n' % self.etag.encode("ascii"),
                b"Access-Control-Allow-Origin: *\r\n",
                b"Vary: Accept-Encoding\r\n" if self.encoded else b"",
                lines,
            )
        )
        if _matches(head.headers.get(b"if-none-match", b""), self.etag):
            return answers.not_modified(lines)
        content = self.content
        coding = negotiate(head.headers.get(b"accept-encoding", b"")) if compress else ""
        if coding in self.encoded:
            content = self.encoded[coding]
            lines = b"Content-Encoding: %b\r\n" % coding.encode("ascii") + lines
        return answers.file(self.content_type, content, lines)


def _matches(if_none_match: bytes, etag: str) -> bool:
    """Compare weakly, as a GET does (RFC 9110 section 13.1.2)."""
    tags = [tag.strip() for tag in if_none_match.decode("latin-1").split(",")]
    return "*" in tags or any(tag.removeprefix("W/") == f'"{etag}"' for tag in tags)
