"""WebSocket (RFC 6455): a parser and encoder without I/O, and the transport that is built on it."""
