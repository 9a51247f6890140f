"""``python -m ucm_async.cli``, for where the script ``ucm-async`` is not on the path."""

from __future__ import annotations

import sys

from . import main

sys.exit(main())
