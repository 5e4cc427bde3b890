"""Texts as reports may show them: the storage room's, for logs show them as well."""

from gridfleet.storage.plain import plain, plain_lines

__all__ = ["plain", "plain_lines"]
