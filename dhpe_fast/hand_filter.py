"""Smoothing of a fitted hand over time: One-Euro filters on its rotations, its place and its size in the image."""

from __future__ import annotations

from dataclasses import dataclass, field

from dhpe_fast.one_euro import OneEuro, PointFilter, RotationFilter
from dhpe_fast.rotation import axis_angle_to_matrix, matrix_to_axis_angle
from dhpe_fast.warm_start import PlacedHand


@dataclass(frozen=True)
class Smoothing:
    """Parameters of the filters, see :class:`dhpe_fast.one_euro.OneEuro`. A track has one shape: it is not filtered."""

    rotation: OneEuro = field(default_factory=lambda: OneEuro(2.0, 2.0))
    """Of the hand as a whole; speed in radians each second."""
    pose: OneEuro = field(default_factory=lambda: OneEuro(2.0, 2.0))
    """Of each of the 15 joints, by its own speed in radians each second."""
    place: OneEuro = field(default_factory=lambda: OneEuro(3.0, 10.0))
    """Of the middle finger's MCP joint in the image; speed in hand sizes each second."""
    size: OneEuro = field(default_factory=lambda: OneEuro(1.0, 4.0))
    """Of the logarithm of the scale, or of the depth where the camera is known; speed in factors of e each second."""


SMOOTHING = Smoothing()
"""For keypoints with the noise of a detector, at some 30 frames each second."""


class HandFilter:
    """The filters of one track."""

    def __init__(self, smoothing: Smoothing) -> None:
        self._rotation = RotationFilter(smoothing.rotation)
        self._pose = RotationFilter(smoothing.pose)
        self._place = PointFilter(smoothing.place)
        self._size = PointFilter(smoothing.size)

    def step(self, hand: PlacedHand, dt_s: float, hand_px: float) -> PlacedHand:
        """The filtered hand; the first one passes as it is.

        Args:
            hand: the fit of a frame.
            dt_s: time since the frame before, > 0.
            hand_px: size of the hand in the image, the unit of its speed.
        """
        pose = self._pose.step(axis_angle_to_matrix(hand.pose.reshape(15, 3)), dt_s)
        return PlacedHand(
            pose=matrix_to_axis_angle(pose).flatten(),
            rotation=self._rotation.step(hand.rotation, dt_s),
            root_px=self._place.step(hand.root_px, dt_s, hand_px),
            log_scale=self._size.step(hand.log_scale[None], dt_s)[0],
        )
