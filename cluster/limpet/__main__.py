"""`python -m limpet`: the command line."""

from __future__ import annotations

from limpet_cluster.cli import main

main()
