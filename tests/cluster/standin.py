"""A child that does as it is told, in place of hub, balancer and workers: for the supervisor.

What it does "when told" waits for `Supervised.tell`.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
from pathlib import Path

from limpet_adapters.forks import set_parent_death_signal
from limpet_adapters.notify import Notifier

if __name__ == "__main__":
    name, way, log, mark = sys.argv[1:]
    set_parent_death_signal(signal.SIGKILL)  # as child.enter does, which takes long to import
    if os.getppid() != int(os.environ["LIMPET_PARENT"]):
        sys.exit(0)  # it ended before we could ask for its signal: nobody would end us
    sign = Path(log).with_name(f"told-{name}")
    notifier = Notifier.from_environment()
    starts = 0
    with Path(log).open("a+", encoding="utf-8") as journal:
        journal.seek(0)
        starts = sum(f'"{name}"' in line and '"start' in line for line in journal)

        def note(what: str) -> None:
            journal.write(json.dumps([name, what, os.getpid(), time.monotonic()]) + "\n")
            journal.flush()

        note(f"start {mark}".rstrip())
        fds = os.environ.get("LISTEN_FDS")
        if fds:
            sockets = [socket.socket(fileno=3 + number) for number in range(int(fds))]
            note("listens " + " ".join(str(one.getsockname()[1]) for one in sockets))
        ended: list[bool] = []
        signal.signal(signal.SIGTERM, lambda *_: ended.append(True))
        signal.signal(signal.SIGUSR2, lambda *_: note("asked where it stands"))
        if way == "deaf" or (way == "deaf once" and not starts):
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            signal.signal(signal.SIGQUIT, signal.SIG_IGN)
        if way == "refuse" or (way == "refuse later" and starts):
            notifier.failed("the module is broken\nline 2")
            sys.exit(1)
        if way == "crash" or (way == "crash once" and not starts):
            sys.exit(3)
        if way == "crash later" and starts:
            sys.exit(3)
        if way == "start when told" or (way == "crash later when told" and starts):
            while not sign.exists():
                time.sleep(0.02)
        if way == "crash later when told" and starts:
            sys.exit(3)
        if way == "fork":
            if os.fork() == 0:
                time.sleep(600)
            note("forked")
        if way != "never ready":
            notifier.ready("at work")
        while not ended:
            if way == "end when told" and sign.exists():
                sys.exit(3)
            notifier.alive()
            time.sleep(0.05)
        note("term")
        if way.startswith("drain"):
            most = 60.0 if way == "drain until told" else float(way.rpartition(" ")[2])
            for left in range(int(most * 10), 0, -1):
                if sign.exists():
                    break
                notifier.extend(0.5)
                notifier.status(f"draining, {left} sessions left")
                time.sleep(0.1)
