"""LoRA adapters: their tensors, the collection a model has at hand, PEFT's files."""
