"""Runs a supervisor whose children are stand-ins: ``drive.py RUN_DIR JSON``."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import sys
from pathlib import Path
from typing import Any
from unittest import mock

from limpet_adapters.rundir import RunDirectory
from limpet_cluster.supervisor import supervisor as module
from limpet_cluster.supervisor.lifecycle import Policy
from limpet_cluster.supervisor.spawn import Command, close_on_exec
from limpet_cluster.supervisor.supervisor import Plan, Renewal, StartError, Supervisor

STANDIN = str(Path(__file__).with_name("standin.py"))


def main() -> int:
    directory = RunDirectory(Path(sys.argv[1]))
    options = json.loads(sys.argv[2])
    log = str(directory.path / "log")
    Path(log).touch()
    listener = socket.create_server(("127.0.0.1", 0))
    close_on_exec()

    def plan(found: dict[str, Any]) -> Plan:
        ways = found.get("ways", {})

        def command(name: str, **more: object) -> Command:
            argv = (sys.executable, STANDIN, name, ways.get(name, "work"), log)
            return Command((*argv, found.get("mark", "")), **more)  # type: ignore[arg-type]

        return Plan(
            hub=command("hub"),
            balancer=command("balancer", listeners=(("public", listener), ("public", listener))),
            workers=[command(f"worker-{number}") for number in range(found.get("workers", 2))],
            worker=lambda slot: command(f"worker-{slot}"),
        )

    def renew() -> Renewal:
        found = {**options, **json.loads((directory.path / "renewal").read_text())}
        if "error" in found:
            raise ValueError(found["error"])
        return Renewal(
            plan=plan(found),
            policy=Policy(**found.get("policy", {})),
            changes=found.get("changes", []),
        )

    (directory.path / "renewal").write_text("{}")
    logging.basicConfig(level=logging.DEBUG, format="%(levelname)s %(message)s")
    watch = options.get("watch")
    supervisor = Supervisor(
        directory,
        plan(options),
        policy=Policy(**options.get("policy", {})),
        watch=Path(watch) if watch else None,
        on_ready=lambda _: print("READY", flush=True),
        renew=renew,
    )
    # How long a process has for its end when all are to be quick about it.
    at_once = mock.patch.object(module, "_AT_ONCE", options.get("at_once", module._AT_ONCE))
    try:
        with at_once:
            return asyncio.run(supervisor.run())
    except StartError as error:
        print(f"limpet: {error}", flush=True)
        return 1


if __name__ == "__main__":
    sys.exit(main())
