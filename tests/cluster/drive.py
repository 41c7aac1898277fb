"""Runs a supervisor whose children are stand-ins: ``drive.py RUN_DIR JSON``."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import sys
from pathlib import Path

from limpet_adapters.rundir import RunDirectory
from limpet_cluster.lifecycle import Policy
from limpet_cluster.spawn import Command, close_on_exec
from limpet_cluster.supervisor import Plan, StartError, Supervisor

STANDIN = str(Path(__file__).with_name("standin.py"))


def main() -> int:
    directory = RunDirectory(Path(sys.argv[1]))
    options = json.loads(sys.argv[2])
    ways = options.get("ways", {})
    log = str(directory.path / "log")
    Path(log).touch()
    listener = socket.create_server(("127.0.0.1", 0))
    close_on_exec()

    def command(name: str, **more: object) -> Command:
        argv = (sys.executable, STANDIN, name, ways.get(name, "work"), log)
        return Command(argv, **more)  # type: ignore[arg-type]

    plan = Plan(
        hub=command("hub"),
        balancer=command("balancer", listeners=(("public", listener), ("public", listener))),
        workers=[command(f"worker-{number}") for number in range(options.get("workers", 2))],
    )
    logging.basicConfig(level=logging.DEBUG, format="%(levelname)s %(message)s")
    watch = options.get("watch")
    supervisor = Supervisor(
        directory,
        plan,
        policy=Policy(**options.get("policy", {})),
        watch=Path(watch) if watch else None,
        on_ready=lambda _: print("READY", flush=True),
    )
    try:
        return asyncio.run(supervisor.run())
    except StartError as error:
        print(f"limpet: {error}", flush=True)
        return 1


if __name__ == "__main__":
    sys.exit(main())
