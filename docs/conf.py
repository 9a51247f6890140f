"""Sphinx configuration."""

from __future__ import annotations

import ucm_async

project = "ucm_async"
author = "ucm_async contributors"
copyright = "2026, ucm_async contributors"
release = version = ucm_async.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"ucm_async {version}"

# Docstrings write `name` for names of the API, which is not always something that can be linked.
default_role = "code"
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
napoleon_google_docstring = False
napoleon_use_ivar = True
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
