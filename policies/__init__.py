"""The policies that ship with the broker; each is a pure function with state."""
