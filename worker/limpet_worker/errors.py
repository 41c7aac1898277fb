"""The errors of this package that its users meet.

::

    ValueError
    └── OptionError    an option of the server has a value that cannot be
"""

from __future__ import annotations


class OptionError(ValueError):
    """An option has a value that cannot be; the message names it, its value and what is right."""
