"""A pytest plugin that gives the tests of the extension its pure-Python twin instead."""

from __future__ import annotations

import sys

import ucm_async
from ucm_async import _portable

sys.modules["ucm_async._native"] = _portable
ucm_async._native = _portable  # type: ignore[attr-defined]
