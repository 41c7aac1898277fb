"""The hub of a host: forwards the bus, knows the workers and who is present, answers the API."""
