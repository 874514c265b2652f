"""Reports: self-contained HTML pages from the files of runs."""

from jaxnets.report.comparison import write_comparison
from jaxnets.report.page import check_replaceable
from jaxnets.report.single import write_report

__all__ = ["check_replaceable", "write_comparison", "write_report"]
