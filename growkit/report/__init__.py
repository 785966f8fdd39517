"""What a run leaves behind and shows while it goes: console, events, metrics, TensorBoard."""

from growkit.report.console import ConsoleReport, summary_lines
from growkit.report.events import JsonLines
from growkit.report.files import write_atomically
from growkit.report.folder import MetricsTable, RunFolder
from growkit.report.ladder import LadderTable
from growkit.report.observer import Delayed, Observer, Reporter, RunFacts

__all__ = [
    "ConsoleReport",
    "Delayed",
    "JsonLines",
    "LadderTable",
    "MetricsTable",
    "Observer",
    "Reporter",
    "RunFacts",
    "RunFolder",
    "summary_lines",
    "write_atomically",
]
