"""A forked child may not use its parent's contexts, and its exit does not disturb them."""

from __future__ import annotations

import os
import signal
import traceback
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from ucm_async.engines.requests import OP_COPY, new_requests

from .tools import U8, address_of, native, noise, open_descriptors, reads, reap, run


def in_child(work: Callable[[], None]) -> None:
    """Run `work` in a forked child; it must not raise. A child that hangs is killed by its alarm."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # that threads do not survive is what is tested
        child = os.fork()
    if child == 0:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(20)
        status = 1
        try:
            work()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    _, status = os.waitpid(child, 0)
    assert status == 0


def refused(call: Callable[[], Any]) -> None:
    try:
        call()
    except RuntimeError as error:
        assert "after fork" in str(error)
    else:
        raise AssertionError("no error")


def test_every_call_is_refused_and_the_parent_goes_on(context: Any, file: int, data: U8) -> None:
    memory = np.zeros(100_000, np.uint8)
    requests = reads(file, memory, 100, [100 * i for i in range(1000)])
    context.submit(requests, "token")

    def work() -> None:
        refused(lambda: context.submit(new_requests(1), None))
        refused(context.reap)
        refused(context.close)
        refused(context.fileno)

    in_child(work)
    assert reap(context) == ["token"]
    assert np.array_equal(memory, data[:100_000])


def test_deallocation_in_the_child_leaves_the_parent_alone(file: int, data: U8) -> None:
    from .tools import MAKERS

    for make in MAKERS.values():
        contexts = [make()]
        memory = np.zeros(100_000, np.uint8)
        requests = reads(file, memory, 100, [100 * i for i in range(1000)])
        contexts[0].submit(requests, "token")

        def work(contexts: list[Any] = contexts) -> None:
            before = open_descriptors()
            contexts.clear()
            assert open_descriptors() < before

        in_child(work)
        assert reap(contexts[0]) == ["token"]
        assert np.array_equal(memory, data[:100_000])
        assert run(contexts[0], requests) == [100] * 1000
        contexts[0].close()


def test_a_child_has_contexts_of_its_own(file: int) -> None:
    from .tools import MAKERS

    def work() -> None:
        for make in MAKERS.values():
            made = make()
            assert run(made, reads(file, np.zeros(100, np.uint8), 100, [0])) == [100]
            made.close()

    in_child(work)


def test_a_gate_with_somebody_inside_can_be_closed_in_the_child() -> None:
    """The copier does not exist in the child: waiting for it would be for ever."""
    pool = native.ThreadPool(1)
    gate = native.Gate()
    source, target = noise(1 << 20), np.zeros(1 << 20, np.uint8)
    requests = new_requests(300)
    requests["opcode"] = OP_COPY
    requests["offset"] = address_of(source)
    requests["address"] = address_of(target)
    requests["length"] = len(source)
    requests["gate"] = gate.address
    pool.submit(requests, None)

    def work() -> None:
        gate.close()
        assert gate.closed

    for _ in range(5):
        in_child(work)
    assert not gate.closed
    gate.close()
    pool.close()
