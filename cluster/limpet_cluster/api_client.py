"""Asking the HTTP API of the hub over the unix socket in the run directory, for the CLI."""

from __future__ import annotations

import grp
import http
import http.client
import json
import os
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, urlencode

from limpet_cluster.place import which_one

_PAGE: Final = 1000


class ApiError(Exception):
    """The API refused; the message is its own.

    Args:
        message: what to show.
        status: of the answer; 0 when it was none of HTTP's.
    """

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


class NotReachableError(Exception):
    """Nobody answers on the socket; the message names it."""


class NotAllowedError(NotReachableError):
    """The socket is there, and not for this user."""


class NoAnswerError(Exception):
    """The answer did not come in time: that of the hub, or that of a worker to the hub."""


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
            ApiError: no success.
            NotReachableError: nobody listens; `NotAllowedError`: or not for this user.
            NoAnswerError: no answer in time.
        """
        return self._ask("GET", parts, query)

    def post(self, *parts: str, body: object = None, **query: object) -> Any:
        """Have something done and return the document that is answered; raises as `get`.

        Args:
            body: sent as JSON; None: no body.
        """
        return self._ask("POST", parts, query, body)

    def delete(self, *parts: str, **query: object) -> Any:
        """Delete a resource and return the document that is answered, or None; raises as `get`."""
        return self._ask("DELETE", parts, query)

    def _ask(
        self, method: str, parts: tuple[str, ...], query: Mapping[str, object], body: object = None
    ) -> Any:
        if not all(parts):
            raise ApiError("expected a name, and got an empty one")
        # What the shell gave and is no UTF-8 goes out as it is: the API says what is wrong.
        target = "/v1/" + "/".join(quote(part, "", "utf-8", "surrogateescape") for part in parts)
        given = {key: value for key, value in query.items() if value is not None}
        if given:
            target += "?" + urlencode(given, errors="surrogateescape")
        connection = _UnixConnection(self.path, self.timeout)
        try:
            if body is None:
                connection.request(method, target)
            else:
                content = json.dumps(body).encode()
                connection.request(method, target, content, {"Content-Type": "application/json"})
            response = connection.getresponse()
            answer = response.read()
        except TimeoutError:
            raise NoAnswerError(f"no answer from {self.path} in {self.timeout:g} s") from None
        except PermissionError:
            raise NotAllowedError(
                f"{self.path} is not open to you: run this as the user of the cluster, or with "
                f"sudo{_group_of(self.path)}"
            ) from None
        except OSError as error:
            raise NotReachableError(
                f"no hub answers at {self.path} ({error.strerror or error}); "
                f"is the cluster running, and {which_one(self.path.parent)}"
            ) from None
        except http.client.HTTPException as error:
            raise ApiError(f"{self.path} does not speak HTTP: {error}") from None
        finally:
            connection.close()
        try:
            document = json.loads(answer) if answer else None
        except ValueError:
            document = None
        if not 200 <= response.status < 300:
            detail = document.get("detail") if isinstance(document, Mapping) else None
            if response.status == http.HTTPStatus.GATEWAY_TIMEOUT:
                raise NoAnswerError(str(detail or target))
            raise ApiError(
                f"{response.status} {response.reason}: {detail or target}", response.status
            )
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


def _group_of(path: Path) -> str:
    """Return whose members the socket lets in, for a message; empty where that helps nobody."""
    try:
        status = path.stat()
        group = grp.getgrgid(status.st_gid).gr_name
    except (OSError, KeyError):
        return ""
    if status.st_mode & 0o060 != 0o060:
        return ""
    return f"; whoever is in the group {group} may use it: sudo usermod -aG {group} USER"
