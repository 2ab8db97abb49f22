"""Documents: text, Markdown, PDF or a row of data, read into titled sections and split into parts."""

from __future__ import annotations

from flatfleet.runtime.documents.core import Document, Section, read, split

__all__ = ["Document", "Section", "read", "split"]
