"""Socket.IO, protocol revision 5: packets, namespaces, sockets, acknowledgements, the server."""
