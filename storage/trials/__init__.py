"""The only code that changes the state of a trial."""
