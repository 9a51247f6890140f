from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from ucm_async.bench import beside, codecs
from ucm_async.bench.setting import BenchError
from ucm_async.cli import main
from ucm_async.native import NATIVE
from ucm_async.stages.compress.codecs import Codec, Layout, make_codec

needs_extension = pytest.mark.skipif(not NATIVE, reason="needs the extension")


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(beside, "_SAMPLE_SECONDS", 0.0)


@needs_extension
def test_every_codec_on_the_sample(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "codecs", "--rounds", "1", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    found = {one["codec"]: one for one in told["codecs"]}
    assert set(found) == set(codecs.ALL_CODECS) and not told["left_out"]
    assert found["huffman"]["ratio"] > 1.45 and found["huffman"]["relative_l2"] is None
    assert 0 < found["int4"]["relative_l2"] < 0.1 and found["int4"]["max_abs"] > 0
    assert all(one[verb][0] > 0 for one in told["codecs"] for verb in ("encode", "decode", "encode_two", "decode_two"))
    for one in told["codecs"]:
        assert set(one["two_over_one"]) == {"encode", "decode", *beside.REFERENCES}
        assert one["two_over_one"]["encode"] == pytest.approx([one["encode_two"][0] / one["encode"][0]] * 3, rel=1e-4)
        assert one["fresh_over_pooled"] == pytest.approx([one["fresh_us"][0] / one["pooled_us"][0]] * 3, rel=1e-4)


def test_data_of_ones_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save(tmp_path / "kv.npy", np.random.default_rng(0).normal(0, 1, 30_000).astype(np.float16))
    words = ["--data", str(tmp_path / "kv.npy"), "--dtype", "fp16", "--shard-bytes", "20000", "--rounds", "1"]
    assert main(["bench", "codecs", *words]) == 0
    told = capsys.readouterr().out
    assert "zstd" in told and "left out: packed" in told
    assert main(["bench", "codecs", *words, "--codec", "packed"]) == 2
    assert main(["bench", "codecs", *words[:-2], "--shard-bytes", "100000"]) == 2
    assert "must be at least one shard" in capsys.readouterr().err


def test_a_codec_that_is_not_lossless_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = codecs.load_bytes(None)[:100_000]

    def broken(codings: object, context: object) -> None:
        Codec.decode(codings, context)  # type: ignore[arg-type]
        work = codings["target"][0]  # type: ignore[index]
        np.ctypeslib.as_array((np.ctypeslib.ctypes.c_uint8 * 1).from_address(int(work)))[0] ^= 1

    monkeypatch.setattr(codecs, "decode", broken)
    with pytest.raises(BenchError, match="changed bytes"):
        codecs.measure_codec("raw", raw, Layout(), 10_000, 1)
    assert make_codec("raw").lossless
