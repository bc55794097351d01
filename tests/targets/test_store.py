"""The agent's folder: nothing counts before its hash is right, and transfers go on."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flatsat.canonical import sha256_bytes
from flatsat.targets.agent.store import Store, StoreError, check_sha

DATA = bytes(range(256)) * 40
SHA = sha256_bytes(DATA)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "store"))


def test_a_transfer_in_pieces_goes_on_in_another_store(store: Store) -> None:
    assert store.offset(SHA, len(DATA)) == 0
    assert store.append(SHA, 0, DATA[:1000]) == 1000
    again = Store(store.root)
    assert not again.has(SHA)
    assert again.offset(SHA, len(DATA)) == 1000
    again.append(SHA, 1000, DATA[1000:])
    assert again.finish(SHA)
    assert Path(store.path(SHA)).read_bytes() == DATA
    assert store.has(SHA)


def test_a_piece_at_the_wrong_place_is_refused_and_changes_nothing(store: Store) -> None:
    store.append(SHA, 0, DATA[:1000])
    for offset in (0, 999, 1001):
        with pytest.raises(StoreError, match="1000 bytes are here"):
            store.append(SHA, offset, b"x")
    assert store.offset(SHA, len(DATA)) == 1000


def test_bytes_that_do_not_give_the_name_are_not_kept(store: Store) -> None:
    store.append(SHA, 0, DATA[:-1] + b"!")
    assert not store.finish(SHA)
    assert not store.has(SHA)
    assert store.offset(SHA, len(DATA)) == 0


def test_a_blob_that_rotted_on_disk_is_dropped(store: Store) -> None:
    store.append(SHA, 0, DATA)
    assert store.finish(SHA)
    path = Path(store.path(SHA))
    path.write_bytes(DATA[:-1])
    assert not Store(store.root).has(SHA)
    assert not path.exists()


def test_a_partial_file_longer_than_the_blob_starts_anew(store: Store) -> None:
    store.append(SHA, 0, DATA)
    assert store.offset(SHA, 10) == 0
    assert store.offset(SHA, len(DATA)) == 0


def test_an_empty_blob_is_a_blob(store: Store) -> None:
    empty = sha256_bytes(b"")
    assert store.finish(empty)
    assert store.has(empty)


@given(st.one_of(st.text(max_size=70), st.none(), st.integers(), st.just("../" + "a" * 61)))
def test_only_hashes_become_file_names(name: object) -> None:
    with pytest.raises(StoreError, match="not a SHA-256"):
        check_sha(name)


def test_what_was_longest_unused_goes_first(store: Store) -> None:
    blobs = [bytes([n]) * 1000 for n in range(5)]
    for age, blob in enumerate(blobs):
        store.append(sha256_bytes(blob), 0, blob)
        assert store.finish(sha256_bytes(blob))
        os.utime(store.path(sha256_bytes(blob)), (1e9 - age, 1e9 - age))
    store.prune(keep_bytes=2500)
    assert [store.has(sha256_bytes(blob)) for blob in blobs] == [True, True, False, False, False]


def test_an_abandoned_transfer_goes_after_a_week(store: Store) -> None:
    store.append(SHA, 0, DATA[:10])
    store.prune()
    assert store.offset(SHA, len(DATA)) == 10
    os.utime(Path(store.root) / "partial" / SHA, (0, 0))
    store.prune()
    assert store.offset(SHA, len(DATA)) == 0


def test_the_epoch_outlives_the_agent(store: Store) -> None:
    assert store.epoch() == 0
    store.set_epoch(41)
    assert Store(store.root).epoch() == 41


def test_one_agent_at_a_time(store: Store) -> None:
    assert store.try_lock() is None
    assert Store(store.root).try_lock() == os.getpid()
