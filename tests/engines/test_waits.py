"""Waiting for a future that is not cancelled, for as long as there is time."""

from __future__ import annotations

import asyncio

import pytest

from ucm_async.engines.waits import Haste, patient, patient_in_haste


def new_future() -> asyncio.Future[None]:
    return asyncio.get_running_loop().create_future()


async def test_patience_ends() -> None:
    future = new_future()
    assert not await patient(future, 0.001)
    assert not future.done()
    future.set_result(None)
    assert await patient(future, 0)


async def test_it_ends_early_when_the_future_does() -> None:
    future = new_future()
    asyncio.get_running_loop().call_soon(future.set_result, None)
    async with asyncio.timeout(5):
        assert await patient(future, float("inf"))


async def test_haste_makes_it_shorter() -> None:
    future, haste, asked = new_future(), Haste(), []

    def seconds() -> float:
        asked.append(len(asked))
        return 60.0 if len(asked) < 3 else 0.0

    waiting = asyncio.ensure_future(patient_in_haste(future, seconds, haste))
    await asyncio.sleep(0)
    haste()
    await asyncio.sleep(0.01)
    assert not waiting.done() and len(asked) == 2
    haste()
    async with asyncio.timeout(5):
        assert not await waiting
    haste()  # nobody waits
    assert len(asked) == 3


async def test_a_cancelled_wait_leaves_the_future_alone() -> None:
    future, haste = new_future(), Haste()
    waiting = asyncio.ensure_future(patient_in_haste(future, lambda: 60.0, haste))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert not future.cancelled()
    haste()
    future.set_result(None)
