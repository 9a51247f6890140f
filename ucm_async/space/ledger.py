"""The account that the processes of a host keep together of one backend's directory, in memory that they share.

It has rows of eight words. An *account* row stands for a namespace, a *store* row for one open store:

=============  =====================================================  ===============================================
word           of an account                                          of an open store
=============  =====================================================  ===============================================
ACCOUNT        its own row + 1                                        the row of its account + 1; 0: the row is free
CHARGED        bytes that closed stores left                          bytes that this one added (reserved ones too),
                                                                      less those that it removed
USED           of these, in committed blocks                          likewise; CHARGED - USED is what is reserved
BUSY           row + 1 of the store that counts the files, 0: nobody  how many changes are under way
EXACT          1 if USED and CHARGED are what is on the disk
TOKEN          16 bytes: the namespace's fingerprint                  16 bytes: the owner's name
=============  =====================================================  ===============================================

A word of a store's row is written by that store alone, so no atomic addition is needed. To reserve, a store adds to its
own CHARGED, then looks at the sum of all, and takes it back if that is too much. Of any number of stores that do so at
once, the last to add sees what the others have added, if the store comes before the loads for every processor: that is
what `fence` is for. So what was granted never exceeds the bound, not even for an instant; two that ask for the last
bytes at once may both be refused, and ask again.

A store holds the lock of its row's byte as long as it lives; whoever can take that lock knows that it has died. What it
had added then goes to its account, which is exact still if nothing was under way, and is counted again otherwise.
Meanwhile it errs on the safe side: what a dead store reserved stays charged until somebody has counted.

The last store that leaves writes the accounts to a file beside the data, and the first that comes takes them from
there, unless the machine was started anew: what was not synced may be gone then, so everything is counted.
"""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np

from ..engines.sharedmemory import PrivateMemory, SharedMemory
from ..engines.system import System
from ..errors import ConfigError
from ..native import fence
from ..types import I64, Bools

__all__ = ["ACCOUNTS_NAME", "LOCK_NAME", "Ledger"]

_log = logging.getLogger("ucm_async.space")

LOCK_NAME: Final = "space.lock"
"""The file in a backend's directory that its ledger is found by."""

ACCOUNTS_NAME: Final = "space.json"
"""Where the accounts are while no store is open."""

ROWS: Final = 1024
"""Open stores and namespaces of one directory, together."""

MAGIC: Final = int.from_bytes(b"UCMSPACE", "little")
VERSION: Final = 1
_WORDS: Final = 8
ACCOUNT, CHARGED, USED, BUSY, EXACT, TOKEN = range(6)
_TOKEN_BYTES: Final = 16
_HEADER_BYTES: Final = 64
_BYTES: Final = _HEADER_BYTES + ROWS * _WORDS * 8

# Bytes that locks are named by, far behind the end of the file.
_TABLE_LOCK: Final = 1 << 40
_ROW_LOCKS: Final = 2 << 40
_LEASE_LOCKS: Final = 3 << 40


