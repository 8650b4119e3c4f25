"""rmtrain: train, score and compare reward models from one YAML recipe."""

__version__ = "0.2.0"
