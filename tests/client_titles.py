"""The titles of the official JavaScript client's suite (4.8), and those that mean nothing here.

A test of ours that covers a title has it as its docstring; ``tests/client/test_titles.py`` looks
that none is missing.
"""

from __future__ import annotations

URL = (
    "works with undefined",
    "works with relative paths",
    "works with no protocol",
    "works with no schema",
    "forces ports for unique url ids",
    "identifies the namespace",
    "works with ipv6",
    "works with ipv6 location",
    "works with a custom path",
)

CONNECTION = (
    "should connect to localhost",
    "should not connect when autoConnect option set to false",
    "should start two connections with same path",
    "should start two connections with same path and different querystrings",
    "should start two connections with different paths",
    "should start a single connection with different namespaces",
    "should work with acks",
    "should receive date with ack",
    "should work with false",
    "should receive utf8 multibyte characters",
    "should connect to a namespace after connection established",
    "should open a new namespace after connection gets closed",
    "should reconnect by default",
    "should reconnect manually",
    "should reconnect automatically after reconnecting manually",
    "should attempt reconnects after a failed reconnect",
    "reconnect delay should increase every time",
    "should not reconnect when force closed",
    "should stop reconnecting when force closed",
    "should reconnect after stopping reconnection",
    "should stop reconnecting on a socket and keep to reconnect on another",
    (
        "should try to reconnect twice and fail when requested two attempts with immediate timeout "
        "and reconnect enabled"
    ),
    "should fire reconnect_* events on manager",
    "should fire reconnecting (on manager) with attempts number when reconnecting twice",
    (
        "should not try to reconnect and should form a connection when connecting to correct port "
        "with default timeout"
    ),
    "should connect while disconnecting another socket",
    "should emit a connect_error event when reaching a Socket.IO server in v2.x",
    "should not close the connection when disconnecting a single socket",
    "should stop trying to reconnect",
    (
        "should try to reconnect twice and fail when requested two attempts with incorrect address "
        "and reconnect enabled"
    ),
    "should not try to reconnect with incorrect port when reconnection disabled",
    "should still try to reconnect twice after opening another socket asynchronously",
    "should use overridden setTimeout by default",
    "should use native setTimeout with useNativeSetTimers",
    "should emit date as string",
    "should emit date in object",
    "should get base64 data as a last resort",
    "should get binary data (as an ArrayBuffer)",
    "should send binary data (as an ArrayBuffer)",
    "should send binary data (as an ArrayBuffer) mixed with json",
    "should send events with ArrayBuffers in the correct order",
    "should send binary data (as a Blob)",
    "should send binary data (as a Blob) mixed with json",
    "should send events with Blobs in the correct order",
    "should reopen a cached socket",
    "should not reopen a cached but active socket",
    "should not reopen an already active socket",
    "should close the engine upon decoding exception",
)

SOCKET = (
    "should have an accessible socket id equal to the server-side socket id (default namespace)",
    "should have an accessible socket id equal to the server-side socket id (custom namespace)",
    "clears socket.id upon disconnection",
    "doesn't fire an error event if we force disconnect in opening state",
    "fire a connect_error event when the connection cannot be established",
    "fire a connect_error event on open timeout (polling)",
    "fire a connect_error event on open timeout (websocket)",
    "doesn't fire a connect_error event when the connection is already established",
    "should change socket.id upon reconnection",
    "should enable compression by default",
    "should disable compression",
    "query option: should accept an object (default namespace)",
    "query option: should accept a query string (default namespace)",
    "query option: should accept an object",
    "query option: should accept a query string",
    "query option: should properly encode the parameters",
    "auth option: should accept an object",
    "auth option: should accept an function",
    "should fire an error event on middleware failure from custom namespace",
    "should not try to reconnect after a middleware failure",
    "should properly disconnect then reconnect",
    "should throw on reserved event",
    "should emit events in order",
    "should emit an event and wait for the acknowledgement",
    "should discard a volatile packet when the socket is not connected",
    "should discard a volatile packet when the pipe is not ready",
    "should send a volatile packet when the socket is connected and the pipe is ready",
    "onAny: should call listener",
    "onAny: should prepend listener",
    "onAny: should remove listener",
    "onAnyOutgoing: should call listener",
    "onAnyOutgoing: should call listener with binary data",
    "onAnyOutgoing: should prepend listener",
    "onAnyOutgoing: should remove listener",
    "should timeout after the given delay when socket is not connected",
    "should timeout when the server does not acknowledge the event",
    "should timeout when the server does not acknowledge the event in time",
    "should not timeout when the server does acknowledge the event",
    "should timeout when the server does not acknowledge the event (promise)",
    "should not timeout when the server does acknowledge the event (promise)",
    "should use the default timeout value",
    "should not ack upon disconnection (callback)",
    "should ack with an error upon disconnection (callback & timeout)",
    "should ack with an error upon disconnection (callback & ackTimeout)",
    "should ack with an error upon disconnection (promise)",
    "should ack with an error upon disconnection (promise & timeout)",
    "should not discard an unsent ack (callback)",
    "throttled timer: should buffer the event and send it upon reconnection",
)

RETRY = (
    "should preserve the order of the packets",
    "should fail when the server does not acknowledge the packet",
    "should not drain the queue while the socket is disconnected",
    "should not emit a packet twice in the 'connect' handler",
)

RECOVERY = (
    (
        "recovery: should have an accessible socket id equal to the server-side socket id "
        "(default namespace)"
    ),
)

ELSEWHERE = {
    "works with undefined": "there is no page whose address could be meant",
    "works with relative paths": "likewise",
    "works with ipv6 location": "likewise",
    "should use overridden setTimeout by default": "timers are the event loop's",
    "should use native setTimeout with useNativeSetTimers": "likewise",
    "should get base64 data as a last resort": "for engines without ArrayBuffer",
    "should send binary data (as a Blob)": "Blob is of browsers",
    "should send binary data (as a Blob) mixed with json": "likewise",
    "should send events with Blobs in the correct order": "likewise",
}
"""Titles without a test, and why. The suite's five of ``autoUnref`` start Node processes."""

TITLES = (*URL, *CONNECTION, *SOCKET, *RETRY, *RECOVERY)
