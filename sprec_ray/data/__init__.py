"""From raw files to examples, prompts and tokens."""
