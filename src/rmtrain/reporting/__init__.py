"""Results for people to read: terminal tables, the one-page report, the model card."""
