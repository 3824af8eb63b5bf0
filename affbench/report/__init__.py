"""Tables, figures and the page over any number of runs.

Importing this package imports neither matplotlib nor jinja2; the names load on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from affbench.report.page import Extra, Picture, Report, write_report
    from affbench.report.results import LabelledRun, Results, read_results
    from affbench.report.tables import Table, summarise

__all__ = ["Extra", "LabelledRun", "Picture", "Report", "Results", "Table", "read_results", "summarise", "write_report"]

_HOME = {
    "Extra": "page",
    "LabelledRun": "results",
    "Picture": "page",
    "Report": "page",
    "Results": "results",
    "Table": "tables",
    "read_results": "results",
    "summarise": "tables",
    "write_report": "page",
}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"affbench.report.{_HOME[name]}"), name)
    raise AttributeError(f"module 'affbench.report' has no attribute '{name}'")
