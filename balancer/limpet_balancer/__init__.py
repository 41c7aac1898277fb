"""Which worker gets which connection: accepting, placing, and the hand-over to it (both ends)."""