class Ledger:
    """One store's hold on the ledger of one backend. It begins with `join`.

    What blocks is called in a thread, by one at a time; what does not is called on the store's loop, also meanwhile.

    Parameters
    ----------
    system
        Who has the files and the memory.
    directory
        The backend's.
    private
        True to keep an account of this store alone, where nothing can be shared.

    Attributes
    ----------
    private
        As it was given.

    Raises
    ------
    OSError
        The lock file cannot be made or opened.
    """

    def __init__(self, system: System, directory: Path, *, private: bool = False) -> None:
        self._system = system
        self._directory = directory
        self.private = private
        self._row = self._account = -1
        self._words: I64 = _NO_WORDS
        self._charged: I64 = _NO_WORDS[:, CHARGED]
        self._shared: SharedMemory | None = (
            PrivateMemory(_BYTES) if private else system.shared_memory(directory / LOCK_NAME, _BYTES)
        )

    def _attach(self) -> None:
        """Map the memory; the first one to come takes over what the last one to go wrote down."""
        shared, accounts = self._memory(), self._directory / ACCOUNTS_NAME
        new = shared.attach()
        if not new and self._is_foreign(shared):
            if not shared.last:
                raise ConfigError(f"storage_backends: another version uses {str(self._directory)!r} just now")
            shared.remove()  # a crash left it; the files tell what is true
            shared.close()
            self._shared = shared = self._system.shared_memory(self._directory / LOCK_NAME, _BYTES)
            shared.lock(_TABLE_LOCK, wait=True)
            new = shared.attach()
        words = np.frombuffer(shared.memory, dtype=np.int64)
        self._words = words[_HEADER_BYTES // 8 :].reshape(ROWS, _WORDS)
        self._charged = self._words[:, CHARGED]
        if new and not self.private:
            self._read_accounts()
            words[: len(_HEAD)] = _HEAD
        if not self.private:
            self._system.unlink(accounts)  # from now on it is out of date

    @staticmethod
    def _is_foreign(shared: SharedMemory) -> bool:
        head = np.frombuffer(shared.memory, dtype=np.int64, count=len(_HEAD))
        return bool(head.tolist() != _HEAD)

    def _read_accounts(self) -> None:
        content = self._system.read_whole(self._directory / ACCOUNTS_NAME)
        if content is None:
            return
        try:
            about = json.loads(content)
            if about["version"] != VERSION or about["boot"] != self._system.boot_name():
                return
            rows = [(bytes.fromhex(name), one["used"], one["exact"]) for name, one in about["accounts"].items()]
        except (ValueError, KeyError, TypeError, OSError) as error:
            _log.warning("%s: %s; everything is counted again", self._directory / ACCOUNTS_NAME, error)
            return
        for row, (fingerprint, used, exact) in enumerate(rows):
            words = self._words[row]
            _put_token(words, fingerprint)
            words[CHARGED] = words[USED] = used
            words[EXACT] = exact
            words[ACCOUNT] = row + 1

    def _write_accounts(self) -> None:
        accounts = {
            self._words[row, TOKEN : TOKEN + 2].tobytes().hex(): {
                # What is charged and not used are files of stores that died: to be counted, and charged until then.
                "used": int(self._words[row, CHARGED]),
                "exact": bool(self._words[row, EXACT]),
            }
            for row in np.flatnonzero(self._accounts()).tolist()
        }
        about = {"version": VERSION, "boot": self._system.boot_name(), "accounts": accounts}
        self._system.write_whole(self._directory / ACCOUNTS_NAME, (json.dumps(about, indent=2) + "\n").encode())

    @contextlib.contextmanager
    def _table(self) -> Iterator[None]:
        """Hold the lock under which rows come and go: some microseconds, or as long as a new directory is walked."""
        self._memory().lock(_TABLE_LOCK, wait=True)
        try:
            yield
        finally:
            if self._shared is not None:
                self._shared.unlock(_TABLE_LOCK)

    def _memory(self) -> SharedMemory:
        assert self._shared is not None, "the ledger was closed"
        return self._shared

    # ---- coming and going; these block: call them in a thread

    def join(self, fingerprint: bytes, owner: str, root: Path, *, fresh: bool = False) -> None:
        """Take a row for a store of a namespace. If it fails, the ledger is closed.

        Parameters
        ----------
        fingerprint
            Of the namespace, 16 bytes.
        owner
            The store's name, up to 16 ASCII characters.
        root
            The namespace's directory: what is in it is charged if the namespace has no account yet.
        fresh
            True if it is known to be empty.

        Raises
        ------
        ConfigError
            There are too many stores and namespaces.
        OSError
            The memory cannot be had.
        """
        try:
            with self._table():
                self._attach()
                self._take_row(fingerprint, owner, root, fresh)
        except BaseException:
            self._close()
            raise

    def _take_row(self, fingerprint: bytes, owner: str, root: Path, fresh: bool) -> None:
        self._fold_dead()
        self._meet_strangers(fingerprint)
        account = self._find_account(fingerprint)
        if account < 0:
            account = self._add_account(fingerprint, None if fresh else root)
        row = self._free_row()
        self._memory().lock(_ROW_LOCKS + row, wait=True)  # somebody may just be looking whether it is free
        words = self._words[row]
        words[:] = 0
        _put_token(words, owner.encode())
        words[ACCOUNT] = account + 1
        self._row, self._account = row, account
        self._own = memoryview(words)

    def leave(self) -> None:
        """Leave what this store added to its account, and close. What is still reserved counts no more. Idempotent."""
        if self._shared is None:
            return
        if self._row >= 0:
            with self._table():
                self._own[BUSY] = 1  # who dies in here leaves an account that has to be counted
                self._fold(self._row)
                self._shared.unlock(_ROW_LOCKS + self._row)
                if self._shared.last and not self.private:
                    self._fold_dead()
                    try:
                        self._write_accounts()
                    except OSError as error:  # a full disk
                        _log.warning("%s: %s; the next store counts again", self._directory / ACCOUNTS_NAME, error)
                    self._shared.remove()
        self._close()

    def _close(self) -> None:
        shared, self._shared = self._shared, None
        self._words, self._charged = _NO_WORDS, _NO_WORDS[:, CHARGED]
        if self._row >= 0:
            self._own.release()
        self._row = -1
        if shared is not None:
            shared.close()

    def forget_dead(self) -> bool:
        """Look for stores that have died, of any namespace; tell whether there were any."""
        others = self._stores()
        others[self._row] = False
        if not any(self._is_dead(row) for row in np.flatnonzero(others).tolist()):
            return False
        with self._table():
            return self._fold_dead() > 0

    def _is_dead(self, row: int) -> bool:
        shared = self._memory()
        if not shared.lock(_ROW_LOCKS + row):
            return False
        shared.unlock(_ROW_LOCKS + row)
        return True

    def _fold_dead(self) -> int:
        """Give what dead stores added to their accounts; returns how many there were."""
        others = self._stores()
        if self._row >= 0:
            others[self._row] = False
        dead = [row for row in np.flatnonzero(others).tolist() if self._is_dead(row)]
        for row in dead:
            words = self._words[row]
            if words[BUSY] or words[CHARGED] != words[USED]:  # its files may be there, and are charged until counted
                account = self._words[words[ACCOUNT] - 1]
                account[EXACT] = 0
                account[CHARGED] += words[CHARGED] - words[USED]
            self._fold(row)
        return len(dead)

    def _fold(self, row: int) -> None:
        words = self._words[row]
        account, used = self._words[words[ACCOUNT] - 1], int(words[USED])
        account[CHARGED] += used  # before it goes from the row: the sum is too large for a moment, never too small
        account[USED] += used
        if account[BUSY] == row + 1:
            account[BUSY] = 0
            account[EXACT] = 0
        fence()
        words[:] = 0

    # ---- accounts

    def _stores(self) -> Bools:
        taken = self._words[:, ACCOUNT]
        return np.asarray((taken != 0) & (taken != np.arange(ROWS) + 1))

    def _accounts(self) -> Bools:
        return np.asarray(self._words[:, ACCOUNT] == np.arange(ROWS) + 1)

    def _find_account(self, fingerprint: bytes) -> int:
        for row in np.flatnonzero(self._accounts()).tolist():
            if self._words[row, TOKEN : TOKEN + 2].tobytes() == fingerprint:
                return int(row)
        return -1

    def _free_row(self) -> int:
        free = np.flatnonzero(self._words[:, ACCOUNT] == 0)
        if not len(free):
            raise ConfigError(
                f"storage_backends: {str(self._directory)!r} has {ROWS} namespaces and open stores, which is the most"
            )
        return int(free[0])

    def _add_account(self, fingerprint: bytes, root: Path | None) -> int:
        row = self._free_row()
        words = self._words[row]
        words[:] = 0
        words[CHARGED] = words[USED] = self._system.tree_bytes(root) if root is not None else 0
        words[EXACT] = root is None
        _put_token(words, fingerprint)
        fence()
        words[ACCOUNT] = row + 1
        return row

    def _meet_strangers(self, own: bytes) -> None:
        """Open accounts for namespaces that are in the directory and not in the ledger; close those that are gone."""
        there = {}
        for name in self._system.subdirectories(self._directory):
            with contextlib.suppress(ValueError):
                fingerprint = bytes.fromhex(name.rpartition("-")[2])
                if len(fingerprint) == _TOKEN_BYTES:
                    there[fingerprint] = name
        used = set(self._words[self._stores(), ACCOUNT].tolist())
        for row in np.flatnonzero(self._accounts()).tolist():
            fingerprint = self._words[row, TOKEN : TOKEN + 2].tobytes()
            known = there.pop(fingerprint, None)
            if known is None and row + 1 not in used and fingerprint != own:
                self._words[row] = 0
        for fingerprint, name in there.items():
            if fingerprint != own:
                self._add_account(fingerprint, self._directory / name)

    # ---- what is charged; these cost microseconds

    def charge(self, nbytes: int) -> None:
        """Reserve; whoever calls it looks at the sums afterwards, and takes it back if they are too large."""
        self._own[CHARGED] += nbytes
        fence()

    def commit(self, nbytes: int) -> None:
        """Count reserved bytes as used."""
        self._own[USED] += nbytes

    def release(self, nbytes: int) -> None:
        """Take back what was reserved."""
        self._own[CHARGED] -= nbytes

    def removed(self, nbytes: int) -> None:
        """Count used bytes as free."""
        self._own[USED] -= nbytes
        self._own[CHARGED] -= nbytes

    def charged(self) -> int:
        """Bytes that all namespaces occupy, reserved ones too."""
        return int(self._charged.sum())

    def charged_here(self) -> int:
        """Bytes that this namespace occupies, reserved ones too."""
        return int(self._charged[self._words[:, ACCOUNT] == self._account + 1].sum())

    @property
    def reserved_own(self) -> int:
        """Bytes that this store has reserved and not committed."""
        return int(self._own[CHARGED] - self._own[USED])

    def used_here(self) -> int:
        """Bytes of this namespace's committed blocks."""
        return int(self._words[self._words[:, ACCOUNT] == self._account + 1, USED].sum())

    @property
    def exact(self) -> bool:
        """Whether `used_here` is what is on the disk, and will be again when what is under way is over."""
        return bool(self._words[self._account, EXACT])

    # ---- changes, and counting when there are none

    @property
    def counting(self) -> int:
        """Who counts this namespace's files now, a number; 0: nobody."""
        return int(self._words[self._account, BUSY])

    def begin_change(self) -> bool:
        """Say that files will come or go; False if somebody counts them just now: then nothing was said."""
        self._own[BUSY] += 1
        fence()
        if not self._words[self._account, BUSY]:
            return True
        self._own[BUSY] -= 1
        return False

    def end_change(self) -> None:
        """Say that what `begin_change` announced is over, and accounted for."""
        fence()  # the counts before the end, for whoever counts
        self._own[BUSY] -= 1

    def begin_count(self) -> bool:
        """Ask every store of the namespace to pause; False if another counts. Blocks for some microseconds."""
        with self._table():
            self._fold_dead()
            account = self._words[self._account]
            if account[BUSY] not in (0, self._row + 1):
                return False
            account[BUSY] = self._row + 1
        fence()
        return True

    def all_paused(self) -> bool:
        """Tell whether no store of the namespace has changes under way. Blocks: it looks for stores that died, too."""
        if not self._words[self._of_account(), BUSY].any():
            fence()
            return True
        self.forget_dead()
        return False

    def _of_account(self) -> Bools:
        return np.asarray(self._stores() & (self._words[:, ACCOUNT] == self._account + 1))

    def owners(self) -> frozenset[str]:
        """Names of the namespace's living stores. Blocks."""
        tokens = self._words[self._of_account(), TOKEN : TOKEN + 2]
        return frozenset(one.tobytes().rstrip(b"\0").decode() for one in tokens)

    def end_count(self, nbytes: int | None, unfinished: int = 0) -> None:
        """Enter what was counted, and let the others go on.

        Parameters
        ----------
        nbytes
            Bytes of committed blocks; None if counting failed.
        unfinished
            Bytes of files that dead stores left and that could not be removed: the account stays inexact. Blocks.
        """
        account = self._words[self._account]
        with self._table():
            if nbytes is not None:
                base = nbytes - int(self._words[self._of_account(), USED].sum())
                account[USED] = base
                account[CHARGED] = base + unfinished
                account[EXACT] = unfinished == 0
            fence()
            account[BUSY] = 0

    # ---- the collector's lease; blocks

    def take_lease(self) -> bool:
        """Take the right to collect for this namespace; False if a living process has it."""
        return self._memory().lock(_LEASE_LOCKS + self._account)

    def give_lease(self) -> None:
        """Give it back."""
        self._memory().unlock(_LEASE_LOCKS + self._account)


_HEAD: Final = [MAGIC, VERSION, ROWS]
_NO_WORDS: Final = np.zeros((0, _WORDS), dtype=np.int64)


def _put_token(words: I64, token: bytes) -> None:
    assert len(token) <= _TOKEN_BYTES
    words[TOKEN : TOKEN + 2] = np.frombuffer(token.ljust(_TOKEN_BYTES, b"\0"), dtype=np.int64)
