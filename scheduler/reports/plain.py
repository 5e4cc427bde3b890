"""Texts as reports may show them: the storage room's, for logs show them as well."""

from gridfleet.storage.plain import last_line, plain, plain_lines

__all__ = ["last_line", "plain", "plain_lines"]
