"""A balancer as a process of its own, for tests: options come as JSON.

One more option, ``linger``, is how long a refused client may take to close, for tests in which a
slow machine must not reach it.
"""

from __future__ import annotations

import json
import logging
import os
import resource
import sys
from pathlib import Path

import uvloop

from limpet_adapters.rundir import RunDirectory
from limpet_balancer import answers
from limpet_balancer.config import BalancerConfig
from limpet_balancer.placing import Limits
from limpet_balancer.process import run_balancer


def main() -> int:
    """Run until TERM; the listener is descriptor 3, as systemd passes it."""
    options = json.loads(sys.argv[1])
    limits = Limits(**options.pop("limits", {}))
    if nofile := options.pop("nofile", 0):
        resource.setrlimit(resource.RLIMIT_NOFILE, (nofile, nofile))
    if uid := options.pop("uid", 0):
        os.setuid(uid)
    if listener := options.pop("listener", 0):
        os.dup2(listener, 3)
        if listener != 3:
            os.close(listener)
        os.environ["LISTEN_FDS"] = "1"
    answers._LINGER = options.pop("linger", answers._LINGER)  # type: ignore[misc]
    logging.basicConfig(level=logging.INFO, stream=sys.stderr)
    run = RunDirectory(Path(options.pop("run")))
    if "bind" in options:
        options["bind"] = tuple(options["bind"])
    config = BalancerConfig(run=run, limits=limits, **options)
    return uvloop.run(run_balancer(config, lambda: print("ready", flush=True)))


if __name__ == "__main__":
    sys.exit(main())
