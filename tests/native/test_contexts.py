"""The contract that the thread pool and both rings share."""

from __future__ import annotations

import errno
import gc
import os
import threading
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ucm_async.engines.requests import IOVEC, OP_READ, OP_READV, OP_WRITE, OP_WRITEV, PENDING_RESULT, new_requests

from .tools import MAKERS, U8, address_of, join, noise, readable, reads, reap, request, results, run


def test_a_batch_comes_back_with_its_token_once(context: Any, file: int, data: U8) -> None:
    memory = np.zeros(64 * 1024, np.uint8)
    requests = reads(file, memory, 4096, [4096 * i for i in range(16)])
    assert run(context, requests) == [4096] * 16
    assert np.array_equal(memory, data[: len(memory)])
    assert context.reap() == []
    assert not readable(context, 0)


def test_write_then_read(context: Any, file: int) -> None:
    new = noise(40_000, 3)
    assert run(context, request(OP_WRITE, fd=file, address=address_of(new), length=40_000, offset=123)) == [40_000]
    memory = np.zeros(40_000, np.uint8)
    assert run(context, reads(file, memory, 40_000, [123])) == [40_000]
    assert np.array_equal(memory, new)


def test_vectors(context: Any, file: int, data: U8) -> None:
    parts = [np.zeros(size, np.uint8) for size in (10, 5000, 1)]
    iovecs = np.zeros(3, IOVEC)
    iovecs["address"] = [address_of(one) for one in parts]
    iovecs["length"] = [len(one) for one in parts]
    fields = {"fd": file, "address": address_of(iovecs), "length": 3, "offset": 50}
    assert run(context, request(OP_READV, **fields)) == [5011]
    assert np.array_equal(np.concatenate(parts), data[50 : 50 + 5011])
    parts[1][:] = 9
    assert run(context, request(OP_WRITEV, **fields)) == [5011]
    assert os.pread(file, 5011, 50) == np.concatenate(parts).tobytes()


def test_the_end_of_the_file(context: Any, file: int, data: U8) -> None:
    memory = np.full(3 * 4096, 0xEE, np.uint8)
    end = len(data)
    assert run(context, reads(file, memory, 4096, [end - 1000, end, end + 4096])) == [1000, 0, 0]
    assert np.array_equal(memory[:1000], data[-1000:])
    assert (memory[1000:] == 0xEE).all()


def test_each_request_fails_for_itself(context: Any, file: int, data: U8) -> None:
    memory = np.zeros(5 * 100, np.uint8)
    requests = reads(file, memory, 100, [0, 100, 200, 300, 400])
    requests["fd"][1] = -1
    requests["opcode"][2] = 99
    requests["address"][3] = 8
    assert run(context, requests) == [100, -errno.EBADF, -errno.EINVAL, -errno.EFAULT, 100]
    assert np.array_equal(memory[400:], data[400:500])


def test_a_batch_of_nothing_but_failures(context: Any) -> None:
    requests = new_requests(20)
    requests["opcode"] = OP_READ
    requests["fd"] = -1
    requests["length"] = 1
    assert run(context, requests) == [-errno.EBADF] * 20


def test_an_empty_batch_is_done_at_once(context: Any) -> None:
    context.submit(new_requests(0), "empty")
    assert readable(context, 10)
    assert context.reap() == ["empty"]


@pytest.mark.parametrize("kind", MAKERS)
def test_a_thousand_requests_through_one_place(kind: str, file: int, data: U8) -> None:
    context = MAKERS[kind](1)
    memory = np.zeros(1000 * 100, np.uint8)
    assert run(context, reads(file, memory, 100, [100 * i for i in range(1000)])) == [100] * 1000
    assert np.array_equal(memory, data[:100_000])
    context.close()


def test_many_batches_at_once(context: Any, file: int, data: U8) -> None:
    memory = np.zeros(200_000, np.uint8)
    batches = [reads(file, memory[i * 1000 :], 100, [i * 1000 + 100 * k for k in range(10)]) for i in range(200)]
    for i, batch in enumerate(batches):
        context.submit(batch, i)
    assert sorted(reap(context, 200)) == list(range(200))
    assert all((batch["result"] == 100).all() for batch in batches)
    assert np.array_equal(memory, data[:200_000])


def test_results_are_pending_until_then(context: Any, file: int) -> None:
    requests = reads(file, np.zeros(100, np.uint8), 100, [0])
    requests["result"] = 5
    context.submit(requests, None)
    assert results(requests)[0] in (PENDING_RESULT, 100)
    reap(context)
    assert results(requests) == [100]


def test_the_array_and_the_token_live_until_the_batch_is_done(context: Any, file: int) -> None:
    class Token:
        pass

    memory = np.zeros(1000, np.uint8)
    requests = reads(file, memory, 1000, [0])
    array_gone = weakref.ref(requests)
    token = Token()
    token_gone = weakref.ref(token)
    context.submit(requests, token)
    del requests, token
    gc.collect()
    assert array_gone() is not None
    assert token_gone() is not None
    tokens = reap(context)
    assert array_gone() is None
    assert tokens == [token_gone()]
    del tokens
    assert token_gone() is None


def test_an_array_in_use_cannot_be_resized(context: Any, file: int) -> None:
    requests = bytearray(reads(file, np.zeros(8, np.uint8), 0, [0]).tobytes())
    context.submit(requests, None)
    with pytest.raises(BufferError):
        requests.append(0)
    reap(context)
    requests.append(0)


