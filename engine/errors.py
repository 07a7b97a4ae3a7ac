"""Errors a user can cause. Each message is one line: what is wrong, where, and what to do."""

from __future__ import annotations


class EngineError(Exception):
    """Base of every error that comes from input rather than from a fault in the engine."""


class CheckpointError(EngineError):
    """A model's files are missing, damaged, incomplete or of an unknown architecture."""


class TokenizerError(EngineError):
    """A tokenizer's files are missing or unusable, or a chat template cannot be rendered."""


class RequestError(EngineError):
    """A generation or scoring request cannot be served as given."""


class AdapterError(EngineError):
    """An adapter is unknown, damaged, or does not fit the model."""


class TrainingError(EngineError):
    """A training run cannot start, or had to stop."""
