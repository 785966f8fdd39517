"""`growkit compare`: arms of an experiment, run on the same seeds, matched in cost, and told apart by paired intervals.

`arms` reads what is compared, `baselines` derives the usual rivals, `prospect` foresees what an arm costs, `campaign`
makes the runs in an order in which each can be matched, `runs` executes or collects them, `statistics` holds the
mathematics, `summary`, `table` and `figure` show what came out. `command` puts them together.
"""

from growkit.compare.command import CompareSettings, compare

__all__ = ["CompareSettings", "compare"]
