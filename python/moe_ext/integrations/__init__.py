"""Doors into other libraries. Each module imports its library, so none is imported from here."""
