from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path

import pytest

from ucm_async.bench.limit import LimitError, LimitProgram, compile_limit
from ucm_async.bench.setting import Shape
from ucm_async.bench.slab import CASES, SlabSetting, run_cases, slot_bytes
from ucm_async.cli import main

SHAPES = (Shape(1 << 20, 3), Shape(65536, 10))


BARE_READS = pytest.mark.may_block("the bare preadv on the loop is what a load is compared with")


@pytest.mark.parametrize("case", [pytest.param(one, marks=BARE_READS if one == "latency" else ()) for one in CASES])
async def test_every_case_measures_a_real_store(case: str, tmp_path: Path) -> None:
    setting = SlabSetting(tmp_path, SHAPES, rounds=2, restart_blocks=300)
    found = await run_cases(setting, [case])
    assert found
    assert all(one.case == case and one.value.low <= one.value.median <= one.value.high for one in found)
    assert json.loads(json.dumps([one.as_dict() for one in found]))
    assert await asyncio.to_thread(lambda: list(tmp_path.iterdir())) == [], "the scratch directories are gone"


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
async def test_our_program_writes_and_reads_a_slab(tmp_path: Path) -> None:
    program = LimitProgram(await asyncio.to_thread(compile_limit), direct=False)
    slab, nbytes = tmp_path / "slab", slot_bytes(8192)
    try:
        for _ in range(2):  # the second time it is there
            assert (await program.write_slab(slab, nbytes, 20, depth=4)).blocks == 20
    except LimitError as error:
        if "io_uring_setup" in str(error):
            pytest.skip(f"no io_uring here: {error}")
        raise
    assert (await program.read_slab(slab, nbytes, 20, depth=4)).blocks == 20
    assert await asyncio.to_thread(slab.read_bytes) == b"\7" * nbytes * 20
    with pytest.raises(LimitError, match="transfer"):
        await program.read_slab(slab, nbytes, 21, depth=4)


def test_command_prints_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["bench", "slab", "--only", "dump", "--rounds", "1", "--shape", "65536x4", "--dir", str(tmp_path), "--json"]
    assert main(words) == 0
    told = json.loads(capsys.readouterr().out)
    assert {one["case"] for one in told["findings"]} == {"dump"}
