"""How the processes of a cluster reach each other: identity, bus, adapters, presence core."""
