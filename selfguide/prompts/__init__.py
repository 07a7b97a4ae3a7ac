"""Every prompt of a run, made in one place from the templates beside this file."""

from selfguide.prompts.prompts import TEMPLATES, Asking, Prompts

__all__ = ["TEMPLATES", "Asking", "Prompts"]
