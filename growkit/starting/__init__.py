"""`growkit init`: from a user's data to settings that run.

`recognise` says what lies there; `images`, `tables` and `sequences` settle how it is read; `recipe` chooses the model
and how it trains and grows; `page` writes it all down. A run's own code reads the data before a file is written.
"""

from growkit.starting.command import init

__all__ = ["init"]
