"""The tools on slots: what they find, and what they do, beside open stores and without."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

import ucm_async as ucm
from ucm_async.cli import main
from ucm_async.space.survey import DAMAGED
from ucm_async.stages.slab.survey import SlabSurvey

from .support import PAGE, SLOT, check, dump, find_block, home, keys, slot_counts


def survey_of(directory: Path) -> SlabSurvey:
    return SlabSurvey(home(directory).parent)


def damage(directory: Path, number: int) -> None:
    slot = find_block(directory, ucm.block_ids([number])[0].tobytes())
    assert slot is not None
    slot.write(b"\x55" * 8, PAGE + 1000)


@pytest.mark.parametrize("is_open", [False, True])
async def test_what_is_there_is_found_verified_and_removed(tmp_path: Path, is_open: bool) -> None:
    async with ucm.open_store("Slab", **keys(tmp_path)) as store:
        assert (await dump(store, 0, 30)).all()
        await store.delete(ucm.block_ids([29]))
        if is_open:
            await asyncio.to_thread(look, tmp_path, open_stores=1)
            assert slot_counts(store)["stored"] == 26
            assert slot_counts(store)["taken"] == 0
            assert (await store.lookup(ucm.block_ids(range(5)))).tolist() == [False, False, True, False, True]
            assert (await check(store, 4, 25)).all()
    if not is_open:
        await asyncio.to_thread(look, tmp_path, open_stores=0)
    async with ucm.open_store("Slab", **keys(tmp_path)) as store:
        assert (await check(store, 0, 30)).tolist() == [False, False, True, False, *[True] * 25, False]


def look(directory: Path, open_stores: int) -> None:
    survey = survey_of(directory)
    assert len(survey.living()) == open_stores
    blocks = [block for some in survey.blocks() for block in some]
    assert {block.block_id for block in blocks} == {one.tobytes() for one in ucm.block_ids(range(29))}
    assert survey.check(blocks) == survey.loose() == survey.quarantine() == []
    by_id = {block.block_id: block for block in blocks}
    names = [one.tobytes() for one in ucm.block_ids(range(4))]
    assert survey.remove([by_id[names[0]], by_id[names[1]]]) == 2 * SLOT
    assert survey.remove([by_id[names[0]]]) == 0, "it is gone"
    damage(directory, 3)
    (found,) = survey.check([by_id[names[2]], by_id[names[3]]])
    assert (found.kind, found.block) == (DAMAGED, by_id[names[3]])
    assert survey.set_aside([by_id[names[3]]]) == 1
    (aside,) = survey.quarantine()
    assert survey.check([aside])
    assert survey.remove([aside]) == SLOT
    assert survey.count() == 26


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async def fill() -> None:
        async with ucm.open_store("Slab", **keys(tmp_path)) as store:
            assert (await dump(store, 0, 10)).all()

    asyncio.run(fill())
    assert main(["fsck", str(tmp_path)]) == 0
    slot = find_block(tmp_path, ucm.block_ids([7])[0].tobytes())
    assert slot is not None
    good = slot.read()
    damage(tmp_path, 7)
    assert main(["fsck", str(tmp_path)]) == 1
    assert main(["stat", str(tmp_path), "--json"]) == 0
    assert main(["fsck", "--repair", str(tmp_path)]) == 0
    assert main(["fsck", str(tmp_path)]) == 0
    assert main(["quarantine", "restore", str(tmp_path)]) == 1, "it is damaged still"
    (aside,) = tmp_path.glob("*/quarantine/*")
    aside.write_bytes(good)
    capsys.readouterr()
    assert main(["quarantine", "restore", str(tmp_path)]) == 2
    assert "cannot be given slots again" in capsys.readouterr().err
    assert aside.read_bytes() == good, "it is still there"
    capsys.readouterr()
