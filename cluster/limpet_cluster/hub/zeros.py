"""Counters that are shown at 0 before there is anything to count: an alert sees the first one too.

``increase()`` compares two scrapes, so a series that appears with its first event at 1 has not
increased. Every counter whose labels are known beforehand is here, by the processes that count it;
a test compares this with the code.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from limpet_adapters.counters import full_name
from limpet_balancer.heads import Failed
from limpet_balancer.placing import Refusal

Zeros = dict[str, float]


def _each(family: str, label: str, values: Iterable[str]) -> tuple[str, ...]:
    return tuple(full_name(family, {label: value}) for value in values)


_ANYWHERE: Final = (
    "limpet_log_records_left_out_total",
    "limpet_log_records_lost_total",
    "limpet_series_refused_total",
)
_CONTROL: Final = (
    *_each("limpet_control_closed_total", "reason", ("bad message", "peer does not read")),
    *_each(
        "limpet_control_refused_total",
        "reason",
        ("bad figures", "foreign user", "refused", "unknown kind"),
    ),
)

WORKER: Final[Zeros] = dict.fromkeys(
    (
        *_ANYWHERE,
        *_CONTROL,
        "limpet_ack_timeouts_total",
        "limpet_acks_ignored_total",
        "limpet_bus_bad_frames_total",
        *_each(
            "limpet_bus_dropped_total", "reason", ("closed", "queue full", "too large", "too old")
        ),
        "limpet_bus_failed_total",
        "limpet_bus_lost_total",
        "limpet_bus_repairs_total",
        "limpet_bus_resubscribed_total",
        *_each("limpet_bus_uncertain_total", "reason", ("hub restart", "late to the hub")),
        "limpet_channel_errors_total",
        "limpet_channel_rejected_total",
        *_each(
            "limpet_connections_aborted_total",
            "reason",
            ("adoption", "close timeout", "timeout", "unwanted body"),
        ),
        "limpet_connections_idle_total",
        "limpet_connections_moved_total",
        *_each("limpet_connections_not_moved_total", "reason", ("descriptor", "no balancer")),
        *_each(
            "limpet_connections_refused_total",
            "reason",
            (
                "connect timeout",
                "error",
                "long namespace",
                "middleware",
                "too many namespaces",
                "unknown namespace",
            ),
        ),
        "limpet_drains_total",
        *_each(
            "limpet_events_refused_total", "reason", ("middleware", "wrong number of arguments")
        ),
        "limpet_events_unhandled_total",
        *_each("limpet_handshakes_total", "result", ("full", "ok")),
        "limpet_join_barrier_incomplete_total",
        "limpet_loop_stalls_total",
        "limpet_migrations_lost_total",
        "limpet_migrations_refused_total",
        *_each("limpet_packets_dropped_total", "reason", ("never fetched", "volatile")),
        *_each("limpet_packets_ignored_total", "reason", ("out of place",)),
        "limpet_ping_timeouts_total",
        "limpet_polls_aborted_total",
        *_each("limpet_polls_refused_total", "reason", ("duplicate",)),
        *_each("limpet_presence_refused_total", "reason", ("namespace", "room", "user")),
        "limpet_presence_unavailable_total",
        *_each(
            "limpet_requests_refused_total",
            "reason",
            ("bad POST", "body too large", "duplicate poll", "route body too large", "starting"),
        ),
        "limpet_slow_consumer_disconnects_total",
        *_each("limpet_unknown_sid_total", "action", ("forwarded", "rejected")),
        *_each(
            "limpet_upgrades_total",
            "result",
            ("closed", "not wanted", "ok", "timeout", "unexpected packet"),
        ),
    ),
    0,
)
HUB: Final[Zeros] = dict.fromkeys(
    (
        *_ANYWHERE,
        *_CONTROL,
        *_each("limpet_api_actions_total", "action", ("disconnect", "drain", "undrain")),
        "limpet_bus_bad_frames_total",
        "limpet_bus_deaf_total",
        "limpet_bus_repairs_total",
        "limpet_control_lost_total",
        "limpet_http_malformed_total",
        "limpet_http_unauthenticated_total",
        "limpet_presence_bad_batches_total",
        "limpet_presence_incomplete_total",
        *_each("limpet_presence_ops_total", "op", ("drop_worker",)),
        *_each("limpet_presence_pulls_total", "kind", ("snapshot",)),
    ),
    0,
)
BALANCER: Final[Zeros] = dict.fromkeys(
    (
        *_ANYWHERE,
        "limpet_balancer_answers_cut_total",
        "limpet_balancer_channel_errors_total",
        "limpet_balancer_channels_refused_total",
        "limpet_balancer_emfile_total",
        *_each("limpet_balancer_heads_failed_total", "reason", (why.value for why in Failed)),
        "limpet_balancer_hops_exceeded_total",
        "limpet_balancer_no_worker_total",
        *_each("limpet_balancer_pauses_total", "reason", ("emfile", "waiting")),
        *_each("limpet_balancer_refused_total", "reason", (why.value for why in Refusal)),
    ),
    0,
)
SUPERVISOR: Final[Zeros] = dict.fromkeys(
    (
        *_ANYWHERE,
        *_each("limpet_notify_bad_total", "reason", ("no field", "not JSON", "stranger")),
        *_each("limpet_worker_restarts_total", "reason", ("exit", "signal", "stalled")),
    ),
    0,
)
