"""What a run leaves behind and shows while it goes: console, events, metrics, TensorBoard."""

from growkit.report.console import ConsoleReport, summary_lines
from growkit.report.events import JsonLines
from growkit.report.folder import MetricsTable, RunFolder, write_atomically
from growkit.report.observer import Observer, Reporter, RunFacts

__all__ = [
    "ConsoleReport",
    "JsonLines",
    "MetricsTable",
    "Observer",
    "Reporter",
    "RunFacts",
    "RunFolder",
    "summary_lines",
    "write_atomically",
]
