"""`scripts/bench faults`: kills limpet's processes under load and tells what clients notice."""

from __future__ import annotations

import json
import os
import signal
import statistics
import time
from collections.abc import Callable
from pathlib import Path

from scripts.benchmark.clients import Target, WebSocketClient
from scripts.benchmark.crowd import Crowd, PresenceWatch, Stream, percentiles
from scripts.benchmark.loop import Loop
from scripts.benchmark.servers import ALL, Server
from scripts.benchmark.stage import BenchError

ROOM = "crowd"
_STEADY = 2.0
"""Seconds of undisturbed load before each fault: what the figures are compared with."""


class Faults:
    """One running limpet, the crowd on it, and the figures so far."""

    def __init__(self, server: Server, *, size: int) -> None:
        self.server = server
        self.loop = Loop()
        self.target = Target("127.0.0.1", server.port)
        self.figures: dict[str, float | str] = {}
        self.failures: list[str] = []
        self.crowd = Crowd(self.loop, self.target, ROOM, size)
        self.crowd.gather()

    def tell(self, name: str, value: float | str | None, unit: str = "") -> None:
        """Note and print one figure."""
        shown = f"{value:.1f} {unit}".rstrip() if isinstance(value, float) else f"{value} {unit}"
        self.figures[name] = value if value is not None else "never"
        print(f"  {name:58} {shown if value is not None else 'never'}", flush=True)

    def require(self, name: str, value: int, expected: int = 0) -> None:
        """Note a count that must be what is expected."""
        self.tell(name, str(value) + ("" if value == expected else f"  (expected {expected})"))
        if value != expected:
            self.failures.append(f"{name}: {value}, expected {expected}")

    def within(self, name: str, value: float | None, limit: float, unit: str = "ms") -> None:
        """Note a time that must not pass a limit, which is ten times what is promised."""
        self.tell(name, value, unit)
        if value is None or value > limit:
            self.failures.append(f"{name}: {value}, expected at most {limit:g} {unit}")

    def pid_of(self, role: str) -> int:
        """Return the process of that role; the first worker.

        Raises:
            BenchError: there is none.
        """
        for pid, found in self.server.roles().items():
            if found == role:
                return pid
        raise BenchError(f"limpet runs no {role}: {self.server.roles()}")

    def steady(self) -> None:
        """Let the load run undisturbed and forget it, but for its longest echo."""
        self.crowd.gather()
        self.crowd.mark()
        self.loop.run_for(_STEADY)
        self.tell("before: longest echo", self.crowd.longest(self.crowd.residents), "ms")
        self.crowd.mark()

    def open(self, count: int) -> list[WebSocketClient]:
        """Open clients that are not of the crowd.

        Raises:
            BenchError: one does not connect.
        """
        clients = [WebSocketClient(self.loop, self.target) for _ in range(count)]
        if not self.loop.run_until(lambda: all(each.ready for each in clients), 10.0):
            raise BenchError("a client does not connect")
        return clients

    def ask(self, client: WebSocketClient, event: str, *args: object) -> object:
        """Return what a client's event is acknowledged with.

        Raises:
            BenchError: it is not acknowledged.
        """
        answers: list[object] = []
        client.call(event, *args, answer=answers.extend)
        if not self.loop.run_until(lambda: bool(answers), 10.0):
            raise BenchError(f"{event} is not acknowledged")
        return answers[0]


def kill_worker(faults: Faults) -> None:
    """Kill a worker: the others do not notice, its clients are back, presence is right."""
    crowd, loop = faults.crowd, faults.loop
    watch = PresenceWatch(loop, str(faults.server.run_directory / "api.sock"), ROOM)
    if not loop.run_until(lambda: watch.latest == crowd.size, 10.0):
        raise BenchError(f"presence says {watch.latest} of {crowd.size} before the fault")
    faults.steady()
    pid = faults.pid_of("worker")
    others = [each for each in crowd.residents if each.worker != pid]
    failed = crowd.failed_attempts
    killed = time.monotonic()
    os.kill(pid, signal.SIGKILL)
    loop.run_until(lambda: len(crowd.back) == crowd.size - len(others), 15.0)
    loop.run_for(1.0)
    faults.require("clients that lost their connection", len(crowd.lost), crowd.size - len(others))
    faults.require("  of them on the other worker", sum(each in others for each in crowd.lost))
    faults.within("longest echo on the other worker", crowd.longest(others), 1000.0)
    faults.require("failed connection attempts", crowd.failed_attempts - failed)
    faults.require("clients back in their room", crowd.present, crowd.size)
    times = [at - killed for at in crowd.back]
    faults.tell("  after", percentiles(times, lambda value: f"{value:.2f} s"))
    faults.within("  median", statistics.median(times) if times else None, 10.0, "s")
    gone = watch.first(len(others), killed)
    faults.within("presence right after", None if gone is None else 1e3 * (gone - killed), 1000.0)
    loop.run_until(lambda: watch.latest == crowd.size, 5.0)
    faults.require("presence at the end", watch.latest, crowd.size)
    watch.close()


