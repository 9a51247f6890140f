"""Stages in a running store: how they are composed, replaced and closed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any, ClassVar

import numpy as np
import pytest

from ucm_async import Status, Store, block_ids, open_store
from ucm_async.abc import Stage
from ucm_async.errors import ConfigError, UnknownNameError
from ucm_async.pipeline import register_stage, registry

from .doubles import ImmediateStage, OpenStage, SlowStage

IDS = block_ids(range(4))


@pytest.fixture(autouse=True)
def stages(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(registry, "_registered", dict(registry._registered))
    register_stage("Slow", SlowStage)
    register_stage("Open", OpenStage)
    register_stage("Immediate", ImmediateStage)
    SlowStage.made.clear()
    yield
    SlowStage.made.clear()


@pytest.fixture
async def store() -> AsyncIterator[Store]:
    async with open_store("Slow", block_size=16) as store:
        yield store
        for stage in SlowStage.made:
            stage.gate.set()


def dump(store: Store, count: int = 4) -> Any:
    return store.dump(IDS[:count], None, np.zeros((count, 16), dtype=np.uint8))


async def until_inside(stage: SlowStage, count: int) -> None:
    while stage.inside < count:
        await asyncio.sleep(0)


class TestReplace:
    async def test_what_is_inside_finishes_there(self, store: Store) -> None:
        (old,) = SlowStage.made
        first = dump(store)
        await until_inside(old, 1)
        replacing = asyncio.ensure_future(store.replace_stage("Slow", "Open"))
        while len(SlowStage.made) < 2:
            await asyncio.sleep(0.001)
        new = SlowStage.made[1]
        assert (await dump(store)).ok.all()
        assert len(new.batches) == 1
        assert not replacing.done()
        assert not old.closed
        assert not first.done()
        old.gate.set()
        await replacing
        assert (await first).ok.all()
        assert old.closed
        assert len(old.batches) == 1

    async def test_lookups_inside_finish_there_too(self, store: Store) -> None:
        (old,) = SlowStage.made
        calls = (store.lookup(IDS), store.lookup_on_prefix(IDS), store.delete(IDS))
        looking = [asyncio.ensure_future(call) for call in calls]
        await until_inside(old, 3)
        replacing = asyncio.ensure_future(store.replace_stage("Slow", "Open"))
        while len(SlowStage.made) < 2:
            await asyncio.sleep(0.001)
        assert (await store.lookup(IDS)).all()
        assert not old.closed
        old.gate.set()
        await asyncio.gather(*looking, replacing)
        assert old.closed

    async def test_an_idle_stage_is_closed_at_once(self, store: Store) -> None:
        (old,) = SlowStage.made
        await store.replace_stage("Slow", OpenStage)
        assert old.closed
        assert (await dump(store)).ok.all()
        assert list(store.statistics().pipeline) == ["Open"]

    async def test_again_and_again_under_traffic(self, store: Store) -> None:
        SlowStage.made[0].gate.set()
        await store.replace_stage("Slow", "Open")
        tasks = []
        for _ in range(10):
            tasks += [dump(store) for _ in range(5)]
            await store.replace_stage("Open", "Open")
        for task in tasks:
            assert (await task).ok.all()
        assert [stage.closed for stage in SlowStage.made] == [True] * 11 + [False]

    @pytest.mark.parametrize(
        ("name", "stage", "error", "message"),
        [
            ("Posix", "Open", ValueError, "name: no stage 'Posix' in this pipeline, it has Slow"),
            ("Slow", "Opem", UnknownNameError, "did you mean 'Open'"),
            ("Slow", "Posix", ConfigError, "storage_backends: empty"),
        ],
    )
    async def test_if_it_cannot_be_the_old_one_stays(
        self, store: Store, name: str, stage: str, error: type[Exception], message: str
    ) -> None:
        with pytest.raises(error, match=message):
            await store.replace_stage(name, stage)
        (old, *_) = SlowStage.made
        old.gate.set()
        assert not old.closed
        assert (await dump(store)).ok.all()


class TestLend:
    class Lender(OpenStage):
        """Lends what lies in its one array."""

        name: ClassVar[str] = "Lender"

        async def lease(self, ids: Any, deadline: float) -> Any:
            if deadline <= asyncio.get_running_loop().time():
                raise ValueError("no time")
            memory = np.arange(16, dtype=np.uint8)
            self.lent = Loan([memoryview(memory).toreadonly() for _ in ids])
            return self.lent

    @pytest.fixture(autouse=True)
    def lender(self, stages: None) -> None:
        register_stage("Lender", self.Lender)

    async def test_a_stage_lends_its_own_memory(self) -> None:
        async with open_store("Lender", block_size=16) as store:
            async with store.lease(IDS) as views:
                (stage,) = SlowStage.made
                assert views is stage.lent.views  # type: ignore[attr-defined]
                assert not stage.lent.released  # type: ignore[attr-defined]
                assert not stage.batches
            assert stage.lent.released  # type: ignore[attr-defined]

    async def test_it_is_not_closed_before_it_has_its_memory_back(self) -> None:
        async with open_store("Lender", block_size=16) as store:
            async with store.lease(IDS):
                (old,) = SlowStage.made
                replacing = asyncio.ensure_future(store.replace_stage("Lender", "Open"))
                while len(SlowStage.made) < 2:
                    await asyncio.sleep(0.001)
                await asyncio.sleep(0.001)
                assert not old.closed
            await replacing
            assert old.closed

    async def test_a_failed_lease_does_not_keep_it_open(self) -> None:
        async with open_store("Lender", block_size=16) as store:
            with pytest.raises(ValueError, match="no time"):
                async with store.lease(IDS, timeout=0):
                    pass
            await store.replace_stage("Lender", "Open")
            assert SlowStage.made[0].closed


class Loan:
    """See `ucm_async.abc.Lent`."""

    def __init__(self, views: list[memoryview | None]) -> None:
        self.views = views
        self.released = False

    def release(self) -> None:
        self.released = True


class TestCompose:
    class Upper(OpenStage):
        """A stage that needs another one."""

        name: ClassVar[str] = "Upper"
        needs_lower: ClassVar[bool | None] = True

        async def dump(self, batch: Any) -> None:
            assert self.lower is not None
            status, reasons = await self.lower.dump(
                batch.ids, batch.shards, batch.addresses, batch.piece_sizes, batch.durability
            )
            batch.report(np.arange(len(batch)), status, reasons)

    class NeverOpens(OpenStage):
        """A stage that cannot be opened."""

        name: ClassVar[str] = "NeverOpens"
        needs_lower: ClassVar[bool | None] = None

        async def open(self) -> None:
            raise OSError("no")

    @pytest.fixture(autouse=True)
    def more(self, stages: None) -> None:
        for stage in (self.Upper, self.NeverOpens):
            register_stage(stage.name, stage)

    async def test_stages_are_opened_from_below_and_closed_from_above(self) -> None:
        async with open_store("Upper|Open", block_size=16) as store:
            assert [stage.name for stage in SlowStage.made] == ["Open", "Upper"]
            assert (await dump(store)).ok.all()
            lower, upper = SlowStage.made
            assert len(lower.batches) == 1
            assert upper.lower is not None
            assert list(store.statistics().pipeline) == ["Upper", "Open"]
        assert lower.closed
        assert upper.closed

    async def test_a_cancelled_call_to_the_stage_below_outlasts_its_use_of_the_memory(self) -> None:
        """What is cancelled is given up, queued or not; but the one who called has its memory back when it is told."""
        keys = {"block_size": 16, "queue_number": 1, "queue_depth": 1, "slice_bytes": 4096}
        async with open_store("Upper|Slow", **keys):
            slow, upper = SlowStage.made
            assert upper.lower is not None
            rows = np.zeros((1024, 16), dtype=np.uint8)
            ids = block_ids(range(1024))
            addresses = (np.uint64(rows.ctypes.data) + np.arange(1024, dtype=np.uint64) * np.uint64(16)).reshape(-1, 1)
            shards, sizes = np.full(1024, -1), np.array([16])
            loading = asyncio.ensure_future(upper.lower.load(ids, shards, addresses, sizes))
            await until_inside(slow, 1)
            for _ in range(3):
                loading.cancel()
                await asyncio.sleep(0.001)
                assert not loading.done()
            slow.gate.set()
            with pytest.raises(asyncio.CancelledError):
                await loading
            assert slow.inside == 0
            status, _ = await upper.lower.load(ids, shards, addresses, sizes)
            assert (status == Status.OK).all()

    async def test_thousands_of_rows_pass_through_small_inboxes(self) -> None:
        keys = {"block_size": 16, "queue_number": 2, "queue_depth": 1, "slice_bytes": 4096}
        async with open_store("Upper|Open", **keys) as store:
            ids = block_ids(range(20_000))
            rows = np.zeros((1000, 16), dtype=np.uint8)
            tasks = [store.dump(ids[i : i + 1000], None, rows) for i in range(0, 20_000, 1000)]
            for task in tasks:
                assert (await task).ok.all()

    @pytest.mark.parametrize(
        ("pipeline", "message"),
        [
            ("Upper", r"Upper needs a stage below it, for instance Upper\|Posix"),
            ("Open|Slow", "Open must be the last stage"),
        ],
    )
    async def test_what_cannot_stand_there(self, pipeline: str, message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            await open_store(pipeline, block_size=16)
        assert not any(stage.opened for stage in SlowStage.made)

    async def test_what_was_opened_is_closed_if_the_next_cannot_be(self) -> None:
        with pytest.raises(OSError, match="no"):
            await open_store("NeverOpens|Open", block_size=16)
        assert [stage.closed for stage in SlowStage.made if stage.opened] == [True]

    def test_a_stage_must_be_whole(self) -> None:
        class Half(Stage):
            name = "Half"

        with pytest.raises(TypeError, match="abstract"):
            Half(None, None)  # type: ignore[abstract, arg-type]


async def test_loads_that_settle_at_once_leave_nothing_behind() -> None:
    """Awaiting a settled task gives the loop no turn: a caller may go on like that for ever."""
    row = np.zeros((1, 16), dtype=np.uint8)
    async with open_store("Immediate", block_size=16, task_max=4) as store:
        for _ in range(10):
            assert (await store.load(IDS[:1], None, row)).ok.all()
        assert store.statistics().tasks.finished == 10
