"""Finetuning an adapter: packing, gradients, optimizer, exact resumption."""
