"""OpenTelemetry: spans of events, connects, disconnects and broadcasts; metrics of connections.

Imported by ``Server.instrument`` alone: an application without it neither needs nor loads the
OpenTelemetry API, and runs none of this. The traced client and socket stand in for the plain ones,
so that the plain ones do not have to ask.

Span names are of a small set: clients choose the names of events, but only those with a handler
get a span; names that the application makes up without end become ``…`` after the first 500.
"""

from __future__ import annotations

import sys
from asyncio import CancelledError
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from importlib.metadata import PackageNotFoundError, version
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

from opentelemetry import metrics, propagate, trace
from opentelemetry.context import Context, attach, detach
from opentelemetry.trace import Link, Span, SpanContext, SpanKind, Status, StatusCode

from limpet_worker import running
from limpet_worker.socketio.client import Client
from limpet_worker.socketio.errors import ConnectionRefused
from limpet_worker.socketio.handlers import Handler, is_coroutine
from limpet_worker.socketio.socket import Socket

if TYPE_CHECKING:
    from limpet_adapters.contract import BroadcastOptions
    from limpet_worker.engineio.session import Session
    from limpet_worker.socketio.namespace import Namespace
    from limpet_worker.socketio.server import Server

Attributes = dict[str, "str | int | bool"]

_MOST_NAMES: Final = 500
_LONGEST_HEADER: Final = 8192
_BOUNDS: Final = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 120, 300)
"""Seconds a connection lasted: the buckets that SignalR's metric of this name has."""
_STATUS: Final = {
    "ping timeout": "timeout",
    "server shutting down": "app_shutdown",
    "transport error": "error",
    "parse error": "error",
    "slow consumer": "error",
    "forced close": "error",
    "server error": "error",
}
"""Why a connection ended, in the words of the metric; everything else is ``normal_closure``."""
_CONNECTING: Final[ContextVar[Span | None]] = ContextVar("limpet_connecting", default=None)
"""The span of the connection to a namespace whose middlewares run."""


class Tracing:
    """The tracer and the instruments of one server.

    Args:
        server: the server.
        tracer_provider: where spans go; None: the global provider.
        meter_provider: where metrics go; None: the global provider.
        accept_traceparent: whether a client says which trace its connection belongs to.
    """

    __slots__ = (
        "_accept_traceparent",
        "_names",
        "active",
        "duration",
        "server",
        "tracer",
    )

    def __init__(
        self,
        server: Server,
        tracer_provider: trace.TracerProvider | None,
        meter_provider: metrics.MeterProvider | None,
        accept_traceparent: bool,
    ) -> None:
        self.server = server
        self.tracer = trace.get_tracer("limpet", _version(), tracer_provider)
        meter = metrics.get_meter("limpet", _version(), meter_provider)
        self.active = meter.create_up_down_counter(
            "socketio.server.active_connections",
            unit="{connection}",
            description="Connections that are open.",
        )
        self.duration = _histogram(
            meter,
            "socketio.server.connection.duration",
            unit="s",
            description="How long connections lasted.",
        )
        self._accept_traceparent = accept_traceparent
        self._names: set[str] = set()

    def client(self, session: Session) -> TracedClient:
        """Return what sits on a session."""
        return TracedClient(self, session)

    def broadcast(
        self, namespace: Namespace, arguments: tuple[object, ...], options: BroadcastOptions
    ) -> None:
        """Send a broadcast in a span, a child of what is current.

        It ends when the packet is on its way, and says how many rooms it was for, not which:
        their names are the application's, often of users.
        """
        event = self.name(str(arguments[0]))
        attributes = _of_namespace(namespace, "emit", "send")
        attributes["socketio.event"] = event
        attributes["socketio.rooms"] = len(options.rooms)
        if options.local:
            attributes["socketio.local"] = True
        with self.span(f"emit {event}", SpanKind.PRODUCER, attributes):
            namespace.send_now(arguments, options)

    def name(self, event: str) -> str:
        """Return the event's name, or ``…`` when there have been too many different ones."""
        if event in self._names:
            return event
        if len(self._names) >= _MOST_NAMES:
            return "…"
        self._names.add(event)
        return event

    @contextmanager
    def span(
        self,
        name: str,
        kind: SpanKind,
        attributes: Attributes,
        parent: Context | None = None,
        links: tuple[Link, ...] = (),
    ) -> Iterator[Span]:
        """Make a span current for the block; what the block raises makes it a failed one."""
        span = self.tracer.start_span(name, parent, kind, attributes, links)
        token = attach(trace.set_span_in_context(span, parent))
        try:
            yield span
        except BaseException as error:
            mark_failed(span, error)
            raise
        finally:
            detach(token)
            span.end()

    def parent_of(self, client: Client, auth: Mapping[str, Any] | None) -> Context:
        """Return what the client wants to be part of: nothing, unless the application believes it.

        The propagators that OpenTelemetry is set up with read their headers (``traceparent``, …)
        from the CONNECT packet's ``auth`` and from the first request of the connection.
        """
        if not self._accept_traceparent:
            return Context()
        propagator = propagate.get_global_textmap()
        headers = client.session.request.headers
        carrier: dict[str, str] = {}
        for field in propagator.fields:
            value = auth.get(field) if auth else None
            if not isinstance(value, str):
                value = headers.get(field.lower())
            if value and len(value) <= _LONGEST_HEADER:
                carrier[field] = value
        return propagator.extract(carrier, Context())


