"""The recipe: a YAML file, read into a frozen and validated value."""
