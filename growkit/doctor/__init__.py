"""What `growkit doctor` says: whether a run can work here, and what would make it work better.

`packages`, `machine` and `places` make the checks; `probe` is the process that imports what might not bear it.
"""

from growkit.doctor.checks import Check
from growkit.doctor.command import doctor

__all__ = ["Check", "doctor"]
