"""Drop-in for ``manopth.manolayer``: the same layer over this package's skinning op.

    >>> from dhpe_fast.compat.manopth import ManoLayer  # was: from manopth.manolayer import ManoLayer

Written from manopth's documentation and behaviour (Hasson et al., CVPR 2019, github.com/hassony2/manopth).
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from dhpe_fast.compat._skinning import SkinnedModule, basis_from_mano, load_hand
from dhpe_fast.conventions import JOINT_ORDERS, N_ARTICULATED, N_JOINTS, N_POSE, N_SHAPE
from dhpe_fast.hand.model import HandModel
from dhpe_fast.ops.lbs import lbs
from dhpe_fast.reference.lbs import LbsBasis
from dhpe_fast.rotation import axis_angle_to_matrix, rotation_6d_to_matrix
from dhpe_fast.torch_settings import full_precision, out_of_half

__all__ = ["ManoLayer"]

MM_PER_M = 1000.0

MANO_PALM_VERTICES = (22, 95)
"""The two vertices of a MANO mesh whose midpoint is manopth's palm."""

_MIDDLE_MCP_MANO16 = 4
_ROOT_MODES = {"axisang": 3, "rot6d": 6}
_JOINT_MODES = ("axisang", "rotmat")


class ManoLayer(SkinnedModule):
    """Pose and shape in, vertices and 21 joints in *millimetres* out; rotations are radians about the rest axes.

    The constructor's and ``forward``'s parameters, the buffers and their place in the ``state_dict`` are manopth's.
    So is its treatment of left hands: MANO_LEFT.pkl is taken as it is, sign fault included, and the tip of the
    middle finger is vertex 445 rather than 444.

    Attributes:
        th_v_template: (1, 778, 3) metres.
        th_shapedirs: (778, 3, 10); th_posedirs: (778, 3, 135); th_J_regressor: (16, 778); th_weights: (778, 16).
        th_faces: (1538, 3) int64.
        th_betas: (1, 10) the shape of hands that are given none.
        th_hands_mean: (1, 45) the pose added to all, zero for a flat mean; th_comps: (45, 45) all components;
            th_selected_comps: (ncomps, 45) those in use. None of the three in matrix mode, which has
            th_hands_mean_rotmat (15, 3, 3).
        kintree_table: (2, 16) NumPy, root parent -1; kintree_parents: its first row as a list.
        rot: 3 or 6, how many pose coefficients are the root's; ncomps: how many follow.
        smpl_data: the model's arrays, NumPy, with the keys of MANO files; mano_path: the file, '' for the default hand.
    """

    BASIS_BUFFERS = ("th_v_template", "th_shapedirs", "th_posedirs", "th_J_regressor", "th_weights")

    def __init__(
        self,
        center_idx: int | None = None,
        flat_hand_mean: bool = True,
        ncomps: int = 6,
        side: str = "right",
        mano_root: str | os.PathLike[str] | None = "mano/models",
        use_pca: bool = True,
        root_rot_mode: str = "axisang",
        joint_rot_mode: str = "axisang",
        robust_rot: bool = False,
        *,
        tip_ids: str | Sequence[int] | None = None,
        fix_left_shapedirs: bool = False,
    ) -> None:
        """As manopth's, and two keywords more.

        Args:
            center_idx: joint (0..20, STD order) moved to the origin where no translation is given; None for none.
            flat_hand_mean: zero coefficients are the flat hand; else the mean pose.
            ncomps: number of pose components, without effect unless `use_pca`.
            side: 'right' or 'left'.
            mano_root: the folder of MANO_RIGHT.pkl and MANO_LEFT.pkl, or one such file (pkl or npz), or None for
                the package's own hand, which needs no licensed file and has its own tips and palm.
            use_pca: fingers are given as coefficients of the pose components.
            root_rot_mode: 'axisang' or 'rot6d' (two columns, Zhou et al. 2019), without effect on matrices.
            joint_rot_mode: 'axisang', or 'rotmat' for matrices of all 16 joints; without effect if `use_pca`.
            robust_rot: a 6D root treats its two columns alike instead of keeping the first.
            tip_ids: the five fingertip vertices, thumb to little, or a key of ``conventions.TIP_VERTEX_IDS``;
                None for manopth's.
            fix_left_shapedirs: correct the sign fault of the released MANO_LEFT.pkl; betas then mean the same
                for both hands.

        Raises:
            ValueError: an argument is none of these, or the file is missing, unsafe or no hand model.
        """
        super().__init__()
        if root_rot_mode not in _ROOT_MODES:
            raise ValueError(f"root_rot_mode: expected 'axisang' or 'rot6d', got {root_rot_mode!r}")
        if joint_rot_mode not in _JOINT_MODES:
            raise ValueError(f"joint_rot_mode: expected 'axisang' or 'rotmat', got {joint_rot_mode!r}")
        if use_pca and not 0 <= ncomps <= N_POSE:
            raise ValueError(f"ncomps: expected 0 to {N_POSE}, got {ncomps}")
        hand = load_hand(
            mano_root,
            side,
            tip_ids="manopth" if tip_ids is None else tip_ids,
            fix_left_shapedirs=fix_left_shapedirs,
        )
        self.center_idx = center_idx
        self.flat_hand_mean = flat_hand_mean
        self.ncomps = ncomps if use_pca else N_POSE
        self.side = side
        self.use_pca = use_pca
        self.root_rot_mode = root_rot_mode
        self.joint_rot_mode = joint_rot_mode
        self.robust_rot = robust_rot
        self.rot = _ROOT_MODES[root_rot_mode]
        is_folder = mano_root is not None and os.path.isdir(mano_root)
        file = os.path.join(mano_root, f"MANO_{side.upper()}.pkl") if is_folder else mano_root
        self.mano_path = "" if file is None else os.fspath(file)
        palm = _palm_vertices(hand) if mano_root is None else MANO_PALM_VERTICES
        self._register(hand, ncomps, palm)

    def _register(self, hand: HandModel, n_selected: int, palm: tuple[int, int]) -> None:
        arrays = hand.arrays()
        self.smpl_data = arrays | {"betas": np.zeros(N_SHAPE)}
        self.kintree_table = arrays["kintree_table"]
        self.kintree_parents = self.kintree_table[0].tolist()

        def constant(name: str, values: np.ndarray) -> None:
            self.register_buffer(name, torch.as_tensor(values, dtype=torch.get_default_dtype()))

        constant("th_betas", self.smpl_data["betas"][None])
        for key in ("shapedirs", "posedirs", "J_regressor", "weights"):
            constant(f"th_{key}", arrays[key])
        constant("th_v_template", arrays["v_template"][None])
        self.register_buffer("th_faces", torch.as_tensor(arrays["f"], dtype=torch.int64))
        hands_mean = np.zeros(N_POSE) if self.flat_hand_mean else arrays["hands_mean"]
        if self._takes_matrices:
            mean_axis_angle = torch.as_tensor(hands_mean).view(N_ARTICULATED, 3)
            constant("th_hands_mean_rotmat", axis_angle_to_matrix(mean_axis_angle))
        else:
            constant("th_hands_mean", hands_mean[None])
            constant("th_comps", arrays["hands_components"])
            constant("th_selected_comps", arrays["hands_components"][:n_selected])
        for name, index in (("_tips", hand.tip_ids), ("_palm", palm), ("_order", JOINT_ORDERS["mano21"])):
            self.register_buffer(name, torch.tensor(index), persistent=False)

    @property
    def _takes_matrices(self) -> bool:
        return not self.use_pca and self.joint_rot_mode == "rotmat"

    def build_basis(self) -> LbsBasis:
        """The skinning op's constants, in millimetres."""
        v_template, *others = (self._buffers[name] for name in self.BASIS_BUFFERS)
        return basis_from_mano(v_template[0], *others, scale=MM_PER_M)

    def forward(
        self,
        th_pose_coeffs: Tensor,  # (B, rot + ncomps), or (B, 16, 3, 3) in matrix mode
        th_betas: Tensor | None = None,  # (B, 10) or (1, 10)
        th_trans: Tensor | None = None,  # (B, 3) or (1, 3) metres
        root_palm: Tensor | bool = False,
        share_betas: Tensor | bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Vertices (B, 778, 3) and joints (B, 21, 3, STD order), both in millimetres.

        Differentiable once in the pose, the betas and the translation. Further columns of the pose than needed
        are ignored, as in manopth.

        Args:
            th_pose_coeffs: the root's rotation and then the fingers' coefficients; or rotation matrices of all
                joints, which are first projected onto the nearest orthogonal ones.
            th_betas: shape coefficients; None, or a tensor of one element, for ``self.th_betas``.
            th_trans: added to vertices and joints *instead of* centring; None, or all zero, for none. On a GPU
                None also saves a wait for the device.
            root_palm: joint 0 is the middle of the palm rather than the wrist.
            share_betas: use the mean of the betas for the whole batch.

        Raises:
            TypeError: the pose is no floating-point tensor, or the translation no tensor.
            ValueError: shapes or types do not fit.
        """
        basis = self.basis
        coeffs = self._checked_pose(th_pose_coeffs)
        with full_precision(coeffs.device):
            full_pose = self._full_pose(coeffs)
        verts_mm, joints_mm = lbs(full_pose, self._shape(th_betas, bool(share_betas)), basis)
        tips_mm = verts_mm.index_select(1, self._buffers["_tips"])
        if bool(root_palm):
            palm_mm = verts_mm.index_select(1, self._buffers["_palm"]).mean(1, keepdim=True)
            joints_mm = torch.cat([palm_mm, joints_mm[:, 1:]], 1)
        joints_mm = torch.cat([joints_mm, tips_mm], 1).index_select(1, self._buffers["_order"])
        if _is_translation(th_trans, len(verts_mm)):
            offset_mm = MM_PER_M * th_trans[..., None, :]
            return verts_mm + offset_mm, joints_mm + offset_mm
        if self.center_idx is not None:
            centre_mm = joints_mm[:, self.center_idx, None]
            return verts_mm - centre_mm, joints_mm - centre_mm
        return verts_mm, joints_mm

    def extra_repr(self) -> str:
        pose = "rotmat" if self._takes_matrices else f"{self.root_rot_mode} root and {self.ncomps} coefficients"
        return f"side={self.side!r}, pose={pose}, use_pca={self.use_pca}, center_idx={self.center_idx}"

    def _full_pose(self, coeffs: Tensor) -> Tensor:
        """Absolute rotations of all joints, (B, 16, 3) or (B, 16, 3, 3)."""
        buffers = self._buffers
        if self._takes_matrices:
            return nearest_orthogonal(coeffs)
        root, fingers = coeffs[:, : self.rot], coeffs[:, self.rot : self.rot + self.ncomps]
        mean = buffers["th_hands_mean"]
        fingers = torch.addmm(mean, fingers, buffers["th_selected_comps"]) if self.use_pca else mean + fingers
        if self.root_rot_mode == "axisang":
            return torch.cat([root, fingers], 1).view(-1, N_JOINTS, 3)
        turn = symmetric_6d_to_matrix(root) if self.robust_rot else rotation_6d_to_matrix(root)
        return torch.cat([turn[:, None], axis_angle_to_matrix(fingers.view(-1, N_ARTICULATED, 3))], 1)

    def _shape(self, betas: Tensor | None, share: bool) -> Tensor:
        if betas is None or betas.numel() == 1:
            return self._buffers["th_betas"]
        if betas.dim() != 2 or betas.shape[1] != N_SHAPE:
            raise ValueError(f"th_betas: expected (B, {N_SHAPE}) or (1, {N_SHAPE}), got {tuple(betas.shape)}")
        return betas.mean(0, keepdim=True) if share else betas

    def _checked_pose(self, coeffs: Tensor) -> Tensor:
        if not isinstance(coeffs, Tensor) or not coeffs.is_floating_point():
            given = f"a tensor of {coeffs.dtype}" if isinstance(coeffs, Tensor) else type(coeffs).__name__
            raise TypeError(f"th_pose_coeffs: expected a floating-point tensor, got {given}")
        constants = self._buffers["th_v_template"]
        coeffs = out_of_half(coeffs, constants.dtype)
        if (coeffs.dtype, coeffs.device) != (constants.dtype, constants.device):
            raise ValueError(
                f"th_pose_coeffs is {coeffs.dtype} on {coeffs.device}, "
                f"but the layer is {constants.dtype} on {constants.device}"
            )
        if self._takes_matrices:
            if coeffs.dim() != 4 or coeffs.shape[1:] != (N_JOINTS, 3, 3):
                raise ValueError(f"th_pose_coeffs: expected (B, {N_JOINTS}, 3, 3), got {tuple(coeffs.shape)}")
        elif coeffs.dim() != 2 or coeffs.shape[1] < self.rot + self.ncomps:
            raise ValueError(
                f"th_pose_coeffs: expected (B, {self.rot + self.ncomps}) = {self.rot} of the root "
                f"and {self.ncomps} of the fingers, got {tuple(coeffs.shape)}"
            )
        return coeffs


def _is_translation(
    trans_m: Tensor | None,  # (B, 3) or (1, 3); of any shape if all zero, as manopth's default is
    n_hands: int,
) -> bool:
    """Whether there is anything to add; raises ValueError if it cannot be added."""
    if trans_m is None:
        return False
    if not isinstance(trans_m, Tensor):
        raise TypeError(f"th_trans: expected a tensor or None, got {type(trans_m).__name__}")
    if not bool((trans_m != 0).any()):
        return False
    if trans_m.dim() != 2 or trans_m.shape[1] != 3 or not (n_hands == 1 or trans_m.shape[0] in (1, n_hands)):
        raise ValueError(f"th_trans: expected ({n_hands}, 3) or (1, 3), got {tuple(trans_m.shape)}")
    return True


def nearest_orthogonal(
    matrix: Tensor,  # (..., 3, 3)
) -> Tensor:
    """The nearest orthogonal matrices (..., 3, 3), and as in manopth with the third column negated at reflections.

    The orthogonal factor of M = U S V^T is U V^T, and to first order it turns by U K V^T with
    K_ij = (A - A^T)_ij / (s_i + s_j) and A = U^T dM V. K is zero in value here and carries the gradient, which is
    therefore finite at rotations, where the derivatives of U and V are not (all singular values are equal).
    """
    u, s, vt = torch.linalg.svd(matrix.detach())
    inner = u.transpose(-1, -2) @ matrix @ vt.transpose(-1, -2)
    sums = (s[..., :, None] + s[..., None, :]).clamp_min(torch.finfo(s.dtype).eps)
    skew = (inner - inner.transpose(-1, -2)) / sums
    # What rounding left in the value does not belong there.
    nearest = u @ (torch.eye(3, dtype=s.dtype, device=s.device) + (skew - skew.detach())) @ vt
    flip = torch.ones_like(s)
    flip[..., 2] = torch.linalg.det(u @ vt).sign()
    return nearest * flip[..., None, :]


def symmetric_6d_to_matrix(
    rotation_6d: Tensor,  # (..., 6)
) -> Tensor:
    """Rotations (..., 3, 3) whose first two columns deviate from the two given ones by the same angle.

    Both columns, made unit, are turned in their plane about their bisector until they are perpendicular.
    """
    first, second = (torch.nn.functional.normalize(column, dim=-1) for column in rotation_6d.split(3, dim=-1))
    bisector = torch.nn.functional.normalize(first + second, dim=-1)
    across = torch.nn.functional.normalize(first - second, dim=-1)
    x, y = (bisector + across) * 0.5**0.5, (bisector - across) * 0.5**0.5
    return torch.stack([x, y, torch.linalg.cross(x, y, dim=-1)], dim=-1)


def _palm_vertices(hand: HandModel) -> tuple[int, int]:
    """The vertices nearest to the middle of wrist and middle knuckle on the palm and on the back of a hand at rest."""
    verts_m, joints_m = hand.v_template, hand.rest_joints_m()
    middle_m = (joints_m[0] + joints_m[_MIDDLE_MCP_MANO16]) / 2
    distance_m = torch.linalg.vector_norm(verts_m - middle_m, dim=-1)
    below = verts_m[:, 1] < middle_m[1]  # the palm faces -y, on either side
    return tuple(int(distance_m.masked_fill(far, torch.inf).argmin()) for far in (~below, below))
