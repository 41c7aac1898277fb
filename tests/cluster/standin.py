"""A child that does as it is told, in place of hub, balancer and workers: for the supervisor."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
from pathlib import Path

from limpet_adapters.notify import Notifier
from limpet_cluster.child import die_with_parent

if __name__ == "__main__":
    name, way, log = sys.argv[1:]
    supervised = die_with_parent()
    notifier = Notifier.from_environment()
    starts = 0
    with Path(log).open("a+", encoding="utf-8") as journal:
        journal.seek(0)
        starts = sum(f'"{name}"' in line and '"start"' in line for line in journal)

        def note(what: str) -> None:
            journal.write(json.dumps([name, what, os.getpid(), time.monotonic()]) + "\n")
            journal.flush()

        note("start")
        fds = os.environ.get("LISTEN_FDS")
        if fds:
            sockets = [socket.socket(fileno=3 + number) for number in range(int(fds))]
            note("listens " + " ".join(str(one.getsockname()[1]) for one in sockets))
        ended: list[bool] = []
        signal.signal(signal.SIGTERM, lambda *_: ended.append(True))
        if way == "refuse" or (way == "refuse later" and starts):
            notifier.failed("the module is broken\nline 2")
            sys.exit(1)
        if way == "crash" or (way == "crash once" and not starts):
            sys.exit(3)
        if way == "crash later" and starts:
            sys.exit(3)
        if way == "fork":
            if os.fork() == 0:
                time.sleep(600)
            note("forked")
        if way != "never ready":
            notifier.ready("at work")
        if way == "deaf":
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        while not ended:
            if way != "stall" or starts:
                notifier._send("WATCHDOG=1")
            time.sleep(0.05)
        note("term")
