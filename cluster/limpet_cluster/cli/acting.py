"""What the commands have in common that speak with the HTTP API."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from limpet_cluster.api_client import ApiClient, ApiError, NoAnswerError, NotReachableError
from limpet_cluster.cli import options
from limpet_cluster.place import api_socket

ANSWER: Final = 5.0
"""Seconds for one answer of the API."""


def client_of(run_dir: str | None, name: str, timeout: float = ANSWER) -> ApiClient:
    """Return the API of the cluster that the options name."""
    return ApiClient(api_socket(options.run_directory(run_dir, name), name), timeout)


@contextmanager
def answered() -> Iterator[None]:
    """Turn what may go wrong when the API is asked into a message and an exit code."""
    try:
        yield
    except NotReachableError as error:
        raise options.Unreachable(str(error)) from None
    except NoAnswerError as error:
        raise options.TimedOut(str(error)) from None
    except ApiError as error:
        raise options.Failure(str(error)) from None
