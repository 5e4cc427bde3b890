"""What keeps one process or model from harming the others: memory, output, orphans, folders."""
