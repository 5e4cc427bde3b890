"""Which models use one program, and where the programs of a process are kept."""
