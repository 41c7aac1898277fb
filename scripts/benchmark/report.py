"""The report: medians over the rounds, ratios to Node's cluster, and what went wrong."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from scripts.benchmark.scenarios import CPU, SCENARIOS, Goal, Scenario
from scripts.benchmark.stage import Outcome

BASE: Final = "node"
"""The peer that ratios are to."""


@dataclass(slots=True)
class Results:
    """All outcomes of a run, by scenario and peer, one for each round."""

    outcomes: dict[str, dict[str, list[Outcome]]] = field(default_factory=dict)

    def add(self, scenario: str, peer: str, outcome: Outcome) -> None:
        """Keep one outcome."""
        self.outcomes.setdefault(scenario, {}).setdefault(peer, []).append(outcome)

    def faults(self, peer: str) -> list[str]:
        """Return in words what a peer's deliveries lacked, one line per scenario and round."""
        return [
            f"{scenario}: {_wrong(outcome)}"
            for scenario, by_peer in self.outcomes.items()
            for outcome in by_peer.get(peer, ())
            if outcome.findings.faults or not outcome.complete
        ]


def figures(outcome: Outcome) -> dict[str, float]:
    """Return the figures of one outcome: CPU per operation, and its values."""
    found: dict[str, float] = {}
    if outcome.operations:
        found[CPU] = outcome.cpu_ns / 1e3 / outcome.operations
    return found | outcome.values


def medians(outcomes: Iterable[Outcome]) -> dict[str, tuple[float, float, float]]:
    """Return (median, least, most) of each figure over the rounds."""
    columns: dict[str, list[float]] = {}
    for outcome in outcomes:
        for name, value in figures(outcome).items():
            columns.setdefault(name, []).append(value)
    return {
        name: (statistics.median(values), min(values), max(values))
        for name, values in columns.items()
    }


def ratio(results: Results, scenario: str, peer: str, figure: str = CPU) -> float | None:
    """Return the figure of a peer over that of Node's cluster, None where one is missing."""
    by_peer = results.outcomes.get(scenario, {})
    mine = medians(by_peer.get(peer, ())).get(figure)
    base = medians(by_peer.get(BASE, ())).get(figure)
    return mine[0] / base[0] if mine and base and base[0] else None


def render(results: Results, peers: list[str]) -> str:
    """Return the report as text."""
    others = [peer for peer in peers if peer != BASE] if BASE in peers else []
    header = ["", "", *peers, *(f"{peer}/{BASE}" for peer in others), "goal"]
    rows = [header]
    for scenario in SCENARIOS:
        by_peer = results.outcomes.get(scenario.name)
        if by_peer:
            rows += _rows(results, scenario, peers, others)
    text = [_table(rows), "", _where("limpet", results)] if "limpet" in peers else [_table(rows)]
    text += [f"{peer}: {line}" for peer in peers for line in results.faults(peer)]
    return "\n".join(text)


def _rows(
    results: Results, scenario: Scenario, peers: list[str], others: list[str]
) -> list[list[str]]:
    by_peer = {peer: medians(results.outcomes[scenario.name].get(peer, ())) for peer in peers}
    names: list[str] = []
    for found in by_peer.values():
        names += [name for name in found if name not in names]
    rows = []
    for index, name in enumerate(names):
        goal = scenario.goals.get(name)
        ratios = [ratio(results, scenario.name, peer, name) for peer in others]
        rows.append(
            [
                scenario.title if index == 0 else "",
                name,
                *(_cell(by_peer[peer].get(name)) for peer in peers),
                *(f"{each:.2f}" if each is not None else "" for each in ratios),
                _judged(goal, by_peer.get("limpet", {}).get(name), results, scenario, name),
            ]
        )
    return rows


def _judged(
    goal: Goal | None,
    mine: tuple[float, float, float] | None,
    results: Results,
    scenario: Scenario,
    name: str,
) -> str:
    """Return the goal and whether limpet reaches it."""
    if goal is None:
        return ""
    value = mine[0] if mine else None
    if goal.ratio:
        value = ratio(results, scenario.name, "limpet", name)
    text = f"≤ {goal.limit:g}" + (f" × {BASE}" if goal.ratio else "")
    if value is None:
        return text
    return f"{text}: {'yes' if value <= goal.limit else 'NO'}"


def _cell(figure: tuple[float, float, float] | None) -> str:
    if figure is None:
        return "-"
    middle, least, most = figure
    spread = f" [{_short(least)}..{_short(most)}]" if most > least else ""
    return _short(middle) + spread


def _short(value: float) -> str:
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def _where(peer: str, results: Results) -> str:
    """Return where a peer's CPU time goes, by process, in µs per operation."""
    rows = [[f"{peer}, µs by process", "worker", "hub", "balancer", "main"]]
    for scenario in SCENARIOS:
        outcomes = results.outcomes.get(scenario.name, {}).get(peer, [])
        counted = [each for each in outcomes if each.operations]
        if counted:
            rows.append(
                [
                    scenario.title,
                    *(
                        _short(
                            statistics.median(
                                each.by_role.get(role, 0) / 1e3 / each.operations
                                for each in counted
                            )
                        )
                        for role in rows[0][1:]
                    ),
                ]
            )
    return _table(rows)


def _table(rows: list[list[str]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column < 2 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def _wrong(outcome: Outcome) -> str:
    words = [outcome.findings.describe(), *outcome.notes]
    if not outcome.complete:
        words.insert(0, "not finished")
    return "; ".join(word for word in words if word)
