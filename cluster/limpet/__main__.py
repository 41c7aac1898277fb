"""`python -m limpet`: the command line."""

from __future__ import annotations

from limpet_cluster.cli import main

if __name__ == "__main__":
    main()
