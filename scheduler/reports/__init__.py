"""Every read, and how it is shown at a terminal."""
