"""The method: makes a task expert out of an instruction, a few examples and one open model."""
