"""Where models and measures meet: passes over token ids, and records of what they found."""
