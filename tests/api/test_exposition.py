"""The metrics formats: what is written reads back the same, whatever the names and labels are."""

from __future__ import annotations

import ast
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.openmetrics import parser as openmetrics
from prometheus_client.parser import text_string_to_metric_families

from limpet_adapters import counters as figures
from limpet_adapters.counters import full_name
from limpet_cluster.hub import zeros
from limpet_cluster.hub.catalogue import HELP
from limpet_cluster.hub.exposition import Report, Source, number, render, split, wants_openmetrics

ROOT = Path(__file__).parents[2]
PROMETHEUS = (
    "application/openmetrics-text;version=1.0.0;q=0.6,"
    "application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=0.0.4;q=0.4,*/*;q=0.1"
)
REGISTERING = frozenset(("count", "gauge", "histogram", "observe", "series", "full_name"))


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give each test figures of its own."""
    for name in ("counters", "_families"):
        monkeypatch.setattr(figures, name, type(getattr(figures, name))())
    for name in ("gauges", "histograms", "_known"):
        monkeypatch.setattr(figures, name, {})


def own(**labels: str) -> Source:
    return Source(labels, figures.counters, figures.gauges, figures.reports())


def read(
    text: bytes, *, strict: bool = False
) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    parse = openmetrics.text_string_to_metric_families if strict else text_string_to_metric_families
    return {
        (one.name, tuple(sorted(one.labels.items()))): one.value
        for family in parse(text.decode())
        for one in family.samples
    }


def test_counters_gauges_and_histograms() -> None:
    figures.count("limpet_x_total", 3, reason="one")
    figures.count("limpet_x_total", reason="two")
    figures.gauge("limpet_y", 1.5)
    for value in (0.5, 1.0, 1.5, 99):
        figures.observe("limpet_z_seconds", value, (1, 2), kind="k")
    for strict in (False, True):
        samples = read(render([own(worker="w0")], openmetrics=strict), strict=strict)
        w = ("worker", "w0")
        k = ("kind", "k")
        assert samples == {
            ("limpet_x_total", (("reason", "one"), w)): 3,
            ("limpet_x_total", (("reason", "two"), w)): 1,
            ("limpet_y", (w,)): 1.5,
            ("limpet_z_seconds_bucket", (k, ("le", "1.0"), w)): 2,
            ("limpet_z_seconds_bucket", (k, ("le", "2.0"), w)): 3,
            ("limpet_z_seconds_bucket", (k, ("le", "+Inf"), w)): 4,
            ("limpet_z_seconds_sum", (k, w)): 102,
            ("limpet_z_seconds_count", (k, w)): 4,
        }


def test_every_family_has_help_and_type_once() -> None:
    figures.count("limpet_sessions_opened_total", transport="polling")
    text = render([own(worker="w0"), own(worker="w1")]).decode()
    assert text.splitlines() == [
        f"# HELP limpet_sessions_opened_total {HELP['limpet_sessions_opened_total']}",
        "# TYPE limpet_sessions_opened_total counter",
        'limpet_sessions_opened_total{transport="polling",worker="w0"} 1',
        'limpet_sessions_opened_total{transport="polling",worker="w1"} 1',
    ]
    strict = render([own()], openmetrics=True).decode().splitlines()
    assert strict[1:] == [
        "# TYPE limpet_sessions_opened counter",
        'limpet_sessions_opened_total{transport="polling"} 1',
        "# EOF",
    ]


@given(st.text(max_size=20), st.floats(allow_nan=False, allow_infinity=False))
def test_any_label_value_and_figure(value: str, figure: float) -> None:
    value = value.encode("utf-8", "ignore").decode()
    name = figures.full_name("limpet_y", {"label": value})
    for strict in (False, True):
        text = render([Source({"worker": "w0"}, {}, {name: figure}, ())], openmetrics=strict)
        if "\r" in value:
            continue  # the library's parsers end lines there, which the formats do not
        samples = read(text, strict=strict)
        ((found, labels),) = samples
        assert found == "limpet_y"
        assert dict(labels)["label"] == value
        assert math.isclose(samples[found, labels], figure, rel_tol=1e-12)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "Limpet",
        "limpet x",
        'x{a="b}',
        'x{a="b"',
        'x{a="b",}',
        "x{}",
        'x{a="b\n"}',
        'x{a="\\x"}',
    ],
)
def test_what_is_no_name_is_left_out(name: str) -> None:
    assert split(name) == ("", "")
    text = render([Source({}, {name: 1}, {"good": 1}, [(name, (1.0,), [1, 1], 2.0)])])
    assert read(text) == {("good", ()): 1}


def test_a_name_of_two_kinds_and_a_broken_histogram() -> None:
    bad: list[Report] = [("limpet_y", (1.0,), [1, 1], 1.0), ("limpet_h", (1.0, 2.0), [1], 1.0)]
    text = render([Source({}, {}, {"limpet_y": 1}, ()), Source({}, {}, {}, bad)])
    assert read(text) == {("limpet_y", ()): 1}


def test_labels_are_bounded() -> None:
    for n in range(figures.MOST_SERIES + 50):
        figures.count("limpet_x_total", reason=f"reason {n}", kind="k")
    text = render([own()])
    samples = read(text)
    assert len([one for one in samples if one[0] == "limpet_x_total"]) == figures.MOST_SERIES + 1
    assert samples["limpet_x_total", (("kind", "k"), ("reason", "other"))] == 50
    assert samples["limpet_series_refused_total", ()] == 50
    figures.count("limpet_x_total", reason="reason 0", kind="k")  # the known ones go on
    assert figures.counters['limpet_x_total{reason="reason 0",kind="k"}'] == 2
    figures.count("limpet_long_total", reason="x" * 1000)
    assert max(map(len, figures.counters)) < 200


def test_gauges_can_be_taken_away() -> None:
    figures.gauge("limpet_y", 1, state="a")
    figures.gauge("limpet_y", None, state="a")
    figures.gauge("limpet_y", None, state="never")
    assert figures.gauges == {}


@pytest.mark.parametrize(
    ("accept", "wanted"),
    [
        ("", False),
        ("*/*", False),
        ("text/plain", False),
        ("application/openmetrics-text", True),
        ("application/openmetrics-text; version=1.0.0; charset=utf-8", True),
        ("application/openmetrics-text;version=0.0.1", False),
        ("application/openmetrics-text;q=0.2,text/plain;q=0.9", False),
        ("application/openmetrics-text;q=nonsense", False),
        (PROMETHEUS, True),
    ],
)
def test_which_format(accept: str, wanted: bool) -> None:
    assert wants_openmetrics(accept) is wanted


def test_numbers() -> None:
    assert [number(one) for one in (1, 2.0, 0.25, 1e300, -3)] == ["1", "2", "0.25", "1e+300", "-3"]


def test_the_catalogue_is_complete() -> None:
    """Each family that the code names has a help text, and each help text has a family."""
    named: set[str] = set()
    other: set[str] = set()
    for package in ("adapters", "balancer", "worker", "cluster"):
        for path in (ROOT / package).rglob("*.py"):
            if path.name == "catalogue.py":
                continue
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    other.add(node.value.partition("{")[0])
                if (
                    isinstance(node, ast.Call)
                    and isinstance(node.func, ast.Name)
                    and node.func.id in REGISTERING
                    and node.args
                    and isinstance(node.args[0], ast.Constant)
                    and str(node.args[0].value).startswith(("limpet_", "process_"))
                ):
                    named.add(str(node.args[0].value))
    assert named - HELP.keys() == set()
    # Those whose names are put together, or written by rule.
    made = {
        *(f"limpet_balancer_{part}_total" for part in _parts("fd_passed rejected migrated")),
        *(f"limpet_balancer_{part}_total" for part in _parts("accepted redispatched routed")),
        *(f"limpet_bus_{part}" for part in _parts("ready topics messages_total bytes_total")),
        *(f"limpet_transport_{part}_total" for part in _parts("messages bytes")),
    }
    assert HELP.keys() - named - other - made == set()
    assert not any("\n" in text or "\\" in text or '"' in text for text in HELP.values())


def test_counters_with_labels_known_beforehand_begin_at_zero() -> None:
    """Each of them in the code is in `zeros`, and each there is in the code."""
    known = {*zeros.WORKER, *zeros.HUB, *zeros.BALANCER, *zeros.SUPERVISOR}
    counted: set[str] = set()
    texts: set[str] = set()
    for package in ("adapters", "balancer", "worker", "cluster"):
        for path in (ROOT / package).rglob("*.py"):
            if path.name in {"catalogue.py", "zeros.py"}:
                continue
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    texts.add(node.value)
                if (
                    isinstance(node, ast.Call)
                    and isinstance(node.func, ast.Name)
                    and node.func.id == "count"
                    and all(isinstance(one.value, ast.Constant) for one in node.keywords)
                    and isinstance(node.args[0], ast.Constant)
                    and str(node.args[0].value).startswith("limpet_")
                ):
                    labels = {
                        one.arg or "": str(one.value.value)
                        for one in node.keywords
                        if isinstance(one.value, ast.Constant)
                    }
                    counted.add(full_name(str(node.args[0].value), labels))
    alone = full_name("limpet_worker_restarts_total", {"reason": "died"})  # not every hub's
    assert counted - known == {alone}
    for name in known - counted:  # where they are counted the reason is a variable, or the name
        family, inner = split(name)
        value = inner.partition('"')[2].removesuffix('"')
        assert name in texts or {family, value} <= texts, name


def _parts(text: str) -> list[str]:
    return text.split()
