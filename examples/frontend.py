"""The smallest inference frontend: load what is stored of a prompt, compute the rest, store it.

Run it twice with the same directory: the second run finds its prompts stored.

    python examples/frontend.py [DIRECTORY]
"""

from __future__ import annotations

import hashlib
import sys
import tempfile
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

import ucm_async as ucm

BLOCK_TOKENS = 16
BLOCK_BYTES = 64 << 10  # KV of 16 tokens: layers x 2 x KV heads x head size x 2 bytes x 16
DEADLINE_S = 0.5  # what is not here by then is computed: the user is waiting

Pool = npt.NDArray[np.uint8]  # (slots, BLOCK_BYTES): where attention reads the KV cache


def block_hashes(tokens: Sequence[int]) -> list[bytes]:
    """Hash each full block together with all before it, so that equal hashes mean equal prefixes."""
    hashes: list[bytes] = []
    for start in range(0, len(tokens) - BLOCK_TOKENS + 1, BLOCK_TOKENS):
        parent = hashes[-1] if hashes else b""
        run = np.array(tokens[start : start + BLOCK_TOKENS], dtype="<u4").tobytes()
        hashes.append(hashlib.sha256(parent + run).digest())
    return hashes


def prefill(block_hash: bytes, slot: Pool) -> None:
    """Stand in for the model: KV that depends on the tokens of the block and of its prefix."""
    slot[:] = np.random.default_rng(np.frombuffer(block_hash, dtype=np.uint32)).integers(0, 256, BLOCK_BYTES, np.uint8)


async def serve(store: ucm.Store, pool: Pool, tokens: Sequence[int]) -> tuple[int, int]:
    """Bring the KV of a prompt into `pool`; returns how many blocks were loaded and how many computed."""
    hashes = block_hashes(tokens)
    ids = ucm.block_ids(hashes)
    stored = await store.lookup_on_prefix(ids) + 1
    result = await store.load(ids[:stored], None, pool[:stored], timeout=DEADLINE_S)
    loaded = result.loaded_prefix  # attention needs a prefix: what lies behind the first failure is computed again
    for slot in range(loaded, len(hashes)):
        prefill(hashes[slot], pool[slot])
    # Storing what is stored already costs nothing; a real engine would not wait for this before its first token.
    dumped = await store.dump(ids[loaded:], None, pool[loaded : len(hashes)])
    dumped.raise_for_failures()
    return loaded, len(hashes) - loaded


async def main(directory: str) -> None:
    """Serve two prompts that begin alike."""
    rng = np.random.default_rng(7)
    system_prompt = rng.integers(0, 32_000, 512).tolist()
    prompts = [system_prompt + rng.integers(0, 32_000, 200).tolist() for _ in range(2)]
    pool = np.zeros((64, BLOCK_BYTES), dtype=np.uint8)
    async with ucm.open_store(
        "Posix", storage_backends=[directory], block_size=BLOCK_BYTES, namespace="example/bf16"
    ) as store:
        with store.register(pool):  # the engine moves bytes between files and the pool, without a copy
            for number, tokens in enumerate(prompts, 1):
                loaded, computed = await serve(store, pool, tokens)
                expected = np.empty(BLOCK_BYTES, dtype=np.uint8)
                for slot, block_hash in enumerate(block_hashes(tokens)):
                    prefill(block_hash, expected)
                    assert np.array_equal(pool[slot], expected)
                print(f"prompt {number}: {loaded} blocks loaded, {computed} computed")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        ucm.run(main(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory(dir=".") as scratch:
            ucm.run(main(scratch))
