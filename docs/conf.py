"""How the pages are built: `make docs`. Neither Ray nor a GPU is needed."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

project = "resnet-ops"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "from_code"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = "resnet-ops"
html_show_copyright = False
html_copy_source = False

smartquotes = False  # which would make one dash of the two of an option
myst_heading_anchors = 3

# Docstrings write code in single backticks.
default_role = "code"
autodoc_mock_imports = ["ray"]
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False
