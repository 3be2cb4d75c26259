"""The snippets of the pages for Python programmers, with real daemons."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pages import REPOSITORY, Reader, blocks

if TYPE_CHECKING:
    from pathlib import Path

PAGES = [
    *sorted(str(page.relative_to(REPOSITORY)) for page in (REPOSITORY / "docs" / "python").glob("*.md")),
    *(f"docs/{name}.md" for name in ("async", "cancellation", "context", "errors", "values")),
]


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page)])
def test_a_reader_can_do_what_the_page_shows(page: str, tmp_path: Path) -> None:
    with Reader(tmp_path) as reader:
        reader.read(page)
