"""Fixtures of the codec tests."""

from __future__ import annotations

import pytest

from ucm_async.native import NATIVE
from ucm_async.stages.compress.codecs import Context

from .tools import new_context


@pytest.fixture(scope="module", params=[pytest.param(True, id="wide"), pytest.param(False, id="base")])
def context(request: pytest.FixtureRequest) -> Context:
    """A context, of each kind that the processor can run."""
    if not NATIVE:
        pytest.skip("needs the extension")
    made = new_context(wide=request.param)
    if request.param and not made.native.wide:
        pytest.skip("no AVX2 here")
    return made
