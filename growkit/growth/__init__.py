"""Growth: when, where, how many, how."""
