"""Spans and metrics through OpenTelemetry, and a server that does without it."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import subprocess
import sys
from io import StringIO
from typing import Any

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from limpet import ConnectionRefused, Server, Socket
from limpet_cluster import logs
from socketio_fakes import Peer, running, settled

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = f"00-{TRACE}-b7ad6b7169203331-01"


class Rig:
    """A traced server whose spans and metrics stay in memory."""

    def __init__(self, **options: Any) -> None:
        self.exporter = InMemorySpanExporter()
        self.tracers = TracerProvider(shutdown_on_exit=False)
        self.tracers.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.reader = InMemoryMetricReader()
        self.meters = MeterProvider([self.reader], shutdown_on_exit=False)
        self.io = Server(max_pending_events=20)
        self.io.instrument(tracer_provider=self.tracers, meter_provider=self.meters, **options)

    @property
    def spans(self) -> list[ReadableSpan]:
        return list(self.exporter.get_finished_spans())

    @property
    def names(self) -> list[str]:
        return [span.name for span in self.spans]

    def span(self, name: str) -> ReadableSpan:
        (found,) = [span for span in self.spans if span.name == name]
        return found

    def points(self, name: str) -> list[Any]:
        data = self.reader.get_metrics_data()
        return [
            point
            for resource in (data.resource_metrics if data is not None else ())
            for scope in resource.scope_metrics
            for metric in scope.metrics
            if metric.name == name
            for point in metric.data.data_points
        ]


@pytest.fixture
def rig() -> Rig:
    return Rig()


def _about(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


def _trace(span: ReadableSpan) -> str:
    assert span.context is not None
    return f"{span.context.trace_id:032x}"


# --- spans ------------------------------------------------------------------------


async def test_a_life_of_a_client_in_spans(rig: Rig) -> None:
    io = rig.io
    io.on("say", lambda socket, text: None)
    async with running(io):
        peer = Peer(io, 1)
        socket = peer.connect()
        peer.text(b'2["say","x"]')
        peer.session.close("transport close")
    assert rig.names == ["connect", "receive say", "disconnect"]
    connect, receive, disconnect = rig.spans
    assert [span.kind for span in rig.spans] == [
        SpanKind.SERVER,
        SpanKind.CONSUMER,
        SpanKind.SERVER,
    ]
    assert _about(connect) == {
        "messaging.system": "socketio",
        "messaging.operation.name": "connect",
        "messaging.destination.name": "/",
        "socketio.transport": "websocket",
        "socketio.socket.id": socket.id,
    }
    assert _about(receive) == {
        "messaging.system": "socketio",
        "messaging.operation.name": "receive",
        "messaging.operation.type": "process",
        "messaging.destination.name": "/",
        "socketio.event": "say",
        "socketio.transport": "websocket",
        "socketio.socket.id": socket.id,
    }
    assert _about(disconnect)["socketio.disconnect.reason"] == "transport close"
    for later in (receive, disconnect):
        assert later.parent is None
        assert _trace(later) != _trace(connect)
        assert [link.context for link in later.links] == [connect.context]
    assert all(span.status.status_code is StatusCode.UNSET for span in rig.spans)


async def test_only_events_with_a_handler_have_spans(rig: Rig) -> None:
    rig.io.on("known", lambda socket: None)
    async with running(rig.io):
        peer = Peer(rig.io, 1)
        peer.connect()
        for number in range(50):
            peer.text(f'2["made up {number}"]'.encode())
        peer.text(b'2["known"]')
        assert rig.names == ["connect", "receive known"]


async def test_names_without_end_are_not_kept_apart(rig: Rig) -> None:
    async with running(rig.io):
        for number in range(600):
            rig.io.emit(f"answer {number}")
    assert len(set(rig.names)) == 501
    assert rig.names[-1] == "emit …"


@pytest.mark.parametrize("ordered", [False, True])
async def test_the_span_of_an_async_handler_lasts_until_it_returns(rig: Rig, ordered: bool) -> None:
    io = rig.io
    go = asyncio.Event()
    order: list[str] = []

    @io.on("say", ordered=ordered)
    async def say(socket: Socket) -> str:
        with rig.tracers.get_tracer("app").start_as_current_span("inner"):
            await go.wait()
        order.extend(rig.names)
        socket.to("room").emit("said")
        return "ok"

    async with running(io):
        peer = Peer(io, 1)
        peer.connect()
        peer.text(b'27["say"]')
        await settled()
        assert rig.names == ["connect"]
        go.set()
        await settled()
        assert peer.take() == [b'37["ok"]']
    assert order == ["connect", "inner"]
    receive, inner, emit = rig.span("receive say"), rig.span("inner"), rig.span("emit said")
    assert inner.parent == receive.context
    assert emit.parent == receive.context
    assert receive.parent is None


async def test_events_of_one_queue_are_traces_of_their_own(rig: Rig) -> None:
    io = rig.io

    @io.on("say", ordered=True)
    async def say(socket: Socket, number: int) -> None:
        await asyncio.sleep(0)
        if number == 1:
            raise ValueError(number)

    async with running(io):
        peer = Peer(io, 1)
        peer.connect()
        peer.text(*(f'2["say",{number}]'.encode() for number in range(3)))
        await settled()
    found = [span for span in rig.spans if span.name == "receive say"]
    assert len({_trace(span) for span in found}) == 3
    assert [span.parent for span in found] == [None] * 3
    assert [span.status.status_code.name for span in found] == ["UNSET", "ERROR", "UNSET"]


async def test_broadcasts_are_spans_that_name_no_room(rig: Rig) -> None:
    io = rig.io

    @io.on("say")
    def say(socket: Socket) -> None:
        io.to("secret").to("other").local.emit("said", "text")

    async with running(io):
        peer = Peer(io, 1)
        peer.connect()
        peer.text(b'2["say"]')
        io.of("/shop").emit("open")
        with pytest.raises(TypeError):
            io.emit("bad", object())
    said, opened, bad = rig.span("emit said"), rig.span("emit open"), rig.span("emit bad")
    assert said.parent == rig.span("receive say").context
    assert said.kind is SpanKind.PRODUCER
    assert _about(said) == {
        "messaging.system": "socketio",
        "messaging.operation.name": "emit",
        "messaging.operation.type": "send",
        "messaging.destination.name": "/",
        "socketio.event": "said",
        "socketio.rooms": 2,
        "socketio.local": True,
    }
    assert opened.parent is None
    assert _about(opened)["messaging.destination.name"] == "/shop"
    assert bad.status.status_code is StatusCode.ERROR


async def test_a_dynamic_namespace_has_its_template(rig: Rig) -> None:
    rig.io.of(re.compile(r"/room-\d+")).on("say", lambda socket: None)
    async with running(rig.io):
        peer = Peer(rig.io, 1)
        await peer.connect_slowly("/room-7")
        peer.text(b'2/room-7,["say"]')
    for name in ("connect", "receive say"):
        about = _about(rig.span(name))
        assert about["messaging.destination.name"] == "/room-7"
        assert about["messaging.destination.template"] == r"/room-\d+"


async def test_middlewares_and_lifecycle_handlers_run_within_their_spans(rig: Rig) -> None:
    io = rig.io
    tracer = rig.tracers.get_tracer("app")

    @io.use
    async def admit(socket: Socket) -> None:
        await asyncio.sleep(0)
        tracer.start_span("middleware").end()

    @io.on("connect")
    async def connected(socket: Socket) -> None:
        await asyncio.sleep(0)
        tracer.start_span("connected").end()

    io.on("disconnect", lambda socket: tracer.start_span("disconnected").end())
    async with running(io):
        peer = Peer(io, 1)
        await peer.connect_slowly()
        await settled()
        peer.session.close("ping timeout")
    parents = {span.name: span.parent for span in rig.spans}
    assert parents["connect"] is None
    assert parents["middleware"] == rig.span("connect").context
    assert parents["handle connect"] == rig.span("connect").context
    assert parents["connected"] == rig.span("handle connect").context
    assert parents["handle disconnect"] == rig.span("disconnect").context
    assert parents["disconnected"] == rig.span("handle disconnect").context


async def test_a_disconnect_by_a_handler_belongs_to_it(rig: Rig) -> None:
    io = rig.io

    @io.on("leave")
    def leave(socket: Socket) -> None:
        socket.disconnect(close=True)

    async with running(io):
        peer = Peer(io, 1)
        peer.connect()
        peer.text(b'2["leave"]')
    assert rig.span("disconnect").parent == rig.span("receive leave").context


@pytest.mark.parametrize("kind", ["plain", "async", "connect"])
async def test_the_error_of_a_handler_is_recorded(
    rig: Rig, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    io = rig.io

    def plain(socket: Socket) -> None:
        raise ValueError("no")

    async def waits(socket: Socket) -> None:
        await asyncio.sleep(0)
        raise ValueError("no")

    stream = StringIO()
    handler = logs.LogHandler(stream)
    handler.setFormatter(logs.JsonFormatter("worker-0"))
    logger = logging.getLogger("limpet.socketio")
    logger.addHandler(handler)
    io.on("connect" if kind == "connect" else "say", plain if kind == "plain" else waits)
    async with running(io):
        peer = Peer(io, 1)
        peer.connect()
        peer.text(b'2["say"]')
        await settled()
    logger.removeHandler(handler)
    span = rig.span("handle connect" if kind == "connect" else "receive say")
    assert span.status.status_code is StatusCode.ERROR
    assert _about(span)["error.type"] == "ValueError"
    assert [event.name for event in span.events] == ["exception"]
    record = json.loads(stream.getvalue().splitlines()[0])
    assert record["trace_id"] == _trace(span)
    assert "ValueError: no" in record["err"]


async def test_refused_connections_are_marked(rig: Rig) -> None:
    io = rig.io
    raised: list[Exception] = [ConnectionRefused("no"), RuntimeError("broken")]

    @io.use
    def admit(socket: Socket) -> None:
        raise raised.pop(0)

    async with running(io):
        for number in (1, 2):
            Peer(io, number).text(b"0")
            await settled()
    refused, broken = rig.spans
    assert refused.name == broken.name == "connect"
    assert _about(refused)["socketio.connect.refused"] is True
    assert refused.status.status_code is StatusCode.UNSET
    assert broken.status.status_code is StatusCode.ERROR
    assert _about(broken)["error.type"] == "RuntimeError"


@pytest.mark.parametrize("ordered", [False, True])
async def test_once_handlers_of_everybody_and_of_a_socket_work(rig: Rig, ordered: bool) -> None:
    io = rig.io
    calls: list[str] = []
    io.once("one", lambda socket: calls.append("one"))

    @io.on("connect")
    def connected(socket: Socket) -> None:
        socket.once("two", lambda: calls.append("two"))
        socket.on("three", lambda: calls.append("three"), ordered=ordered)
        socket.on_any(lambda event: calls.append("any"))

    async with running(io):
        peer = Peer(io, 1)
        peer.connect()
        for event in ("one", "two", "three") * 2:
            peer.text(f'2["{event}"]'.encode())
        await settled()
    assert sorted(calls) == ["any"] * 6 + ["one", "three", "three", "two"]
    assert rig.names.count("receive *") == 6
    assert rig.names.count("receive three") == 2


async def test_too_many_pending_events_end_a_traced_client_too(rig: Rig) -> None:
    go = asyncio.Event()

    @rig.io.on("say")
    async def say(socket: Socket) -> None:
        await go.wait()

    async with running(rig.io):
        peer = Peer(rig.io, 1)
        peer.connect()
        peer.text(*[b'2["say"]'] * 21)
        assert peer.ended is not None
        go.set()
        await settled()
    assert rig.names.count("receive say") == 20


async def test_wrong_arguments_are_refused_as_ever(rig: Rig) -> None:
    rig.io.on("say", lambda socket, text: None)
    async with running(rig.io):
        peer = Peer(rig.io, 1)
        peer.connect()
        peer.text(b'2["say"]')
        assert rig.names == ["connect"]


# --- whose trace --------------------------------------------------------------------


@pytest.mark.parametrize("where", ["auth", "headers"])
@pytest.mark.parametrize("accepted", [False, True])
async def test_a_clients_traceparent_counts_if_the_app_says_so(where: str, accepted: bool) -> None:
    rig = Rig(accept_traceparent=accepted)
    async with running(rig.io):
        peer = Peer(rig.io, 1)
        auth = b""
        if where == "auth":
            auth = json.dumps({"traceparent": PARENT}).encode()
        else:
            peer.session.request.headers["traceparent"] = PARENT  # type: ignore[index]
        peer.connect(auth=auth)
    connect = rig.span("connect")
    assert (_trace(connect) == TRACE) is accepted
    assert (connect.parent is not None) is accepted


@pytest.mark.parametrize("value", ["", "00-zz", "x" * 10_000, 7, None, ["x"], {"a": 1}])
async def test_a_bad_traceparent_is_none_at_all(value: object) -> None:
    rig = Rig(accept_traceparent=True)
    async with running(rig.io):
        peer = Peer(rig.io, 1)
        peer.connect(auth=json.dumps({"traceparent": value}).encode())
    assert rig.span("connect").parent is None


async def test_what_surrounds_an_event_is_not_its_parent(rig: Rig) -> None:
    rig.io.on("say", lambda socket: None)
    async with running(rig.io):
        peer = Peer(rig.io, 1)
        with rig.tracers.get_tracer("app").start_as_current_span("around"):
            peer.connect()
            peer.text(b'2["say"]')
            peer.session.close("transport close")
    assert [span.parent for span in rig.spans] == [None] * 4


# --- metrics -----------------------------------------------------------------------


async def test_open_connections_are_counted_by_transport(rig: Rig) -> None:
    def active() -> dict[str, int]:
        points = rig.points("socketio.server.active_connections")
        return {point.attributes["socketio.transport"]: point.value for point in points}

    async with running(rig.io):
        one, two = Peer(rig.io, 1), Peer(rig.io, 2)
        one.connect()
        assert active() == {"websocket": 2}
        two.session.transport_name = "polling"  # as if it had been that and came back
        two.client.on_upgrade()
        assert active() == {"websocket": 1, "polling": 1}
        one.session.close("transport close")
        two.session.close("transport close")
        assert active() == {"websocket": 0, "polling": 0}


@pytest.mark.parametrize(
    ("reason", "status"),
    [
        ("transport close", "normal_closure"),
        ("forced server close", "normal_closure"),
        ("ping timeout", "timeout"),
        ("server shutting down", "app_shutdown"),
        ("transport error", "error"),
    ],
)
async def test_the_length_of_a_connection_is_measured(rig: Rig, reason: str, status: str) -> None:
    async with running(rig.io):
        peer = Peer(rig.io, 1)
        peer.connect()
        peer.session.close(reason)
        (point,) = rig.points("socketio.server.connection.duration")
        assert point.count == 1
        assert dict(point.attributes) == {
            "socketio.connection.status": status,
            "socketio.transport": "websocket",
        }
        assert (min(point.explicit_bounds), max(point.explicit_bounds)) == (0.01, 300)


# --- off, and without the extra ------------------------------------------------------


def test_a_running_server_is_not_instrumented() -> None:
    async def main() -> None:
        io = Server()
        async with running(io):
            io.instrument()

    with pytest.raises(RuntimeError, match="before the server starts"):
        asyncio.run(main())


def _python(code: str, *, blocked: bool) -> str:
    block = "sys.modules['opentelemetry'] = None; " if blocked else ""
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; {block}\n{code}"],
        check=False,
        capture_output=True,
        text=True,
        timeout=30,
        env={"PYTHONPATH": ":".join(path for path in sys.path if path), "PATH": ""},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


SERVE = """
import asyncio, json, logging
from limpet import Server
from limpet_cluster import logs
from socketio_fakes import Peer, running
io = Server()
logs.set_up("worker-0", "info", "json")
log = logging.getLogger("app")

