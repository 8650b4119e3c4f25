"""The training run: plan, objectives, trainer, strategies, checkpoints."""
