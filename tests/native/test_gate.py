"""Gates: after close() nobody touches the memory."""

from __future__ import annotations

import errno
import threading

import numpy as np
import pytest

from ucm_async.engines.requests import OP_COPY, OP_MOVE, new_requests

from .tools import address_of, native, noise, reap, results


def test_open_and_closed() -> None:
    gate = native.Gate()
    assert not gate.closed and gate.address % 4 == 0
    gate.close()
    gate.close()
    assert gate.closed


@pytest.mark.parametrize("opcode", [OP_COPY, OP_MOVE])
def test_nothing_is_written_after_close(opcode: int) -> None:
    """Close in the middle of a long copy, poison the target at once, and look at it when the copier has stopped."""
    pool = native.ThreadPool(2)
    source = noise(8 << 20)
    whole = native.crc32c(source) if opcode == OP_COPY else 0
    cancelled = 0
    for _ in range(20):
        gate = native.Gate()
        target = np.zeros(8 << 20, np.uint8)
        requests = new_requests(64)
        requests["opcode"] = opcode
        requests["offset"] = address_of(source)
        requests["address"] = address_of(target)
        requests["length"] = len(source)
        requests["gate"] = gate.address
        pool.submit(requests, "token")
        while not target[:4096].any():
            pass
        gate.close()
        target[:] = 0xEE
        assert reap(pool) == ["token"]
        assert (target == 0xEE).all()
        assert set(results(requests)) <= {whole, -errno.ECANCELED}
        cancelled += results(requests).count(-errno.ECANCELED)
    assert cancelled > 0
    pool.close()


def test_many_may_close_at_once() -> None:
    pool = native.ThreadPool(2)
    source, target = noise(1 << 20), np.zeros(1 << 20, np.uint8)
    gate = native.Gate()
    requests = new_requests(50)
    requests["opcode"] = OP_COPY
    requests["offset"] = address_of(source)
    requests["address"] = address_of(target)
    requests["length"] = len(source)
    requests["gate"] = gate.address
    pool.submit(requests, None)
    threads = [threading.Thread(target=gate.close) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert pool.close() == [None]
    assert set(requests["result"].tolist()) <= {-errno.ECANCELED, native.crc32c(source)}
