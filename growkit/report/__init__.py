"""What a run leaves behind and shows while it goes: console, events, metrics, TensorBoard."""

from growkit.report.console import ConsoleReport, summary_lines
from growkit.report.events import JsonLines
from growkit.report.folder import MetricsTable, RunFolder, check_writable, write_atomically
from growkit.report.observer import Observer, Reporter, RunFacts

__all__ = [
    "ConsoleReport",
    "JsonLines",
    "MetricsTable",
    "Observer",
    "Reporter",
    "RunFacts",
    "RunFolder",
    "check_writable",
    "summary_lines",
    "write_atomically",
]
