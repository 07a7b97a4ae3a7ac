"""One GPU's benchmark: checks, ceilings, every operation and whole models beside their peers."""