@io.on("say")
def say(socket, text):
    log.info("said")
    io.emit("said", text)
    return text

async def main():
    async with running(io):
        peer = Peer(io, 1)
        peer.connect()
        peer.text(b'21["say","x"]')
        print(peer.take())

asyncio.run(main())
print("opentelemetry.trace" in sys.modules)
"""


@pytest.mark.parametrize("blocked", [False, True])
def test_a_server_that_is_not_instrumented_does_not_load_it(blocked: bool) -> None:
    assert _python(SERVE, blocked=blocked).splitlines() == [
        """[b'2["said","x"]', b'31["x"]']""",
        "False",
    ]


def test_without_the_extra_it_is_said_what_to_install() -> None:
    code = """
from limpet import Server
try:
    Server().instrument()
except ImportError as error:
    print(error)
"""
    assert "pip install 'limpet[otel]'" in _python(code, blocked=True)


def test_the_global_providers_are_the_default() -> None:
    code = """
import asyncio
from limpet import Server
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from socketio_fakes import Peer, running
io = Server()
io.instrument()
exporter = InMemorySpanExporter()
trace.set_tracer_provider(TracerProvider())
trace.get_tracer_provider().add_span_processor(SimpleSpanProcessor(exporter))

async def main():
    async with running(io):
        Peer(io, 1).connect()
        print([span.name for span in exporter.get_finished_spans()])

asyncio.run(main())
"""
    assert _python(code, blocked=False).strip() == "['connect']"
