"""Stored and given texts as they may be shown on a terminal, which obeys what can't be printed."""

from __future__ import annotations


def plain(text: str) -> str:
    """Show a text in one line: what can't be printed, the ends of lines too, as its escape sequence."""
    if text.isprintable():  # a megabyte of what a model prints takes its time otherwise
        return text
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


def plain_lines(text: str) -> str:
    """Show a text of several lines: as `plain`, line by line."""
    return "\n".join(map(plain, text.split("\n")))
