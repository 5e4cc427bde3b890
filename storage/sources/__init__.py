"""The script's own modules: which they are, and the archive of their source by which workers have them."""
