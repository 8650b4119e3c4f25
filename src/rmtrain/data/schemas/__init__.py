"""Row schemas: how the columns of a source become a prompt, its completions and the preferences among them."""
