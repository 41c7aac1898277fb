"""The command behind `scripts/bench`: measures the peers in turn, round by round."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Final

import msgspec
from scripts.benchmark import faults, report, servers
from scripts.benchmark.generator import raise_file_limit
from scripts.benchmark.scenarios import SCENARIOS, Scenario, chosen
from scripts.benchmark.stage import BenchError, Job, Outcome

REPOSITORY: Final = Path(__file__).parents[2]
_BUSY: Final = 0.7
"""Load average above which a run begins with a warning."""


def main(arguments: list[str] | None = None) -> int:
    """Run what the arguments say; 1 when limpet lost, doubled, mixed up or refused anything."""
    options = _parse(arguments)
    # TERM ends the servers too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    raise_file_limit()
    try:
        if options.install:
            servers.install(options.scratch)
            print(f"peers installed in {options.scratch}")
            return 0
        if options.what == "faults":
            return faults.run(options.scratch, quick=options.quick, json_file=options.json)
        return _compare(options)
    except BenchError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def play(server: servers.Server, scenario: Scenario, *, quick: bool, seed: int) -> Outcome:
    """Play one scenario against the running server, in a generator process.

    Raises:
        BenchError: the generator failed.
    """
    job = Job(
        scenario=scenario.name,
        host="127.0.0.1",
        port=server.port,
        pids=server.pids(),
        roles=server.roles(),
        workers=server.peer.workers,
        pause=server.peer.pause,
        quick=quick,
        seed=seed,
    )
    done = subprocess.run(
        [sys.executable, "-m", "scripts.benchmark.generator"],
        cwd=REPOSITORY,
        input=msgspec.json.encode(job),
        stdout=subprocess.PIPE,
        check=False,
    )
    if done.returncode:
        raise BenchError(f"{scenario.name}: the generator failed\n{server.output()}")
    return msgspec.json.decode(done.stdout, type=Outcome)


def run_peer(
    peer: servers.Peer,
    scenarios: list[Scenario],
    options: argparse.Namespace,
    seed: int,
    *,
    first: bool,
) -> list[tuple[Scenario, Outcome]]:
    """Run the scenarios against one peer: one server for all but those that want their own."""
    found = []
    wanted = [
        each
        for each in scenarios
        if (peer.name == "limpet" or not each.only_limpet) and (first or not each.once)
    ]
    shared = [each for each in wanted if not each.fresh and not each.environment]
    groups = [shared, *([each] for each in wanted if each not in shared)]
    for group in groups:
        if not group:
            continue
        with servers.Server(peer, options.scratch, group[0].environment) as server:
            for scenario in group:
                outcome = play(server, scenario, quick=options.quick, seed=seed)
                found.append((scenario, outcome))
                _progress(peer, scenario, outcome)
    return found


def _compare(options: argparse.Namespace) -> int:
    peers = _peers(options)
    try:
        scenarios = chosen(_words(options.scenarios))
    except ValueError as error:
        raise BenchError(str(error)) from None
    if (busy := os.getloadavg()[0]) > _BUSY:
        print(
            f"load average {busy:.1f}: something else runs here, the figures will tell of it",
            file=sys.stderr,
        )
    results = report.Results()
    for number in range(options.rounds):
        print(f"--- round {number + 1} of {options.rounds}", file=sys.stderr)
        for peer in peers:
            for scenario, outcome in run_peer(
                peer, scenarios, options, seed=number + 1, first=number == 0
            ):
                results.add(scenario.name, peer.name, outcome)
    print(report.render(results, [peer.name for peer in peers]))
    if options.json:
        options.json.write_text(_as_json(results), encoding="utf-8")
    if results.faults("limpet"):
        print("bench: limpet failed a delivery check", file=sys.stderr)
        return 1
    return 0


def _as_json(results: report.Results) -> str:
    found = {
        scenario: {
            peer: [{**asdict(each), "figures": report.figures(each)} for each in outcomes]
            for peer, outcomes in by_peer.items()
        }
        for scenario, by_peer in results.outcomes.items()
    }
    return json.dumps(found, indent=1) + "\n"


def _peers(options: argparse.Namespace) -> list[servers.Peer]:
    found = []
    for name in _words(options.peers) or servers.USUAL:
        peer = servers.ALL.get(name)
        if peer is None:
            raise BenchError(f"--peers {name}: expected {', '.join(servers.ALL)}")
        if peer.installed(options.scratch):
            found.append(peer)
        elif options.peers:
            raise BenchError(f"{name} is not in {options.scratch}: run scripts/bench --install")
        else:
            print(f"{name} left out: run scripts/bench --install", file=sys.stderr)
    return found


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _progress(peer: servers.Peer, scenario: Scenario, outcome: Outcome) -> None:
    shown = ", ".join(f"{value:.2f} {name}" for name, value in report.figures(outcome).items())
    pace = ""
    if outcome.operations:
        rate = outcome.operations / (outcome.wall_ns / 1e9)
        pace = f"  ({rate:,.0f}/s, generator {outcome.generator_ns / outcome.wall_ns:.0%})"
    wrong = outcome.findings.describe()
    print(
        f"{peer.name:12} {scenario.name:16} {shown}{pace}"
        + (f"  {wrong}" if wrong else "")
        + ("" if outcome.complete else "  NOT FINISHED")
        + "".join(f"\n{'':30}{note}" for note in outcome.notes),
        file=sys.stderr,
        flush=True,
    )


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/bench",
        description="Compares limpet with Node's socket.io cluster and with python-socketio: "
        "server CPU µs per operation, memory per connection; every delivery is checked.",
        epilog="scenarios: " + ", ".join(each.name for each in SCENARIOS),
    )
    parser.add_argument(
        "what",
        nargs="?",
        default="compare",
        choices=("compare", "faults"),
        help="faults: kill limpet's worker, balancer and hub under load instead",
    )
    parser.add_argument("--install", action="store_true", help="install the peers, then end")
    parser.add_argument(
        "--scratch",
        type=Path,
        default=servers.default_scratch(),
        metavar="DIR",
        help="where the peers are installed (%(default)s)",
    )
    parser.add_argument("--peers", default="", metavar="LIST", help="limpet,node,python …")
    parser.add_argument("--scenarios", default="", metavar="LIST", help="by name or group")
    parser.add_argument("--rounds", type=int, default=3, metavar="N")
    parser.add_argument("--quick", action="store_true", help="small numbers: does it work at all")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all outcomes there")
    options = parser.parse_args(arguments)
    if options.rounds < 1:
        parser.error(f"--rounds {options.rounds}: expected 1 or more")
    options.scratch = options.scratch.absolute()
    return options


if __name__ == "__main__":
    sys.exit(main())
