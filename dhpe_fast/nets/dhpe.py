"""DHPE: the dense hand pose estimator of Baek, Kim and Kim (CVPR 2019) as a composition of its parts (Eq. 1)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

import torch
from torch import Tensor, nn

from dhpe_fast.conventions import CROP_SIZE_PX
from dhpe_fast.hand import HandModel
from dhpe_fast.hand.derived_models import copied_model
from dhpe_fast.nets.heatmaps import joints_from_heatmaps
from dhpe_fast.nets.mesh_estimator import MeshEstimator
from dhpe_fast.nets.pose2d import Pose2DNet
from dhpe_fast.nets.projector import Projector
from dhpe_fast.nets.resnet import FeatureExtractor, check_images
from dhpe_fast.nets.results import DHPEOutput, Evidence, MeshEstimate, Projection
from dhpe_fast.nets.unet_pose2d import UNetPose2D


@dataclass(frozen=True)
class DHPESpec:
    """The options of :class:`DHPE`; the defaults are the paper's. Checked by the parts that use them."""

    depth: Literal[18, 34, 50, 101, 152] = 50
    """Of the ResNet F."""
    image_size: int = CROP_SIZE_PX
    """Side S of the crops in pixels."""
    features_size: int | None = None
    """Side in pixels to which F averages the crops down; None takes them as they are."""
    pose2d: Literal["posenet", "unet"] = "posenet"
    """f_J2D: the paper's ``Pose2DNet`` (Zimmermann and Brox 2017), or the smaller ``UNetPose2D``."""
    pose2d_width: float = 1.0
    """Factor on the channels of f_J2D."""
    pose2d_stages: int = 3
    """Stages of a "posenet"; a "unet" has one."""
    pose2d_input_size: int = 256
    """Side to which f_J2D resizes the crops; its heat maps have an eighth of it, 32 in the paper ("unet": a fourth)."""
    pose2d_subpixel: bool = False
    """Whether j_2D is read between the cells of the heat maps; the paper takes the largest cell."""
    pose2d_silhouette: bool = False
    """Whether a "unet" also tells which cells are the hand: not in the paper."""
    iterations: int = 3
    """Of the mesh estimator (Eq. 5)."""
    regressor_hidden: int = 0
    """Units of f_J3D's two hidden layers; 0 is the paper's single layer."""
    use_joints2d: bool = True
    """Whether f_J3D sees 2D joints; False is an ablation (Fig. 5e)."""
    use_refiner: bool = True
    """Whether f_Ref refines them (Eq. 6); False is an ablation (Fig. 5e)."""
    joint0: Literal["palm", "wrist"] = "palm"
    """What joint 0 is, in labels and in f_Reg: "palm", midway between wrist and middle MCP, or "wrist"."""
    silhouette_mode: Literal["nmr", "edge", "soft"] = "nmr"
    """Of f_Ren: "nmr" (the paper's, Kato et al. 2018), "edge" or "soft"."""


