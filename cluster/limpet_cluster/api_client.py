"""Asking the HTTP API of the hub over the unix socket in the run directory, for the CLI."""

from __future__ import annotations

import http.client
import json
import os
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, urlencode

_PAGE: Final = 1000


class ApiError(Exception):
    """The API refused; the message is its own."""


class NotReachableError(Exception):
    """Nobody answers on the socket; the message names it."""


class NoAnswerError(Exception):
    """The answer did not come in time."""


class _UnixConnection(http.client.HTTPConnection):
    """An HTTP connection over a unix socket."""

    def __init__(self, path: Path, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        """Open the connection."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(os.fspath(self._path))


class ApiClient:
    """The hub's API, one request per connection.

    Args:
        path: the socket, ``api.sock`` in the run directory.
        timeout: seconds for each answer.
    """

    def __init__(self, path: Path, timeout: float = 5.0) -> None:
        self.path = path
        self.timeout = timeout

    def get(self, *parts: str, **query: object) -> Any:
        """Return the document of a resource; parts of the path are quoted.

        Raises:
            ApiError: another answer than 200.
            NotReachableError: nobody listens.
            NoAnswerError: no answer in time.
        """
        target = "/v1/" + "/".join(quote(part, safe="") for part in parts)
        given = {key: value for key, value in query.items() if value is not None}
        if given:
            target += "?" + urlencode(given)
        connection = _UnixConnection(self.path, self.timeout)
        try:
            connection.request("GET", target)
            response = connection.getresponse()
            body = response.read()
        except TimeoutError:
            raise NoAnswerError(f"no answer from {self.path} in {self.timeout:g} s") from None
        except OSError as error:
            raise NotReachableError(
                f"no hub answers at {self.path} ({error.strerror or error}); is the cluster "
                "running, and is it the one meant (--name, --run-dir)?"
            ) from None
        except http.client.HTTPException as error:
            raise ApiError(f"{self.path} does not speak HTTP: {error}") from None
        finally:
            connection.close()
        try:
            document = json.loads(body)
        except ValueError:
            document = None
        if response.status != 200:
            detail = document.get("detail") if isinstance(document, Mapping) else None
            raise ApiError(f"{response.status} {response.reason}: {detail or target}")
        return document

    def pages(self, *parts: str, most: int | None = None, **query: object) -> Iterator[Any]:
        """Return the items of a list, page after page, ``most`` at most."""
        cursor: str | None = None
        left = most
        while left is None or left > 0:
            size = _PAGE if left is None else min(_PAGE, left)
            document = self.get(*parts, limit=size, cursor=cursor, **query)
            yield from document["data"]
            if left is not None:
                left -= len(document["data"])
            cursor = document["next_cursor"]
            if cursor is None:
                return
