"""Data with known answers."""

from dhpe_fast.data.rendered import RenderedHand, render_hands

__all__ = ["RenderedHand", "render_hands"]