def kill_balancer(faults: Faults) -> None:
    """Kill the balancer: live connections go on, attempts wait and are served."""
    crowd, loop = faults.crowd, faults.loop
    faults.steady()
    failed = crowd.failed_attempts
    attempts = refused = 0
    took: list[float] = []
    ending = False

    def attempt() -> None:
        nonlocal attempts
        if ending:
            return
        attempts += 1
        begun = time.monotonic()

        def ready() -> None:
            took.append(1e3 * (time.monotonic() - begun))
            client.close()

        def lost() -> None:
            nonlocal refused
            refused += 1

        client = WebSocketClient(loop, faults.target, ready, lost)
        loop.call_later(0.02, attempt)

    attempt()
    loop.run_for(0.5)
    os.kill(faults.pid_of("balancer"), signal.SIGKILL)
    loop.run_for(3.0)
    ending = True
    loop.run_until(lambda: len(took) + refused == attempts, 10.0)
    faults.require("live connections lost", len(crowd.lost))
    faults.within("longest echo", crowd.longest(crowd.residents), 1000.0)
    faults.tell("connection attempts meanwhile", str(attempts))
    faults.require("  failed", refused + crowd.failed_attempts - failed)
    faults.require("  not answered", attempts - len(took) - refused)
    faults.tell("  took", percentiles(took, lambda value: f"{value:.1f} ms"))


def kill_hub(faults: Faults) -> None:
    """Kill the hub: local rooms go on, rooms across workers are back, the gap is told."""
    loop = faults.loop
    opened = faults.open(8)
    places: dict[object, list[WebSocketClient]] = {}
    for client in opened:
        places.setdefault(faults.ask(client, "whoami"), []).append(client)
    if len(places) < 2 or any(len(each) < 2 for each in places.values()):
        raise BenchError("8 clients are not spread over two workers")
    (sender, near, *_), (far, *_) = list(places.values())[:2]
    faults.ask(near, "join", "near")
    faults.ask(far, "join", "far")
    told = [faults.ask(each[0], "gaps") for each in places.values()]
    faults.steady()
    local = Stream(loop, sender, near, "near", 50.0)
    across = Stream(loop, sender, far, "far", 200.0)
    loop.run_for(1.0)
    killed = time.monotonic()
    os.kill(faults.pid_of("hub"), signal.SIGKILL)
    loop.run_for(6.0)
    local.going = across.going = False
    loop.run_for(1.0)
    faults.require("live connections lost", len(faults.crowd.lost))
    faults.within("longest echo", faults.crowd.longest(faults.crowd.residents), 1000.0)
    faults.require("local room: lost", local.lost)
    faults.require("local room: doubled", local.doubled)
    faults.within("local room: longest silence", local.longest_silence(killed), 1000.0)
    faults.within("room across workers: back after", across.back_after(killed), 10_000.0)
    faults.tell("room across workers: lost", str(across.lost))
    faults.require("room across workers: doubled", across.doubled)
    now = [faults.ask(each[0], "gaps") for each in places.values()]
    gaps = sum(int(str(b)) - int(str(a)) for a, b in zip(told, now, strict=True))
    faults.tell("gaps told to the app", str(gaps))
    if across.lost and not gaps:
        faults.failures.append(f"{across.lost} messages lost and no gap told")
    for each in opened:
        each.close()


STORIES: tuple[tuple[str, Callable[[Faults], None]], ...] = (
    ("kill -9 of a worker", kill_worker),
    ("kill -9 of the balancer", kill_balancer),
    ("kill -9 of the hub", kill_hub),
)


def run(scratch: Path, *, quick: bool, json_file: Path | None) -> int:
    """Play all faults against one limpet; 1 when something happened that must not."""
    found: dict[str, dict[str, float | str]] = {}
    failures: list[str] = []
    for title, story in STORIES:
        print(f"{title}:", flush=True)
        with Server(ALL["limpet"], scratch, {}) as server:
            faults = Faults(server, size=100 if quick else 500)
            try:
                story(faults)
            except BenchError as error:
                faults.failures.append(str(error))
            found[title] = faults.figures
            failures += [f"{title}: {each}" for each in faults.failures]
            faults.crowd.close()
            faults.loop.run_for(0.5)
            faults.loop.close()
    for failure in failures:
        print(f"FAILED {failure}")
    if json_file is not None:
        json_file.write_text(
            json.dumps({"figures": found, "failures": failures}, indent=1) + "\n",
            encoding="utf-8",
        )
    return 1 if failures else 0
