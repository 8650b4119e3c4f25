"""Other people's reward models, read from the files that they published."""
