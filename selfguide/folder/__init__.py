"""A run folder: its files, who may write in it, and what made each of its results."""
