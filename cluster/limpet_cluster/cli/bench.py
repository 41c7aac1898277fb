"""`limpet bench`: how fast a server answers, as clients see it."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from typing import Any

import click

from limpet_cluster.cli import options
from limpet_cluster.cli.overview import public_urls
from limpet_cluster.cli.tables import Column, dump, plain, progress, table
from limpet_cluster.load import CHAT, Load, Report, Run, Script, arguments
from limpet_cluster.place import api_socket
from limpet_cluster.supervisor import commands
from limpet_worker.errors import OptionError

_MODES = tuple(CHAT)


class _Json(click.ParamType[Any]):
    """The arguments of an event, as JSON."""

    name = "json"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        try:
            return arguments(value)
        except ValueError as error:
            self.fail(
                f"{value!r}: expected JSON, for example '[\"room\", 1]' ({error})", param, ctx
            )


@click.command()
@click.argument("mode", type=click.Choice(_MODES), default="echo")
@click.argument("url", required=False)
@options.place
@options.as_json
@click.option(
    "-c", "--clients", type=click.IntRange(1, 50_000), default=100, show_default=True,
    help="How many clients there are.",
)  # fmt: skip
@click.option(
    "-s", "--seconds", type=options.Duration(0.1), default="10s", show_default=True,
    help="How long it is measured.",
)  # fmt: skip
@click.option(
    "-r", "--rate", type=click.FloatRange(0), default=0.0, metavar="PER-SECOND",
    help="Events of all clients together; 0: each sends as soon as it is answered.",
)  # fmt: skip
@click.option(
    "--at-once", type=click.IntRange(1), default=50, show_default=True,
    help="How many connect at a time.",
)  # fmt: skip
@click.option(
    "--size", type=click.IntRange(9, 10_000_000), default=32, show_default=True,
    help="Characters of a text.",
)  # fmt: skip
@click.option(
    "--transport", type=click.Choice(("websocket", "polling", "upgrade")), default="websocket",
    show_default=True, help="upgrade: polling that becomes a WebSocket, as browsers do.",
)  # fmt: skip
@click.option("--path", envvar="LIMPET_PATH", default="/socket.io/", show_default=True)
@click.option("--auth", type=_Json(), metavar="JSON", help="What the clients say who they are.")
@click.option("--event", help="The event that is sent, where it is not the built-in chat's.")
@click.option("--args", "args", type=_Json(), metavar="JSON", help="Its arguments.")
@click.option("--expect", metavar="EVENT", help="For broadcasts: what the others get.")
@click.option(
    "--first", nargs=2, type=(str, _Json()), multiple=True, metavar="EVENT JSON",
    help="Sent by each client after it connected; several times for several.",
)  # fmt: skip
@click.option(
    "--timeout", type=options.Duration(0.1), default="10s", show_default=True,
    help="How long an answer may take.",
)  # fmt: skip
def bench(
    *,
    mode: str,
    url: str | None,
    run_dir: str | None,
    name: str,
    as_json: bool,
    transport: str,
    timeout: float,
    auth: list[Any] | None,
    event: str | None,
    args: list[Any] | None,
    expect: str | None,
    first: Sequence[tuple[str, list[Any]]],
    **amounts: Any,
) -> None:
    """Measure a server as its clients see it: connect, echo or broadcast.

    URL names it, http://127.0.0.1:8080 for example; without one it is the cluster of this host.

    connect: clients connect and leave, so many at a time. echo: each client sends an event and
    waits for its acknowledgement. broadcast: one event for all clients, measured at each receiver.

    Without --event they speak as the built-in chat expects. In arguments {text}, {room} and
    {client} are filled in; a broadcast's {text} has to come back somewhere in what --expect
    brings.

    All clients live in this one process, on one processor: above some thousands of events per
    second it is this process that is measured, and the result says so.
    """
    script = CHAT[mode]
    if event is not None or args is not None or expect is not None or first:
        if event is None and mode != "connect":
            raise click.UsageError("--args, --expect and --first need --event")
        script = Script(event=event or "", args=args or [], expect=expect or "", first=tuple(first))
        if mode == "broadcast" and not expect:
            raise click.UsageError("a broadcast needs --expect, the event that the others get")
    try:
        load = Load(
            url=url or _own_url(run_dir, name),
            transports=("polling", "websocket") if transport == "upgrade" else (transport,),
            answer_within=timeout,
            auth=auth[0] if auth else None,
            script=script,
            **amounts,
        )
        report = _measure(mode, load, quiet=as_json)
    except OptionError as error:
        raise click.UsageError(str(error)) from None
    if as_json:
        click.echo(dump({"url": load.url, **report.document()}))
    else:
        _show(report, load)
    samples = report.connects if mode == "connect" else report.answers
    if not samples.count:
        raise options.Failure("nothing was answered")


def _own_url(run_dir: str | None, name: str) -> str:
    """Return where the cluster of this host takes clients."""
    directory = options.run_directory(run_dir, name)
    try:
        urls = public_urls(directory, api_socket(directory, name), 5.0)
    except commands.CommandError as error:
        raise options.Unreachable(
            f"{error}; start one, or name a URL: limpet bench MODE http://127.0.0.1:8080"
        ) from None
    for url in urls:
        if url.startswith("http"):
            return url
    raise options.Failure("the cluster listens on no port; name a URL")


def _measure(mode: str, load: Load, *, quiet: bool) -> Report:
    """Run it; after Ctrl-C, what was measured until then counts."""
    with progress(mode, quiet=quiet) as shown:

        def tick(seconds: float) -> None:
            if sys.stderr.isatty():  # a bar; lines would be of no use
                shown.set(done=min(int(seconds), int(load.seconds)), total=int(load.seconds))

        async def main() -> Report:
            run = Run(mode, load, shown.say, tick)
            try:
                return await run.run()
            except asyncio.CancelledError:
                return run.report

        shown.say(f"{mode}: {load.clients} clients, {load.seconds:g} s, {plain(load.url)}")
        return asyncio.run(main())


def _show(report: Report, load: Load) -> None:
    what = "connections" if report.mode == "connect" else "answers"
    count = (report.connects if report.mode == "connect" else report.answers).count
    click.echo(
        f"\n{report.clients} clients over {'/'.join(load.transports)}, {report.seconds:.1f} s: "
        f"{count} {what}, {report.rate():.0f} per second"
    )
    rows = []
    for title, samples in (("connect", report.connects), (report.mode, report.answers)):
        if samples.count:
            shares = samples.percentiles()
            rows.append((title, *(_milliseconds(one) for one in shares.values())))
    if rows:
        click.echo()
        titles = ("p50", "p90", "p99", "p99.9", "max")
        table(("", *(Column(title, right=True) for title in titles)), rows)
    click.echo()
    failed = report.failures.total()
    click.echo(f"{failed} failures" if failed else "no failures")
    for text, times in report.failures.most_common(10):
        click.echo(f"  {times} × {plain(text)}")
    click.echo(
        f"this client used {report.own_load:.0%} of a processor and was late by "
        f"{_milliseconds(report.own_lag)} at the worst"
    )
    if report.client_bound:
        click.echo(
            "These figures are the client's limit, not the server's: "
            "try fewer clients, --rate, or several `limpet bench` at a time."
        )


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1000:.1f} ms" if seconds < 1 else f"{seconds:.2f} s"