@pytest.mark.parametrize("kind", MAKERS)
def test_close_waits_and_returns_what_was_not_reaped(kind: str, file: int, data: U8) -> None:
    context = MAKERS[kind](2)
    memory = np.zeros(100_000, np.uint8)
    batches = [reads(file, memory[i * 1000 :], 10, [i * 1000 + 10 * k for k in range(100)]) for i in range(100)]
    for i, batch in enumerate(batches):
        context.submit(batch, i)
    assert sorted(context.close()) == list(range(100))
    assert np.array_equal(memory, data[:100_000])
    assert context.close() == []


@pytest.mark.parametrize("kind", MAKERS)
def test_after_close(kind: str) -> None:
    context = MAKERS[kind]()
    context.close()
    with pytest.raises(ValueError, match="close"):
        context.submit(new_requests(1), None)
    with pytest.raises(ValueError, match="close"):
        context.fileno()
    assert context.reap() == []


@pytest.mark.parametrize("kind", MAKERS)
def test_deallocation_drains(kind: str, file: int, data: U8) -> None:
    context = MAKERS[kind](2)
    memory = np.zeros(100_000, np.uint8)
    requests = reads(file, memory, 100, [100 * i for i in range(1000)])

    class Token:
        pass

    token = Token()
    gone = weakref.ref(token)
    context.submit(requests, token)
    del token, context
    assert gone() is None
    assert results(requests) == [100] * 1000
    assert np.array_equal(memory, data[:100_000])


def test_a_cycle_through_a_token_is_collected(context: Any, file: int) -> None:
    kind = next(name for name, make in MAKERS.items() if type(make()) is type(context))
    inner = MAKERS[kind]()

    class Holder:
        context: Any = None

    holder = Holder()
    holder.context = inner
    gone = weakref.ref(holder)
    inner.submit(reads(file, np.zeros(100, np.uint8), 100, [0]), holder)
    del holder, inner
    gc.collect()
    assert gone() is None


def test_wrong_arguments(context: Any) -> None:
    with pytest.raises(TypeError):
        context.submit(new_requests(1))
    with pytest.raises(TypeError):
        context.submit(7, None)
    with pytest.raises(ValueError, match="multiple of 48"):
        context.submit(bytearray(100), None)
    with pytest.raises((BufferError, ValueError)):
        context.submit(bytes(48), None)
    with pytest.raises((BufferError, ValueError)):
        context.submit(new_requests(4)[::2], None)
    assert context.reap() == []


def test_the_descriptor(context: Any) -> None:
    fd = context.fileno()
    assert not os.get_blocking(fd)
    assert not os.get_inheritable(fd)


def test_two_threads_never_crash(context: Any, file: int, data: U8) -> None:
    """Each call works or raises RuntimeError; every accepted batch comes back once."""
    memory = np.zeros((3, 300, 2000), np.uint8)
    seen: list[Any] = []
    refused = [0]
    accepted = [0] * 3
    lock = threading.Lock()

    def call(what: Any, *args: Any) -> Any:
        try:
            return what(*args)
        except RuntimeError:
            with lock:
                refused[0] += 1
            return None

    def work(me: int) -> None:
        for i in range(300):
            requests = reads(file, memory[me, i], 100, [me * 30_000 + 100 * k for k in range(20)])
            try:
                context.submit(requests, (me, i))
                accepted[me] += 1
            except RuntimeError:
                pass
            tokens = call(context.reap)
            with lock:
                seen.extend(tokens or [])

    threads = [threading.Thread(target=work, args=(me,)) for me in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seen += context.close()
    assert len(seen) == len(set(seen)) == sum(accepted)
    assert sum(accepted) > 0


def test_reads_and_writes_are_not_mixed_up(context: Any, file: int) -> None:
    """Eight writers and readers of their own ranges in one batch, again and again."""
    for step in range(20):
        news = [noise(1000, step * 8 + i) for i in range(8)]
        writes = [
            request(OP_WRITE, fd=file, address=address_of(one), length=1000, offset=i * 1000)
            for i, one in enumerate(news)
        ]
        assert run(context, join(*writes)) == [1000] * 8
        memory = np.zeros(8000, np.uint8)
        assert run(context, reads(file, memory, 1000, [i * 1000 for i in range(8)])) == [1000] * 8
        assert np.array_equal(memory, np.concatenate(news))


@pytest.mark.parametrize("kind", [*MAKERS, "uring, asynchronous"])
def test_the_thread_that_submits_may_end(kind: str, tmp_path: Path) -> None:
    """The kernel ties some requests to their thread, and drops them when it ends. They are done all the same."""
    body = noise(8 << 20)
    path = tmp_path / "big"
    path.write_bytes(body.tobytes())
    fd = os.open(path, os.O_RDONLY)
    os.fsync(fd)
    for _ in range(5):
        context = MAKERS["uring"](8, force_async=True) if "," in kind else MAKERS[kind]()
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        memory = np.zeros_like(body)
        requests = reads(fd, memory, 1 << 18, [(1 << 18) * i for i in range(32)])
        thread = threading.Thread(target=context.submit, args=(requests, "token"))
        thread.start()
        thread.join()
        assert reap(context) == ["token"]
        assert results(requests) == [1 << 18] * 32
        assert np.array_equal(memory, body)
        context.close()
    os.close(fd)
