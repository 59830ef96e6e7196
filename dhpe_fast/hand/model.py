"""A parametric hand: shape, pose and camera parameters in, mesh and joints out."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dhpe_fast.conventions import (
    H_LAYOUT,
    H_SIZE,
    JOINT_ORDERS,
    MANO16_PARENTS,
    N_ARTICULATED,
    N_JOINTS,
    N_JOINTS_STD,
    N_POSE,
    N_SHAPE,
    N_VERTS,
    TIP_VERTEX_IDS,
)
from dhpe_fast.hand.mano_file import check_model, read_mano, wrist_ring, write_npz
from dhpe_fast.hand.mano_side import SIDES, find_side, flip_shapedirs_x, shapedirs_x_sign_is_wrong
from dhpe_fast.hand.params import HandParams
from dhpe_fast.hand.pose_forms import check_float_tensor, full_pose
from dhpe_fast.ops.lbs import lbs
from dhpe_fast.reference._arguments import HALF_TYPES, result_dtype, widened
from dhpe_fast.reference.lbs import LbsBasis
from dhpe_fast.rotation import quaternion_to_matrix
from dhpe_fast.torch_settings import full_precision

DEFAULT_HAND = Path(__file__).with_name("default_hand.npz")

_BASIS_FIELDS = (
    "v_template",
    "shapedirs",
    "posedirs",
    "joint_template",
    "joint_shapedirs",
    "skin_joints",
    "skin_weights",
    "parents",
)


@dataclass(frozen=True, eq=False)
class HandMesh:
    """Vertices and joints of a batch of hands, in the frame of the function that returns them."""

    verts_m: Tensor
    """(*batch, 778, 3) metres in the model frame; from ``decode``, crop units in the crop frame."""
    joints_m: Tensor
    """(*batch, 21, 3) STD order, same unit: the kinematic joints, and vertices as fingertips."""


class HandModel(nn.Module):
    """A MANO-like hand of 778 vertices: the package's own (``default``) or the licensed one (``from_mano``).

    Model frame, metres and radians, see :mod:`dhpe_fast.conventions`. The module holds constants only:
    ``.to`` moves them and changes their floating-point type, nothing is trained, and no part of a (licensed)
    hand goes into the ``state_dict`` of a network that owns one.

    Poses come as axis-angle, quaternions, 6D or matrices (:mod:`dhpe_fast.hand.pose_forms`). Geometry stays float32
    under autocast, and is one graph for torch.compile and torch.export, for any batch size (:mod:`dhpe_fast.ops`).

    Attributes:
        side: 'right' or 'left'.
        name: what the model is called.
        licence: under which terms its file stands.
        tip_ids: the vertices (5,) reported as fingertips, thumb to little.
        left_shapedirs_fixed: whether the sign fault of the released left MANO file was found and corrected.
        faces: (1538, 3) int32, counter-clockwise from outside; open at the wrist.
        faces_closed: (1554, 3) int32, the same and a fan over the wrist, for vertices from ``close_wrist``.
        J_regressor: (16, 778) rest joints from rest vertices, MANO16 order.
        joint_regressor: (21, 778) STD joints from posed vertices, see ``regress_joints``.
        hands_mean: (45,) mean pose, absolute axis-angle.
        hands_components: (45, 45) principal components of the pose, in rows.
        hands_coeffs: (N, 45) coefficients of the hands behind the components, or None.
        uv, uv_faces: (U, 2) texture coordinates in [0, 1] and (1538, 3) int32 into them, or None.
        basis: the constants as the skinning op takes them.
    """

    faces: Tensor
    faces_closed: Tensor
    parents: Tensor
    J_regressor: Tensor
    joint_regressor: Tensor
    hands_mean: Tensor
    hands_components: Tensor
    hands_coeffs: Tensor | None
    uv: Tensor | None
    uv_faces: Tensor | None

    def __init__(self, arrays: Mapping[str, Any], *, dtype: torch.dtype = torch.float32) -> None:
        """Takes a model's arrays, with the keys, shapes and units of :mod:`dhpe_fast.hand.mano_file`.

        Args:
            arrays: all required arrays, and `tip_ids` and `side`; `name` and `licence` if known.
            dtype: floating-point type of the module, float32 or float64; poses may be of half types. (Of a module
                that ``.half()`` or ``.to`` has brought to another one, the skinning op says so.)

        Raises:
            ValueError: if an array is missing or wrong, naming it, or `dtype` is another one.
        """
        if dtype not in (torch.float32, torch.float64):
            raise ValueError(f"dtype: expected torch.float32 or torch.float64, got {dtype}")
        super().__init__()
        model = check_model(arrays)
        for key in ("tip_ids", "side"):
            if key not in model:
                raise ValueError(f"hand model: '{key}' is missing")
        self.side: str = model["side"]
        self.name: str = model.get("name", "hand")
        self.licence: str = model.get("licence", "unknown")
        self.tip_ids: tuple[int, ...] = tuple(model["tip_ids"].tolist())
        self.left_shapedirs_fixed = False
        self._basis: LbsBasis | None = None
        self._tip_basis: tuple[LbsBasis, LbsBasis] | None = None
        for key, value in _buffers(model).items():
            tensor = None if value is None else torch.from_numpy(np.ascontiguousarray(value))
            if tensor is not None and tensor.is_floating_point():
                tensor = tensor.to(dtype)
            self.register_buffer(key, tensor, persistent=False)

    @classmethod
    def default(cls, side: str = "right", dtype: torch.dtype = torch.float32) -> HandModel:
        """The hand that ships with the package; the left one is its mirror image.

        Raises:
            ValueError: if `side` is neither 'right' nor 'left'.
        """
        _check_side(side)
        model = cls.from_npz(DEFAULT_HAND, dtype=dtype)
        return model if model.side == side else model.mirrored()

    @classmethod
    def from_npz(cls, path: str | os.PathLike[str], dtype: torch.dtype = torch.float32) -> HandModel:
        """A model written by ``save_npz``, as it was.

        Raises:
            ValueError: if the file is missing (also a FileNotFoundError), damaged or no hand model.
        """
        return cls.from_mano(path, fix_left_shapedirs=False, dtype=dtype)

    @classmethod
    def from_mano(
        cls,
        path: str | os.PathLike[str],
        side: str | None = None,
        *,
        tip_ids: str | Sequence[int] | None = None,
        fix_left_shapedirs: bool = True,
        dtype: torch.dtype = torch.float32,
    ) -> HandModel:
        """A licensed MANO hand: ``HandModel.from_mano("MANO_RIGHT.pkl")``.

        The file is read without chumpy, and without running any code in it.

        Args:
            path: MANO_RIGHT.pkl or MANO_LEFT.pkl (v1.2), or an npz with the same keys.
            side: 'right' or 'left'; None tells by the file's name and the direction of the fingers.
            tip_ids: the five fingertip vertices, thumb to little, or the name of a package that chose them, a
                key of ``conventions.TIP_VERTEX_IDS``. None takes those in the file, else 'paper'.
            fix_left_shapedirs: correct a left file in which the x components of the shape directions have the
                sign of the right hand's, as in the release (smplx issue 48). Only files with the fault are
                changed, see ``left_shapedirs_fixed``. Betas published for the unfixed file (DexYCB and
                others) need False.
            dtype: floating-point type of the module.

        Raises:
            UnsafePickleError: if the pickle asks for anything else than arrays; a ValueError.
            ValueError: if the file is missing (also a FileNotFoundError), damaged, or no hand model; if its
                side cannot be told; if an argument is none of those accepted.
        """
        if side is not None:
            _check_side(side)
        file = Path(path)
        arrays = read_mano(file)
        arrays["side"] = side or arrays.get("side") or find_side(arrays, file)
        if tip_ids is not None or "tip_ids" not in arrays:
            arrays["tip_ids"] = _resolve_tip_ids("paper" if tip_ids is None else tip_ids, arrays["side"])
        arrays.setdefault("name", f"MANO {arrays['side']}")
        arrays.setdefault("licence", "MANO licence, https://mano.is.tue.mpg.de")
        fix = fix_left_shapedirs and arrays["side"] == "left" and shapedirs_x_sign_is_wrong(arrays)
        if fix:
            arrays["shapedirs"] = flip_shapedirs_x(arrays["shapedirs"])
        model = cls(arrays, dtype=dtype)
        model.left_shapedirs_fixed = fix
        return model

    def save_npz(self, path: str | os.PathLike[str]) -> None:
        """Writes the model, whole or not at all, in its own floating-point type; ``from_npz`` reads it back.

        Raises:
            OSError: if the folder does not exist or cannot be written.
        """
        write_npz(path, self.arrays())

    def arrays(self) -> dict[str, Any]:
        """Copies of the constants, with MANO's keys and shapes, as ``HandModel(arrays)`` takes them."""
        weights = self._buffers["skin_weights"].new_zeros(N_VERTS, N_JOINTS)
        weights.scatter_add_(1, self._buffers["skin_joints"].long(), self._buffers["skin_weights"])
        tensors = {
            "v_template": self.v_template,
            "f": self.faces,
            "shapedirs": self.shapedirs.permute(1, 2, 0),
            "posedirs": self.posedirs.permute(1, 2, 0),
            "J_regressor": self.J_regressor,
            "weights": weights,
            "hands_components": self.hands_components,
            "hands_mean": self.hands_mean,
            "hands_coeffs": self.hands_coeffs,
            "uv": self.uv,
            "uv_faces": self.uv_faces,
        }
        arrays = {key: _to_numpy(value) for key, value in tensors.items() if value is not None}
        arrays["kintree_table"] = np.array([MANO16_PARENTS, range(N_JOINTS)], dtype=np.int32)
        arrays["tip_ids"] = np.array(self.tip_ids, dtype=np.int32)
        return arrays | {"side": self.side, "name": self.name, "licence": self.licence}

    def mirrored(self) -> HandModel:
        """The other hand: this one reflected in x, so that mirrored parameters give the mirrored mesh.

        Joints turn by (x, -y, -z) where they turned by (x, y, z); betas and texture coordinates stay.
        """
        arrays = self.arrays()
        reflect = np.array([-1.0, 1.0, 1.0])
        turn = np.tile([1.0, -1.0, -1.0], N_ARTICULATED)
        arrays["v_template"] = arrays["v_template"] * reflect
        arrays["shapedirs"] = arrays["shapedirs"] * reflect[:, None]
        # A reflected rotation is S R S: its entries with exactly one index x change sign, and so does the
        # pose feature.
        feature = np.tile(np.outer(reflect, reflect).ravel(), N_ARTICULATED)
        arrays["posedirs"] = arrays["posedirs"] * reflect[:, None] * feature
        arrays["hands_mean"] = arrays["hands_mean"] * turn
        arrays["hands_components"] = arrays["hands_components"] * turn
        for key in ("f", "uv_faces"):
            if key in arrays:
                arrays[key] = arrays[key][:, [0, 2, 1]]
        arrays["side"] = SIDES[1 - SIDES.index(self.side)]
        return HandModel(arrays, dtype=self.hands_mean.dtype).to(self.hands_mean.device)

    @property
    def basis(self) -> LbsBasis:
        """The constants of the skinning op, on the module's device and in its type."""
        buffers = self._buffers
        basis = self._basis
        # Compared by identity, as `.to` and `load_state_dict(assign=True)` put new tensors in place.
        if basis is None or any(getattr(basis, key) is not buffers[key] for key in _BASIS_FIELDS):
            basis = LbsBasis(**{key: buffers[key] for key in _BASIS_FIELDS})
            if not torch.compiler.is_exporting():  # the tensors of an export stand for themselves only
                self._basis = basis
        return basis

    def forward(
        self,
        pose: Tensor,  # (*batch, 45) axis-angle, or (*batch, 15, 3 | 4 | 6), or (*batch, 15, 3, 3)
        betas: Tensor | None = None,  # (*batch, 10)
        global_orient: Tensor | None = None,  # (*batch, 3 | 4 | 6) or (*batch, 3, 3), as the pose
    ) -> HandMesh:
        """Poses the hand in the model frame, metres. Differentiable in every argument (once).

        Args:
            pose: *absolute* rotations of joints 1..15 in MANO16 order: zero is the flat rest pose and
                ``hands_mean`` the mean pose (what other packages call ``flat_hand_mean=True`` without PCA). Axis-angle,
                quaternions, 6D or matrices, told apart by their shape: see :mod:`dhpe_fast.hand.pose_forms`.
            betas: shape coefficients; None is the mean shape.
            global_orient: rotation of the hand about its wrist joint, in the form of the pose; None is the identity.

        Batches broadcast against each other. Half types may stand beside float32, in which they are computed; see
        :mod:`dhpe_fast.ops` for that and for autocast.

        Raises:
            TypeError: if an argument is no floating-point tensor.
            ValueError: if shapes, types or devices do not fit.
        """
        verts_m, joints_m = self._skin(pose, betas, global_orient, self.basis)
        return HandMesh(verts_m, self._std_joints(joints_m, verts_m.index_select(-2, self.tip_index)))

    def joints_m(
        self,
        pose: Tensor,  # (*batch, 45) axis-angle, or (*batch, 15, 3 | 4 | 6), or (*batch, 15, 3, 3)
        betas: Tensor | None = None,  # (*batch, 10)
        global_orient: Tensor | None = None,  # (*batch, 3 | 4 | 6) or (*batch, 3, 3), as the pose
    ) -> Tensor:
        """The joints (*batch, 21, 3) of ``forward``, and their gradients, without the mesh: skins the fingertips only.

        Takes and raises what ``forward`` does.
        """
        tips_m, joints_m = self._skin(pose, betas, global_orient, self._basis_of_tips())
        return self._std_joints(joints_m, tips_m)

    def decode(
        self,
        params: HandParams | Tensor,  # h (*batch, 63)
    ) -> HandMesh:
        """The hand in the crop frame, in crop units: ``scale * R(quat) @ v + trans`` (paper, Sec. 3.2).

        The rotation is about the model's origin, unlike ``global_orient``. A zero quaternion is the identity,
        with finite gradients, so the paper's h(0) decodes too (to a single point, as its scale is zero).

        Raises:
            TypeError, ValueError: if `params` is neither HandParams nor a floating-point tensor (*batch, 63).
        """
        h = params.packed() if isinstance(params, HandParams) else params
        check_float_tensor("params", h)
        if h.shape[-1:] != (H_SIZE,):
            raise ValueError(f"params: expected HandParams or a tensor (*batch, {H_SIZE}), got {tuple(h.shape)}")
        dtype, h = result_dtype(h), widened(h)
        part = {name: h[..., where] for name, where in H_LAYOUT.items()}
        mesh = self(part["pose"], part["shape"])
        similarity = part["scale"][..., None] * quaternion_to_matrix(part["quat"])
        points = torch.cat([mesh.verts_m, mesh.joints_m], dim=-2)
        with full_precision(h.device):
            points = points @ similarity.transpose(-1, -2) + part["trans"][..., None, :]
        return HandMesh(*points.to(dtype).split([N_VERTS, N_JOINTS_STD], dim=-2))

    def regress_joints(
        self,
        verts: Tensor,  # (*batch, 778, 3) any frame and unit
    ) -> Tensor:
        """Joints (*batch, 21, 3) in STD order, regressed from posed vertices: the paper's f_Reg.

        One 778 x 21 matrix for x, y and z: the model's joint regressor and a one for each fingertip. Away
        from the rest pose the result differs from the kinematic joints of ``forward`` by some millimetres;
        the tips are the same.
        """
        self._check_verts(verts)
        with full_precision(verts.device):
            joints = self.joint_regressor @ widened(verts)
        return joints.to(result_dtype(verts))

    def rest_joints_m(
        self,
        betas: Tensor | None = None,  # (*batch, 10)
    ) -> Tensor:
        """Kinematic joints (*batch, 16, 3) of the flat rest pose, MANO16 order; computes no mesh."""
        return self._rest_points_m(betas, self.joint_template, self.joint_shapedirs)

    def rest_tips_m(
        self,
        betas: Tensor | None = None,  # (*batch, 10)
    ) -> Tensor:
        """Fingertips (*batch, 5, 3) of the flat rest pose, thumb to little; computes no mesh."""
        return self._rest_points_m(betas, self.v_template[self.tip_index], self.shapedirs[:, self.tip_index])

    def pose_from_pca(
        self,
        coeffs: Tensor,  # (*batch, k), k <= 45
    ) -> Tensor:
        """Absolute pose (*batch, 45): mean pose plus k components, ``flat_hand_mean=False`` elsewhere."""
        check_float_tensor("coeffs", coeffs)
        if coeffs.dim() == 0 or coeffs.shape[-1] > N_POSE:
            raise ValueError(f"coeffs: expected (*batch, k) with k <= {N_POSE}, got {tuple(coeffs.shape)}")
        with full_precision(coeffs.device):
            pose = self.hands_mean + widened(coeffs) @ self.hands_components[: coeffs.shape[-1]]
        return pose.to(result_dtype(coeffs))

    def pca_from_pose(
        self,
        pose: Tensor,  # (*batch, 45) axis-angle
        n_components: int = N_POSE,
    ) -> Tensor:
        """Coefficients (*batch, n_components) whose ``pose_from_pca`` is closest; exact with all 45."""
        check_float_tensor("pose", pose)
        if pose.shape[-1:] != (N_POSE,) or not 0 <= n_components <= N_POSE:
            raise ValueError(
                f"pose: expected (*batch, {N_POSE}) and 0 <= n_components <= {N_POSE}, "
                f"got {tuple(pose.shape)} and {n_components}"
            )
        with full_precision(pose.device):
            coeffs = (widened(pose) - self.hands_mean) @ torch.linalg.pinv(self.hands_components[:n_components])
        return coeffs.to(result_dtype(pose))

    def close_wrist(
        self,
        verts: Tensor,  # (*batch, 778, 3)
    ) -> Tensor:
        """Vertices (*batch, 779, 3) for ``faces_closed``: vertex 778 is the mean of the wrist's border."""
        self._check_verts(verts)
        verts = verts.to(result_dtype(verts))
        centre = verts.index_select(-2, self.wrist_index).mean(-2, keepdim=True)
        return torch.cat([verts, centre], dim=-2)

    def extra_repr(self) -> str:
        fixed = ", left_shapedirs_fixed=True" if self.left_shapedirs_fixed else ""
        return f"name={self.name!r}, side={self.side!r}, tip_ids={self.tip_ids}{fixed}"

    def _skin(
        self, pose: Tensor, betas: Tensor | None, global_orient: Tensor | None, basis: LbsBasis
    ) -> tuple[Tensor, Tensor]:
        """Points of the basis (*batch, V, 3) and kinematic joints (*batch, 16, 3), metres."""
        rotations = full_pose(pose, global_orient)
        verts_m, joints_m = lbs(rotations, rotations.new_zeros(N_SHAPE) if betas is None else betas, basis)
        if pose.dtype in HALF_TYPES:
            dtype = result_dtype(*(t for t in (pose, betas, global_orient) if t is not None))
            verts_m, joints_m = verts_m.to(dtype), joints_m.to(dtype)
        return verts_m, joints_m

    def _basis_of_tips(self) -> LbsBasis:
        basis, cached = self.basis, self._tip_basis
        if cached is not None and cached[0] is basis:
            return cached[1]
        # Constants made in inference mode could not take part in training later.
        with torch.inference_mode(False):
            tips = basis.subset(self.tip_ids)
        if not torch.compiler.is_exporting():
            self._tip_basis = basis, tips
        return tips

    def _std_joints(self, joints_m: Tensor, tips_m: Tensor) -> Tensor:
        return torch.cat([joints_m, tips_m], dim=-2).index_select(-2, self.std_index)

    def _rest_points_m(self, betas: Tensor | None, template: Tensor, directions: Tensor) -> Tensor:
        if betas is None:
            return template.clone()
        check_float_tensor("betas", betas)
        if betas.shape[-1:] != (N_SHAPE,):
            raise ValueError(f"betas: expected (*batch, {N_SHAPE}), got {tuple(betas.shape)}")
        with full_precision(betas.device):
            points_m = template + torch.einsum("...s,spc->...pc", widened(betas), directions)
        return points_m.to(result_dtype(betas))

    def _check_verts(self, verts: Tensor) -> None:
        check_float_tensor("verts", verts)
        if verts.shape[-2:] != (N_VERTS, 3):
            raise ValueError(f"verts: expected (*batch, {N_VERTS}, 3), got {tuple(verts.shape)}")


