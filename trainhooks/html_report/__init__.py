"""The report: one page of HTML that holds everything it shows, from one or several stores."""

from trainhooks.html_report.write import write_report

__all__ = ["write_report"]
