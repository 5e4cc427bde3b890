"""The page in the browser: every read of a search, while it runs and afterwards."""
