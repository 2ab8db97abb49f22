"""Bundles: a machine file and all that it names, as one self-contained, validated dict."""

from __future__ import annotations

from flatfleet.runtime.bundle.core import Bundle, InputSpec, inputs, load, used_inputs

__all__ = ["Bundle", "InputSpec", "inputs", "load", "used_inputs"]