class DHPE(nn.Module):
    """f_DHPE = f_Proj o f_E3D o f_E2D: an RGB crop of a hand to its mesh, joints and mask (paper, Eq. 1, Fig. 2).

    Crops are RGB in [0, 1] and show a hand of the model's side. Each arrow of the figure is a method:
    ``estimate_evidence`` (f_E2D), ``estimate_mesh`` (f_E3D) and ``project`` (f_Proj); ``forward`` calls them in turn.
    A loss on mesh, joints or mask trains F, f_J3D and f_Ref; f_J2D is trained by its heat maps only, as the arg max
    between has no gradient.

    Under autocast the convolutions run in the lower precision; their results and everything after them do not.

    Attributes:
        features: F, a ``FeatureExtractor``.
        pose2d: f_J2D, a ``Pose2DNet`` or ``UNetPose2D``.
        mesh_estimator: f_E3D, a ``MeshEstimator`` with ``regressor`` (f_J3D) and ``refiner`` (f_Ref).
        projector: f_Proj, a ``Projector`` with ``hand``; no weights.
    """

    def __init__(self, hand: HandModel | None = None, **options: Any) -> None:
        """Random weights; ``features.load_imagenet`` and ``pose2d.load_zb_weights`` bring what the paper starts from.

        Args:
            hand: the hand model, copied; None is the default right hand. It has constants only, and no part of it goes
                into the ``state_dict``.
            options: the fields of :class:`DHPESpec` by keyword, such as ``DHPE(hand, depth=18, image_size=128)``.

        Raises:
            TypeError: for an option which ``DHPESpec`` does not have. ValueError: for a value that a part refuses.
        """
        super().__init__()
        spec = _checked_spec(options)
        hand = HandModel.default() if hand is None else copied_model(hand)
        hand = hand.to(torch.get_default_dtype())
        self._spec = spec
        # Blocks that start as the identity keep the features of an untrained F, and so its first hand, in bounds.
        self.features = FeatureExtractor(spec.depth, zero_init_residual=True, input_size=spec.features_size)
        self.pose2d = _pose2d_net(spec)
        self.mesh_estimator = MeshEstimator(
            self.features.n_features,
            hand,
            spec.iterations,
            image_size=spec.image_size,
            use_joints2d=spec.use_joints2d,
            use_refiner=spec.use_refiner,
            joint0=spec.joint0,
            hidden=spec.regressor_hidden,
        )
        self.projector = Projector(hand, spec.image_size, joint0=spec.joint0, silhouette_mode=spec.silhouette_mode)

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any], hand: HandModel | None = None) -> DHPE:
        """The network of which ``spec()`` was taken, with random weights: ``load_state_dict`` brings the rest.

        Raises:
            TypeError, ValueError: as the constructor.
        """
        return cls(hand, **spec)

    def spec(self) -> dict[str, Any]:
        """All options by name, plain numbers and strings, for a checkpoint."""
        return asdict(self._spec)

    @property
    def hand(self) -> HandModel:
        """The hand model; the parts share it."""
        return self.projector.hand

    @property
    def image_size(self) -> int:
        """Side S of the crops in pixels."""
        return self._spec.image_size

    def forward(
        self,
        images: Tensor,  # (B, 3, S, S) RGB in [0, 1]
        features: Tensor | None = None,  # (B, n_features)
    ) -> DHPEOutput:
        """All of Fig. 2: y' = f_DHPE(x) and everything between.

        Args:
            images: the crops x.
            features: F(x), where it is known already.

        Raises:
            TypeError, ValueError: if `images` is no floating-point tensor (B, 3, S, S).
        """
        evidence = self.estimate_evidence(images, features)
        estimate = self.estimate_mesh(evidence)
        return DHPEOutput(evidence, estimate, self.project(estimate.h))

    def estimate_evidence(
        self,
        images: Tensor,  # (B, 3, S, S) RGB in [0, 1]
        features: Tensor | None = None,  # (B, n_features)
    ) -> Evidence:
        """The 2D evidence z = f_E2D(x) = (F(x), j_2D), with the heat maps behind the joints (Sec. 3.1).

        Raises:
            TypeError, ValueError: as ``forward``.
        """
        heatmaps, joints2d_px = self.estimate_joints2d(images)
        features = self.features(images) if features is None else features
        return Evidence(features, heatmaps, joints2d_px)

    def estimate_joints2d(
        self,
        images: Tensor,  # (B, 3, S, S) RGB in [0, 1]
    ) -> tuple[tuple[Tensor, ...], Tensor]:
        """f_J2D alone: its heat maps and j_2D, as ``Evidence`` has them.

        Raises:
            TypeError, ValueError: as ``forward``.
        """
        self._check_crops(images)
        heatmaps = self.pose2d(images)
        return heatmaps, self._joints2d_px(heatmaps)

    def estimate_joints2d_and_silhouette(
        self,
        images: Tensor,  # (B, 3, S, S) RGB in [0, 1]
    ) -> tuple[tuple[Tensor, ...], Tensor, Tensor]:
        """f_J2D alone, as ``estimate_joints2d``, and the log-odds (B, n, n) that a cell of its maps shows the hand.

        Raises:
            TypeError, ValueError: as ``forward``; ValueError without the option ``pose2d_silhouette``.
        """
        self._check_crops(images)
        if not self._spec.pose2d_silhouette:
            raise ValueError("pose2d_silhouette: this f_J2D tells no silhouette, it was made without")
        heatmaps, silhouette = self.pose2d.heatmaps_and_silhouette(images)
        return (heatmaps,), self._joints2d_px((heatmaps,)), silhouette

    def estimate_mesh(self, evidence: Evidence) -> MeshEstimate:
        """The hand h' = f_E3D(z), and j'_2D, of each iteration (Sec. 3.2).

        Raises:
            ValueError: if features or joints of the evidence have another shape.
        """
        return self.mesh_estimator(evidence)

    def project(
        self,
        h: Tensor,  # (B, 63)
    ) -> Projection:
        """The mesh v' of h, and y' = f_Proj(v'), its joints and mask, in the crop frame (Sec. 3).

        Raises:
            TypeError, ValueError: if `h` is no floating-point tensor (B, 63).
        """
        return self.projector(h)

    def _check_crops(self, images: Tensor) -> None:
        check_images(images)
        if images.shape[2:] != (self.image_size, self.image_size):
            side = self.image_size
            raise ValueError(f"images: expected crops (B, 3, {side}, {side}), got {tuple(images.shape)}")

    def _joints2d_px(self, heatmaps: tuple[Tensor, ...]) -> Tensor:
        return joints_from_heatmaps(heatmaps[-1], self.image_size, self._spec.pose2d_subpixel)

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in self.spec().items())


def _pose2d_net(spec: DHPESpec) -> Pose2DNet | UNetPose2D:
    if spec.pose2d == "unet":
        return UNetPose2D(spec.pose2d_width, spec.pose2d_input_size, silhouette=spec.pose2d_silhouette)
    if spec.pose2d_silhouette:
        raise ValueError(f"pose2d_silhouette: of pose2d='unet' only, got pose2d={spec.pose2d!r}")
    if spec.pose2d != "posenet":
        raise ValueError(f"pose2d: expected 'posenet' or 'unet', got {spec.pose2d!r}")
    return Pose2DNet(spec.pose2d_width, spec.pose2d_stages, spec.pose2d_input_size)


def _checked_spec(options: Mapping[str, Any]) -> DHPESpec:
    known = [field.name for field in fields(DHPESpec)]
    unknown = [name for name in options if name not in known]
    if unknown:
        raise TypeError(f"DHPE: unknown option {', '.join(map(repr, unknown))}; options are {', '.join(known)}")
    return DHPESpec(**options)