class TracedClient(Client):
    """A client whose connection is measured and whose connects are spans."""

    __slots__ = ("_began", "_counted", "_tracing")

    def __init__(self, tracing: Tracing, session: Session) -> None:
        super().__init__(tracing.server, session)
        self._tracing = tracing
        self._began = monotonic()
        self._counted = {"socketio.transport": session.transport_name}
        tracing.active.add(1, self._counted)

    def on_upgrade(self) -> None:
        """Count it under the transport that it has now."""
        super().on_upgrade()
        active = self._tracing.active
        active.add(-1, self._counted)
        self._counted = {"socketio.transport": self.session.transport_name}
        active.add(1, self._counted)

    async def _admit(self, name: str, auth: dict[str, Any] | None) -> None:
        with self._connect_span(auth) as span:
            _CONNECTING.set(span)
            await super()._admit(name, auth)

    def _socket(self, namespace: Namespace, auth: dict[str, Any] | None) -> TracedSocket:
        socket = TracedSocket(self, namespace, self.server.new_id(), auth)
        socket.tracing = self._tracing
        span = _CONNECTING.get()
        if span is not None:
            socket.describe(span)
        return socket

    def _welcome(self, socket: Socket) -> None:
        if not isinstance(socket, TracedSocket) or socket.connected_by is not None:
            super()._welcome(socket)
            return
        with self._connect_span(socket.handshake.auth) as span:  # there were no middlewares
            socket.describe(span)
            super()._welcome(socket)

    def _say_no(self, name: str, message: str, data: object = None) -> None:
        span = _CONNECTING.get()
        if span is not None:
            span.set_attribute("socketio.connect.refused", True)
            error = sys.exc_info()[1]
            if error is not None and not isinstance(error, ConnectionRefused):
                mark_failed(span, error)
        super()._say_no(name, message, data)

    def _end(self, reason: str) -> None:
        if not self._ended:
            tracing = self._tracing
            tracing.active.add(-1, self._counted)
            tracing.duration.record(
                monotonic() - self._began,
                {
                    "socketio.connection.status": _STATUS.get(reason, "normal_closure"),
                    "socketio.transport": self.session.transport_name,
                },
            )
        super()._end(reason)

    @contextmanager
    def _connect_span(self, auth: dict[str, Any] | None) -> Iterator[Span]:
        tracing = self._tracing
        attributes: Attributes = {
            "messaging.system": "socketio",
            "messaging.operation.name": "connect",
            "socketio.transport": self.session.transport_name,
        }
        parent = tracing.parent_of(self, auth)
        with tracing.span("connect", SpanKind.SERVER, attributes, parent) as span:
            yield span


class TracedSocket(Socket):
    """A socket whose events, and whose end, are spans linked to that of its connect."""

    __slots__ = ("connected_by", "tracing")

    tracing: Tracing
    connected_by: SpanContext | None
    """Of the span of its connect; None before that."""

    def __init__(
        self, client: Client, nsp: Namespace, id_: str, auth: dict[str, Any] | None
    ) -> None:
        super().__init__(client, nsp, id_, auth)
        self.connected_by = None

    @property
    def links(self) -> tuple[Link, ...]:
        """Links to its connect: a connection lives for long and is not one trace."""
        return () if self.connected_by is None else (Link(self.connected_by),)

    @property
    def is_full(self) -> bool:
        """Whether so many events are pending that another one ends the connection."""
        return self._unfinished >= self.nsp.server.max_pending_events

    def describe(self, span: Span) -> None:
        """Tell the span of its connect whose it is."""
        self.connected_by = span.get_span_context()
        span.set_attributes({**_of_namespace(self.nsp), "socketio.socket.id": self.id})

    def attributes(self, operation: str, kind: str = "") -> Attributes:
        """Return what spans say of it."""
        attributes = _of_namespace(self.nsp, operation, kind)
        attributes["socketio.socket.id"] = self.id
        attributes["socketio.transport"] = self.transport_name
        return attributes

    def end(self, reason: str) -> None:
        """Leave the namespace, in a span if it was in it."""
        if not self.connected:
            super().end(reason)
            return
        attributes = self.attributes("disconnect")
        attributes["socketio.disconnect.reason"] = reason
        # A timer may have inherited the span of any handler; only one that runs may be the parent.
        mine = running.SOCKET.get() is self and running.event() is not None
        parent = None if mine else Context()
        with self.tracing.span("disconnect", SpanKind.SERVER, attributes, parent, self.links):
            super().end(reason)

    def call_lifecycle(self, handler: Handler, *arguments: Any) -> None:
        """Call a handler of connect, disconnecting or disconnect in a span."""
        super().call_lifecycle(TracedHandler(handler, self, "handle"), *arguments)

    def _start(self, handler: Handler, arguments: list[Any], ack: int | None) -> None:
        super()._start(TracedHandler(handler, self, "receive"), arguments, ack)

    def _discard(self, handler: Handler) -> None:
        super()._discard(handler.handler if isinstance(handler, TracedHandler) else handler)


