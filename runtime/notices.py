"""What a person at the terminal should hear from the runtime, and is no error: shown at the default level, too."""

from __future__ import annotations

import logging

NAME = "flatfleet.notices"

notices = logging.getLogger(NAME)
"""Commands show its records from INFO on, of everything else errors alone unless -v is given."""
