"""How the documentation is built; `./dev docs` runs it with warnings as errors."""

import os
import sys
from importlib.metadata import version as version_of
from pathlib import Path

project = "mchannel"
author = "The mchannel authors"
project_copyright = "2026, The mchannel authors"
release = version = version_of("mchannel")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.viewcode", "sphinxcontrib.programoutput"]
os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # the commands shown
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
exclude_patterns = ["_build"]

autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "show-inheritance": True}
autodoc_typehints = "signature"
autodoc_preserve_defaults = True

html_theme = "furo"
html_title = "mchannel"
html_static_path = ["_static"]
