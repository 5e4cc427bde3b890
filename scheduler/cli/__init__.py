"""The command `gridfleet`. Thin: each command imports what it needs, so that `--help` answers at once."""
