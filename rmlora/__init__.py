"""RM-LoRA: regularized and masked low-rank adaptation (Mao et al., arXiv 2407.12074)."""
