"""SELF-GUIDE's stages (arXiv 2407.12874), in the order of a run: inputs, annotate, filters,
synthesis (the loop over those), finetune, evaluate."""
