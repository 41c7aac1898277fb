"""`python -m limpet_cluster`: the command line, without the public face's imports."""

from __future__ import annotations

from limpet_cluster.cli import main

if __name__ == "__main__":
    main()
