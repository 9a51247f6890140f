"""BlockTable from many threads, of one view and of several. Also what ThreadSanitizer runs."""

from __future__ import annotations

import random
import threading

import numpy as np
import pytest

from .table_child import STAMP_BYTES, Worker
from .tables import MINE, POLICIES, Table, check, names, new_memory
from .tools import native

SLOTS = 60


def run_all(works: list[threading.Thread]) -> None:
    for work in works:
        work.start()
    for work in works:
        work.join()


@pytest.mark.parametrize("policy", POLICIES)
def test_threads_of_one_view_and_of_others(policy: str) -> None:
    """Each looks after what it holds; at the end everything is given back, and the table is whole."""
    memory = new_memory(SLOTS)
    stamps = np.zeros((SLOTS, STAMP_BYTES // 8), np.uint64)
    tables = [Table(memory, SLOTS, policy, create=i == 0, process=i) for i in range(2)]
    for table in tables:
        table.raw.set_arena(stamps, STAMP_BYTES)
    failures: list[BaseException] = []

    def work(seed: int) -> None:
        worker = Worker(tables[seed % 2], stamps, seed)
        try:
            for _ in range(150):
                worker.step()
            worker.finish()
            worker.table.release([slot for slot, _ in worker.held])
        except BaseException as error:
            failures.append(error)
            raise

    run_all([threading.Thread(target=work, args=(seed,)) for seed in range(4)])
    assert not failures
    check(tables[0], lazy=True)
    assert [table.raw.statistics()["leases"] for table in tables] == [0, 0]
    tables[0].raw.repair()
    check(tables[0])


def test_large_calls_side_by_side() -> None:
    """Without the GIL they really are."""
    slots = 20_000
    table = Table(new_memory(slots), slots, create=True)
    ids = names(range(slots))
    table.fill(ids)
    packed, wrong = b"".join(ids), []

    def lease(seed: int) -> None:
        mine = np.zeros(slots, np.int64)
        out = np.zeros(slots, np.uint8)
        for _ in range(5):
            if table.raw.probe(packed, out) != slots or table.raw.prefix(packed) != slots:
                wrong.append(seed)
            if table.raw.lease(packed, mine) != slots:
                wrong.append(seed)
            table.raw.release(mine)

    run_all([threading.Thread(target=lease, args=(seed,)) for seed in range(4)])
    assert not wrong
    assert table.raw.statistics()["leases"] == 0
    check(table)


def test_of_all_threads_one_fills() -> None:
    """Each id is claimed by all, and is one's to fill."""
    table = Table(new_memory(SLOTS), SLOTS, create=True)
    got: list[int] = []
    start = threading.Barrier(4)

    def claim(seed: int) -> None:
        order = list(range(SLOTS))
        random.Random(seed).shuffle(order)
        start.wait()
        for key in order:
            claim = table.claim_one(key.to_bytes(16, "little"))
            if claim.state == MINE:
                got.append(key)

    run_all([threading.Thread(target=claim, args=(seed,)) for seed in range(4)])
    assert sorted(got) == list(range(SLOTS))
    assert table.counts() == {"filling": SLOTS, "held": SLOTS}


def test_a_watcher_in_many_threads() -> None:
    table = Table(new_memory(SLOTS), SLOTS, create=True)
    watcher = native.Watcher(table.raw)

    def work() -> None:
        for i in range(200):
            watcher.arm()
            table.drop(names([i]))
            watcher.clear()
            watcher.disarm()

    run_all([threading.Thread(target=work) for _ in range(4)])
    watcher.close()
