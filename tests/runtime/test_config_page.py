"""The reference page of the configuration is what the types say."""

from pathlib import Path

from tvau_edge.runtime.config_page import page

PAGE = Path(__file__).parents[2] / "docs" / "configuration.md"


def test_the_committed_page_is_current():
    assert PAGE.read_text() == page(), "python -m tvau_edge.runtime.config_page > docs/configuration.md"


def test_it_names_tables_ranges_and_defaults():
    text = page()
    assert "## `[[camera]]`" in text
    assert "## `[broker.tls]`" in text
    assert "| `port` | integer, ≥ 1, ≤ 65535 | none |" in text
    assert '| `device` | text | `"edge"` |' in text
    assert "| `bundle` | path | needed |" in text
