"""The site of the documentation: Sphinx over the pages as they lie in the repository, and over the reference."""

import os
import sys
from collections.abc import Mapping
from pathlib import Path

from sphinx.application import Sphinx

HOME = "docs/index"
REDIRECT = f'<!doctype html><meta charset="utf-8"><meta http-equiv="refresh" content="0; url={HOME}.html">\n'
"""Pages keep the paths that they have in the repository, so that their links are right in both places."""
CONFIG: Mapping[str, object] = {
    "project": "hotslot",
    "root_doc": HOME,
    "extensions": ["myst_parser"],
    "myst_heading_anchors": 6,
    "myst_enable_extensions": ["attrs_inline"],
    # A chain of characters that look like a typographer's is code or output.
    "smartquotes": False,
    "highlight_language": "text",
    "html_theme": "furo",
    "html_title": "hotslot",
    "html_copy_source": False,
    "html_show_sourcelink": False,
    "html_show_sphinx": False,
    "html_theme_options": {"navigation_with_keys": True},
    "show_warning_types": True,
}


def build(source: Path, folder: Path, *, check: bool) -> bool:
    """Build the pages of `source` into `folder/html`; false where there was a warning. `check` writes no pages."""
    html = folder / "html"
    # Sphinx takes the date of a build from here; without one two builds of the same pages differ.
    os.environ.setdefault("SOURCE_DATE_EPOCH", "0")
    app = Sphinx(
        str(source),
        confdir=None,
        outdir=str(html),
        doctreedir=str(folder / "doctrees"),
        buildername="dummy" if check else "html",
        confoverrides=dict(CONFIG),
        status=None,
        warning=sys.stderr,
        freshenv=True,
        warningiserror=True,
    )
    app.build()
    if app.statuscode == 0 and not check:
        (html / "index.html").write_text(REDIRECT)
    return app.statuscode == 0
