"""Builds the hand model that ships with the package from published anthropometry (needs numpy and scipy)."""
