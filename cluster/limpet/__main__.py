"""`python -m limpet`: the command line."""

from __future__ import annotations

import sys

from limpet_cluster.cli import main
from limpet_cluster.failures import paced

if __name__ == "__main__":
    with paced(sys.argv):
        main()
