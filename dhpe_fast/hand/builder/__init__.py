"""Builds the hand model that ships with the package from published anthropometry (needs numpy and scipy)."""

try:
    import scipy  # noqa: F401
except ImportError as error:
    raise ImportError(
        "dhpe_fast.hand.builder needs SciPy, which the package itself does not: pip install 'dhpe-fast[dev]'"
    ) from error
