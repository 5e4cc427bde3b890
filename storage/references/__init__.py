"""Data that stay where they are: named in a payload by path or URL and digest, read by each host itself."""
