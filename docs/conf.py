"""How the site is built: `sphinx-build -W docs build/site`. Nothing is fetched."""

from __future__ import annotations

import sys
from pathlib import Path

_DOCS = Path(__file__).resolve().parent
sys.path[:0] = [str(_DOCS), str(_DOCS.parent)]

import probe  # noqa: E402 (after the path is set)

project = "longcontext-probe"
author = "the authors of longcontext-probe"
copyright = "the authors of longcontext-probe, Apache-2.0"
version = release = probe.__version__

extensions = ["myst_parser", "sphinx_copybutton", "_extension"]
exclude_patterns = ["_extension", "Thumbs.db"]
source_suffix = {".md": "markdown"}
myst_enable_extensions = ["colon_fence", "deflist", "attrs_block"]
myst_heading_anchors = 3
toc_object_entries_show_parents = "hide"
pygments_style = "friendly"
pygments_dark_style = "github-dark"

html_theme = "furo"
html_title = "longcontext-probe"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sphinx = False
html_copy_source = False
html_theme_options = {"navigation_with_keys": True, "top_of_page_buttons": []}
copybutton_exclude = ".linenos, .gp, .go"
