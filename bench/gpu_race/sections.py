"""What `bench/gpu.py` runs, in order: each section in a process of its own, within its time."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from bench.gpu_race.workbench import Job, Workbench


@dataclass(frozen=True)
class Section:
    """Some jobs.

    Attributes:
        place: module and function that gives them, imported in the section's own process.
        seconds: after which the process is ended; what it reported stands.
    """

    place: str
    seconds: float

    def jobs(self, bench: Workbench) -> Iterator[Job]:
        module, name = self.place.split(":")
        found: Callable[[Workbench], Iterator[Job]] = getattr(
            importlib.import_module(f"bench.gpu_race.{module}"), name
        )
        return found(bench)


SECTIONS: dict[str, Section] = {
    "card": Section("ceilings:jobs", 30),
    "checks": Section("checks:jobs", 70),
    "attention": Section("attentions:training", 70),
    "elementwise": Section("elementwise:jobs", 50),
    "cross_entropy": Section("linears:cross_entropy", 30),
    "lora": Section("linears:lora", 30),
    "decode": Section("models:decoding", 45),
    "train": Section("models:training", 40),
    "paged": Section("attentions:paged", 20),
    "sampling": Section("attentions:sampling", 20),
    "linear": Section("linears:plain", 15),
    "quantized": Section("linears:quantized", 25),
    "decode-peers": Section("transformers_models:decoding", 40),
    "train-peers": Section("transformers_models:training", 30),
    "tests": Section("suite:jobs", 80),
}
"""By name; together less than ten minutes."""
