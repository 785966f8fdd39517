"""What `growkit inspect` shows: a model's size, sites and refusals, as a table, as JSON and as a drawing.

`facts` finds them, `table` prints them; the drawing goes through `steps`, `frames`, `layout` and `svg`.
"""

from growkit.inspection.command import inspect

__all__ = ["inspect"]
