"""Tasks: what a user gives, in any of the formats that are read."""

from selfguide.tasks.task import EvalRow, Example, Task

__all__ = ["EvalRow", "Example", "Task"]
