"""What a frontend asks of the store: requests from a Mooncake-format trace, or from a seeded multi-turn workload.

All of this is pure: no store, no loop, no clock. A request is its prefix-chained block hashes; two requests that begin
with the same hashes share those blocks.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

from ..errors import UcmError

__all__ = ["InfiniteCache", "MultiTurn", "Request", "TraceError", "ideal_hit_ratio", "parse_trace"]


@dataclass(frozen=True, slots=True)
class Request:
    """One prompt that an inference frontend has to serve.

    Attributes
    ----------
    timestamp_ms
        Arrival, counted from the start of the workload.
    block_hashes
        Prefix-chained hashes of the prompt's full blocks, first block first; non-negative.
    input_tokens, output_tokens
        Lengths of the prompt and of the answer; 0 where unknown.
    """

    timestamp_ms: int
    block_hashes: tuple[int, ...]
    input_tokens: int = 0
    output_tokens: int = 0


class TraceError(UcmError, ValueError):
    """A line of a trace is not a request."""


def parse_trace(lines: Iterable[bytes | str], source: str = "trace", first_line: int = 1) -> Iterator[Request]:
    """Read Mooncake-format requests: one JSON object a line, lazily. Blank lines are skipped.

    Parameters
    ----------
    lines
        For example a file opened in binary mode.
    source
        Named in errors.
    first_line
        Number of the first of `lines`, for errors.

    Raises
    ------
    TraceError
        A line is not a JSON object, lacks ``hash_ids``, or a value has the wrong type; the message says where.
    """
    for number, line in enumerate(lines, first_line):
        if line.strip():
            yield _parse_request(line, f"{source}:{number}")


def _parse_request(line: bytes | str, where: str) -> Request:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise TraceError(f"{where}: not JSON: {error}") from None
    if not isinstance(record, dict):
        raise TraceError(f"{where}: {type(record).__name__}, must be an object with hash_ids")
    if "hash_ids" not in record:
        raise TraceError(f"{where}: hash_ids is missing (keys: {', '.join(record) or 'none'})")
    hashes = record["hash_ids"]
    if not isinstance(hashes, list):
        raise TraceError(f"{where}: hash_ids: {type(hashes).__name__}, must be a list of ints")
    for position, one in enumerate(hashes):
        if type(one) is not int or one < 0:
            raise TraceError(f"{where}: hash_ids[{position}]: {one!r}, must be a non-negative int")
    return Request(
        timestamp_ms=int(_number(record, "timestamp", where)),
        block_hashes=tuple(hashes),
        input_tokens=int(_number(record, "input_length", where)),
        output_tokens=int(_number(record, "output_length", where)),
    )


def _number(record: dict[str, Any], key: str, where: str) -> float:
    value = record.get(key, 0)
    if type(value) not in (int, float) or not math.isfinite(value) or value < 0:
        raise TraceError(f"{where}: {key}: {value!r}, must be a non-negative number")
    return float(value)


class InfiniteCache:
    """A cache that keeps every block it was ever shown: the bound for every real one.

    Attributes
    ----------
    asked, hits
        Blocks asked for so far, and how many of them lay in a prefix that was stored when they were asked for.
    """

    def __init__(self) -> None:
        self.asked = 0
        self.hits = 0
        self._seen: set[int] = set()

    def __contains__(self, block_hash: int) -> bool:
        return block_hash in self._seen

    def serve(self, block_hashes: Sequence[int]) -> int:
        """Return how many leading blocks are stored, then store all of them."""
        seen = self._seen
        hits = next((i for i, one in enumerate(block_hashes) if one not in seen), len(block_hashes))
        self.asked += len(block_hashes)
        self.hits += hits
        seen.update(block_hashes)
        return hits

    @property
    def hit_ratio(self) -> float:
        """`hits` of `asked`; 0.0 if nothing was asked."""
        return self.hits / self.asked if self.asked else 0.0


def ideal_hit_ratio(requests: Iterable[Request]) -> float:
    """Prefix-hit ratio (blocks hit of blocks asked) of a cache without bounds that serves one request after another."""
    cache = InfiniteCache()
    for request in requests:
        cache.serve(request.block_hashes)
    return cache.hit_ratio


@dataclass(frozen=True, slots=True)
class MultiTurn:
    """Chats with shared system prompts: iterate it to get the requests, the same ones for the same fields.

    Users come back by Zipf's law. A user's conversation starts with one of a few system prompts; each turn adds a
    message, the request is the whole history with it, and then the answer is added. It ends after some turns or when
    the context is full.

    Attributes
    ----------
    seed
        Reproduces the run, on every Python version.
    requests
        How many; iteration ends then.
    users, zipf
        Number of users; the k-th of them is drawn with weight ``k ** -zipf``.
    system_prompts, system_blocks
        Number of shared system prompts, and the blocks of the longest; the others are shorter.
    message_blocks, answer_blocks
        Mean blocks that a turn adds before and after the request (at least one each).
    turns
        Mean turns of a conversation.
    context_blocks
        A conversation that would be longer than this is over.
    block_tokens
        Tokens of a block, for the token counts of the requests.
    interval_ms
        Mean time between two requests.
    """

    seed: int = 0
    requests: int = 800
    users: int = 64
    zipf: float = 0.8
    system_prompts: int = 4
    system_blocks: int = 48
    message_blocks: float = 10.0
    answer_blocks: float = 14.0
    turns: float = 6.0
    context_blocks: int = 256
    block_tokens: int = 16
    interval_ms: float = 50.0

    def __post_init__(self) -> None:
        for name in ("users", "system_prompts", "system_blocks", "context_blocks", "block_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: {getattr(self, name)}, must be at least 1")
        for name in ("message_blocks", "answer_blocks", "turns"):
            if not 1.0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name}: {getattr(self, name)}, must be a finite mean of at least 1")
        if self.requests < 0:
            raise ValueError(f"requests: {self.requests}, must not be negative")

    def __iter__(self) -> Iterator[Request]:
        # random() is the one method whose stream Python promises to keep between versions; everything is drawn from it.
        draw = random.Random(self.seed).random
        user_weights = list(accumulate((k + 1) ** -self.zipf for k in range(self.users)))
        chats: dict[int, _Chat] = {}
        clock_ms = 0.0
        for number in range(self.requests):
            user = min(bisect_left(user_weights, draw() * user_weights[-1]), self.users - 1)
            message = _geometric(draw(), self.message_blocks)
            chat = chats.get(user)
            if chat is None or chat.turns_left == 0 or len(chat.hashes) + message > self.context_blocks:
                chat = chats[user] = self._start(number, draw(), draw())
            chat.say(message)
            answer = _geometric(draw(), self.answer_blocks)
            clock_ms += -math.log1p(-draw()) * self.interval_ms
            tokens = len(chat.hashes) * self.block_tokens
            yield Request(int(clock_ms), tuple(chat.hashes), tokens, answer * self.block_tokens)
            chat.say(answer)
            chat.turns_left -= 1

    def _start(self, number: int, which: float, how_long: float) -> _Chat:
        """Begin a conversation, named by the `number` of its first request, behind a system prompt."""
        prompt = min(int(which * self.system_prompts), self.system_prompts - 1)
        chat = _Chat(f"system {self.seed} {prompt}", _geometric(how_long, self.turns))
        chat.say(max(1, self.system_blocks * (self.system_prompts - prompt) // self.system_prompts))
        chat.speaker = f"chat {self.seed} {number}"
        return chat


@dataclass(slots=True)
class _Chat:
    speaker: str
    turns_left: int
    hashes: list[int] = field(default_factory=list)

    def say(self, blocks: int) -> None:
        """Append `blocks` new blocks; each hash depends on the one before it and on the speaker."""
        for _ in range(blocks):
            parent = self.hashes[-1] if self.hashes else 0
            digest = hashlib.blake2b(f"{parent} {self.speaker}".encode(), digest_size=8).digest()
            self.hashes.append(int.from_bytes(digest, "little"))


def _geometric(uniform: float, mean: float) -> int:
    """Map a uniform number in [0, 1) to a geometric one, at least 1, with that mean."""
    if mean <= 1.0:
        return 1
    return 1 + int(math.log1p(-uniform) / math.log1p(-1.0 / mean))
