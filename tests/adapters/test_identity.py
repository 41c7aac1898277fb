"""Ids name their worker, are secret otherwise, and never collide."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from limpet_adapters.identity import ID_LENGTH, IdFactory, WorkerAddress, address_of, redact

addresses = st.builds(
    WorkerAddress, st.integers(0, 65_535), st.integers(0, 255), st.integers(0, 255)
)


@given(addresses)
def test_an_id_names_its_worker(address: WorkerAddress) -> None:
    new_id = IdFactory(address)
    made = [new_id() for _ in range(600)]  # more than one draw of entropy
    assert len(set(made)) == 600
    assert {address_of(one) for one in made} == {address}
    assert {len(one) for one in made} == {ID_LENGTH}


@given(st.text())
def test_what_is_no_id_names_nobody(text: str) -> None:
    found = address_of(text)
    assert (found is None) or len(text) == ID_LENGTH


def test_near_ids() -> None:
    assert address_of("") is None
    assert address_of("a" * 19) is None
    assert address_of("a" * 21) is None
    assert address_of("a" * 19 + "\n") is None
    assert address_of("a" * 19 + "é") is None
    assert address_of("a" * 19 + "+") is None
    assert address_of("a" * 20) == WorkerAddress(0x69A6, 0x9A, 0x69)


def test_logs_show_no_secret() -> None:
    assert redact("abcdefghijklmnopqrst") == "abcdef…"
