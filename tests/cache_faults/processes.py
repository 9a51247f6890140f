"""Real processes, forked from a server that has imported everything: hundreds of them cost little."""

from __future__ import annotations

import multiprocessing
import os
import signal
from typing import Any

__all__ = ["Child"]

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["tests.cache_faults.roles"])
PATIENCE_S = 30.0


class Child:
    """A process that plays a role of `tests.cache_faults.roles`; messages are tuples that begin with a word."""

    def __init__(self, role: str, **about: Any) -> None:
        from .roles import play

        self._pipe, theirs = _CONTEXT.Pipe()
        self._process = _CONTEXT.Process(target=play, args=(role, theirs, about), daemon=True)
        self._process.start()
        theirs.close()

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    def tell(self, *message: Any) -> None:
        self._pipe.send(message)

    def said(self) -> list[tuple[Any, ...]]:
        """What it has said meanwhile; if it has died, all that came out whole."""
        messages: list[tuple[Any, ...]] = []
        try:
            while self._pipe.poll():
                messages.append(self._pipe.recv())
        except (EOFError, ConnectionResetError):
            pass
        for message in messages:
            assert message[0] != "failed", message[1]
        return messages

    def hears(self, seconds: float) -> bool:
        """Wait that long for a message, which stays where it is."""
        return self._pipe.poll(seconds)

    def expect(self, *words: str) -> Any:
        """Wait for a message that begins with one of `words`; others are dropped. Returns what follows the word."""
        while self._pipe.poll(PATIENCE_S):
            message = self._pipe.recv()
            assert message[0] != "failed", message[1]
            if message[0] in words:
                return message[1:]
        raise AssertionError(f"it never said {' or '.join(words)}")

    def ask(self, verb: str, *args: Any) -> Any:
        """Let a puppet do something, and wait for its answer."""
        self.tell(verb, args)
        return self.expect(verb)[0]

    def send(self, number: int) -> None:
        os.kill(self.pid, number)

    def stop(self) -> None:
        self.send(signal.SIGSTOP)

    def go_on(self) -> None:
        self.send(signal.SIGCONT)

    def kill(self) -> None:
        """kill -9, and wait until it is gone."""
        self.send(signal.SIGKILL)
        self._process.join(PATIENCE_S)
        assert self._process.exitcode == -signal.SIGKILL, f"it had ended before: {self._process.exitcode}"

    def end(self) -> None:
        """Wait until it ends by itself."""
        self._process.join(PATIENCE_S)
        assert self._process.exitcode == 0, self._process.exitcode

    def leave(self, word: str = "close") -> None:
        """Let it close its store, and end."""
        self.tell(word)
        self.expect("closed")
        self.end()

    def remove(self) -> None:
        """Whatever became of it: it is gone after this."""
        if self._process.is_alive():
            self._process.kill()
            self._process.join(PATIENCE_S)
        self._process.close()
        self._pipe.close()
