"""The exception tree; every error growkit raises on purpose stands here.

GrowkitError                 exit code 3 unless a subclass says otherwise
├── UserInputError           exit code 2: the user can mend it
│   ├── ConfigError          a setting is wrong (carries every problem found, with file:line:column)
│   ├── DataError            data missing, unreadable, truncated or of the wrong shape
│   ├── ModelError           a model cannot be built, traced or does not fit its data
│   └── GrowthRefused        a width may not grow; the reason and the user's file:line
├── SurgeryError             an edit failed its verification and was rolled back
└── TrainingError            the run itself failed (loss became NaN, no memory left)
"""

from __future__ import annotations

__all__ = [
    "ConfigError",
    "DataError",
    "GrowkitError",
    "GrowthRefused",
    "ModelError",
    "SurgeryError",
    "TrainingError",
    "UserInputError",
]


class GrowkitError(Exception):
    """Base of every error growkit raises on purpose; `exit_code` is what the command line ends with."""

    exit_code = 3


class UserInputError(GrowkitError):
    """Something the user gave is wrong: the message says the rule, the value and the remedy."""

    exit_code = 2


class ConfigError(UserInputError):
    """One or more settings are wrong.

    Attributes:
        problems: every problem found, each a complete line `file:line:column: dotted.path: rule, value, hint`.
    """

    def __init__(self, problems: list[str] | str):
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        super().__init__("\n".join(self.problems))


class DataError(UserInputError):
    """Data are missing, unreadable, truncated or of the wrong shape."""


class ModelError(UserInputError):
    """A model cannot be built or traced, or does not fit its data."""


class GrowthRefused(UserInputError):
    """A width may not grow; the message gives the reason and where it stands."""


class GrowthWaits(GrowthRefused):
    """A width cannot grow for what the growth batch shows; on a later one it may."""


class SurgeryError(GrowkitError):
    """An edit changed the function or broke the model; it was rolled back."""


class TrainingError(GrowkitError):
    """The run itself failed, for a named cause."""
