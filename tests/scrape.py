"""Scrapes of ``/metrics``, read with the parsers of the Prometheus client library."""

from __future__ import annotations

import http.client
import socket
from collections.abc import Callable, Iterable
from pathlib import Path

from prometheus_client import Metric
from prometheus_client.openmetrics import parser as openmetrics
from prometheus_client.parser import text_string_to_metric_families

_strict: Callable[[str], Iterable[Metric]] = openmetrics.text_string_to_metric_families
_plain: Callable[[str], Iterable[Metric]] = text_string_to_metric_families
OPENMETRICS = "application/openmetrics-text;version=1.0.0"


def fetch(run_directory: Path, accept: str = "", path: str = "/metrics") -> tuple[int, str, str]:
    """Return status, content type and body of an answer of the API."""
    connection = http.client.HTTPConnection("localhost", timeout=10)
    connection.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.sock.settimeout(10)
    connection.sock.connect(str(run_directory / "api.sock"))
    try:
        connection.request("GET", path, headers={"Accept": accept} if accept else {})
        answer = connection.getresponse()
        return answer.status, answer.headers["Content-Type"], answer.read().decode()
    finally:
        connection.close()


class Scrape:
    """The figures of one answer."""

    def __init__(self, text: str, families: Iterable[Metric]) -> None:
        self.text = text
        self.families = {family.name: family for family in families}
        self.samples = [one for family in self.families.values() for one in family.samples]

    @classmethod
    def of(cls, run_directory: Path) -> Scrape:
        """Scrape as OpenMetrics, whose parser is the stricter one; the other reads the same."""
        status, kind, text = fetch(run_directory, OPENMETRICS)
        assert status == 200
        assert kind == "application/openmetrics-text; version=1.0.0; charset=utf-8"
        return cls(text, _strict(text))

    @classmethod
    def plain(cls, run_directory: Path) -> Scrape:
        """Scrape in the older text format."""
        status, kind, text = fetch(run_directory)
        assert status == 200
        assert kind == "text/plain; version=0.0.4; charset=utf-8"
        return cls(text, _plain(text))

    def each(self, name: str, /, **labels: str) -> list[float]:
        """Return the values of all samples of a name with these labels."""
        return [
            one.value
            for one in self.samples
            if one.name == name and labels.items() <= one.labels.items()
        ]

    def total(self, name: str, /, **labels: str) -> float:
        """Return the sum of all samples of a name with these labels; 0 without any."""
        return sum(self.each(name, **labels))

    def values(self, name: str, label: str) -> set[str]:
        """Return the values a label has in the samples of a name."""
        return {one.labels.get(label, "") for one in self.samples if one.name == name}
