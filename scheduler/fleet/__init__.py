"""The fleet that this process talks to, what puts it right, and the one that a folder has of its own."""