class TracedHandler(Handler):
    """A handler for one call, which is a span: ``receive`` of an event, ``handle`` of the rest."""

    __slots__ = ("_operation", "_socket", "_span", "handler")

    def __init__(self, handler: Handler, socket: TracedSocket, operation: str) -> None:
        # Not Handler's: that looks at the function's signature.
        self.event = handler.event
        self.least = handler.least
        self.most = handler.most
        self.once = handler.once
        self.ordered = handler.ordered
        self.handler = handler
        self._socket = socket
        self._operation = operation
        self._span: Span | None = None

    def accepts(self, amount: int) -> bool:
        """Return whether it can be called with so many arguments."""
        return self.handler.accepts(amount)

    def failed(self, kind: str, error: BaseException) -> None:
        """Log and count what it raised, as part of its trace."""
        if self._span is None:
            self.handler.failed(kind, error)
            return
        token = attach(trace.set_span_in_context(self._span))
        try:
            self.handler.failed(kind, error)
        finally:
            detach(token)

    def call(self, *arguments: Any) -> Any:
        """Call it; the span of an async one ends with its coroutine."""
        socket = self._socket
        if socket.is_full:
            return self.handler.call(*arguments)  # a coroutine of it will never run
        tracing = socket.tracing
        event = tracing.name(self.event)
        parent: Context | None = None
        links: tuple[Link, ...] = ()
        if self._operation == "receive":
            attributes = socket.attributes("receive", "process")
            parent, links = Context(), socket.links
            kind = SpanKind.CONSUMER
        else:
            attributes = socket.attributes(self._operation)
            kind = SpanKind.INTERNAL
        attributes["socketio.event"] = event
        span = self._span = tracing.tracer.start_span(
            f"{self._operation} {event}", parent, kind, attributes, links
        )
        context = trace.set_span_in_context(span, parent)
        token = attach(context)
        try:
            result = self.handler.call(*arguments)
        except BaseException as error:
            mark_failed(span, error)
            span.end()
            raise
        finally:
            detach(token)
        if is_coroutine(result):
            return _follow(result, span, context)
        span.end()
        return result


async def _follow(coroutine: Any, span: Span, context: Context) -> Any:
    # Not detached: the task is the handler's own, and a queue's next handler attaches another.
    attach(context)
    try:
        return await coroutine
    except BaseException as error:
        mark_failed(span, error)
        raise
    finally:
        span.end()


def mark_failed(span: Span, error: BaseException) -> None:
    """Record an exception; to be cancelled, as at the end of the server, is no failure."""
    if isinstance(error, (CancelledError, GeneratorExit)):
        return
    span.record_exception(error)
    span.set_attribute("error.type", type(error).__qualname__)
    span.set_status(Status(StatusCode.ERROR, type(error).__qualname__))


def _of_namespace(namespace: Namespace, operation: str = "", kind: str = "") -> Attributes:
    attributes: Attributes = {
        "messaging.system": "socketio",
        "messaging.destination.name": namespace.name,
    }
    if namespace.parent is not None:
        attributes["messaging.destination.template"] = namespace.parent.label
    if operation:
        attributes["messaging.operation.name"] = operation
    if kind:
        attributes["messaging.operation.type"] = kind
    return attributes


def _histogram(meter: metrics.Meter, name: str, unit: str, description: str) -> metrics.Histogram:
    try:
        return meter.create_histogram(
            name, unit, description, explicit_bucket_boundaries_advisory=list(_BOUNDS)
        )
    except TypeError:  # an API older than that argument
        return meter.create_histogram(name, unit, description)


def _version() -> str:
    try:
        return version("limpet")
    except PackageNotFoundError:  # run from its sources
        return ""
