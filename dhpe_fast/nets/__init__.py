"""The networks of the paper: 2D evidence, mesh estimation, and their composition DHPE."""

from dhpe_fast.nets.dhpe import DHPE, DHPESpec
from dhpe_fast.nets.frozen_features import FrozenFeatures, MaskedFeatures
from dhpe_fast.nets.heatmaps import heatmap_targets, joints_from_heatmaps
from dhpe_fast.nets.mesh_estimator import Joints2dRefiner, MeshEstimator, ParamRegressor, initial_hand
from dhpe_fast.nets.pose2d import Pose2DNet
from dhpe_fast.nets.projector import Projector, regress_joints
from dhpe_fast.nets.resnet import FeatureExtractor
from dhpe_fast.nets.results import DHPEOutput, Evidence, MeshEstimate, MeshStep, Projection
from dhpe_fast.nets.unet_pose2d import UNetPose2D

__all__ = [
    "DHPE",
    "DHPEOutput",
    "DHPESpec",
    "Evidence",
    "FeatureExtractor",
    "FrozenFeatures",
    "Joints2dRefiner",
    "MaskedFeatures",
    "MeshEstimate",
    "MeshEstimator",
    "MeshStep",
    "ParamRegressor",
    "Pose2DNet",
    "Projection",
    "Projector",
    "UNetPose2D",
    "heatmap_targets",
    "initial_hand",
    "joints_from_heatmaps",
    "regress_joints",
]