def _buffers(model: Mapping[str, Any]) -> dict[str, np.ndarray | None]:
    """The module's buffers from checked arrays, in float64 and integers."""
    weights = model["weights"]
    n_slots = int((weights != 0).sum(1).max())
    strongest = np.argsort(-weights, axis=1, kind="stable")[:, :n_slots]
    skin_weights = np.take_along_axis(weights, strongest, axis=1)
    regressor = model["J_regressor"]
    tips = np.zeros((len(model["tip_ids"]), N_VERTS))
    tips[np.arange(len(tips)), model["tip_ids"]] = 1
    std_index = np.array(JOINT_ORDERS["mano21"])
    ring = wrist_ring(model["f"])
    fan = np.stack([np.roll(ring, -1), ring, np.full_like(ring, N_VERTS)], axis=1)
    uv_faces = model.get("uv_faces")
    return {
        "v_template": model["v_template"],
        "shapedirs": model["shapedirs"].transpose(2, 0, 1),
        "posedirs": model["posedirs"].transpose(2, 0, 1),
        "joint_template": regressor @ model["v_template"],
        "joint_shapedirs": np.einsum("jv,vcs->sjc", regressor, model["shapedirs"]),
        "skin_joints": np.where(skin_weights != 0, strongest, 0).astype(np.int32),
        "skin_weights": skin_weights,
        "parents": np.array(MANO16_PARENTS, dtype=np.int32),
        "faces": model["f"].astype(np.int32),
        "faces_closed": np.concatenate([model["f"], fan]).astype(np.int32),
        "J_regressor": regressor,
        "joint_regressor": np.concatenate([regressor, tips])[std_index],
        "hands_mean": model["hands_mean"],
        "hands_components": model["hands_components"],
        "hands_coeffs": model.get("hands_coeffs"),
        "uv": model.get("uv"),
        "uv_faces": None if uv_faces is None else uv_faces.astype(np.int32),
        "tip_index": model["tip_ids"],
        "std_index": std_index,
        "wrist_index": ring,
    }


def _to_numpy(tensor: Tensor) -> np.ndarray:
    # NumPy has no bfloat16.
    tensor = tensor.float() if tensor.dtype == torch.bfloat16 else tensor
    return tensor.detach().cpu().numpy().copy()


def _resolve_tip_ids(tip_ids: str | Sequence[int], side: str) -> np.ndarray:
    if isinstance(tip_ids, str):
        if tip_ids not in TIP_VERTEX_IDS:
            raise ValueError(f"tip_ids: unknown name {tip_ids!r}; known are {', '.join(TIP_VERTEX_IDS)}")
        return np.array(TIP_VERTEX_IDS.get(f"{tip_ids}_{side}", TIP_VERTEX_IDS[tip_ids]))
    ids = np.asarray(tip_ids)
    if ids.shape != (5,) or ids.dtype.kind not in "iu" or ids.min() < 0 or ids.max() >= N_VERTS:
        raise ValueError(f"tip_ids: expected five vertices from 0 to {N_VERTS - 1}, thumb to little, got {tip_ids!r}")
    return ids


def _check_side(side: str) -> None:
    if side not in SIDES:
        raise ValueError(f"side: expected 'right' or 'left', got {side!r}")
