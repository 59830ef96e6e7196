"""Drop-in for the hand models of ``smplx``: the same classes over this package's skinning op.

    >>> from dhpe_fast.compat import smplx  # was: import smplx
    >>> hand = smplx.create("models", model_type="mano", is_rhand=True, use_pca=False)

Written from smplx's documentation and behaviour (Pavlakos et al., CVPR 2019, github.com/vchoutas/smplx). Bodies and
faces are not here.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dhpe_fast.compat._skinning import SkinnedModule, basis_from_mano, load_hand
from dhpe_fast.conventions import N_ARTICULATED, N_JOINTS, N_POSE, N_SHAPE, TIP_VERTEX_IDS
from dhpe_fast.hand.mano_file import check_model
from dhpe_fast.hand.mano_side import flip_shapedirs_x, shapedirs_x_sign_is_wrong
from dhpe_fast.ops.lbs import lbs
from dhpe_fast.reference.lbs import LbsBasis
from dhpe_fast.torch_settings import full_precision, out_of_half

__all__ = ["MANO", "MANOLayer", "MANOOutput", "build_layer", "create"]


@dataclass
class MANOOutput:
    """What a hand model returns, metres and radians; also reads as ``output["vertices"]``. None where not asked for."""

    vertices: Tensor | None = None
    """(B, 778, 3)."""
    joints: Tensor | None = None
    """(B, 16, 3) MANO16 order, or what ``joint_mapper`` made of them."""
    full_pose: Tensor | None = None
    """(B, 48) absolute axis-angle of all joints, or (B, 16, 3, 3) from a layer."""
    global_orient: Tensor | None = None
    """The root's rotation, as it was given."""
    transl: Tensor | None = None
    """Never set by hands, as in smplx."""
    v_shaped: Tensor | None = None
    """(B, 778, 3) at rest, from ``forward_shape`` only."""
    betas: Tensor | None = None
    """The shape coefficients, as they were given."""
    hand_pose: Tensor | None = None
    """(B, 45) axis-angle without the mean pose, or a layer's matrices as they were given."""

    def __getitem__(self, key: str) -> Tensor | None:
        return getattr(self, key)

    def get(self, key: str, default: Any = None) -> Any:
        """The field of that name, or `default` where there is none."""
        return getattr(self, key, default)

    def keys(self) -> Iterator[str]:
        """Names of the fields."""
        return iter([field.name for field in fields(self)])

    __iter__ = keys

    def values(self) -> Iterator[Tensor | None]:
        """The fields, in the order of ``keys``."""
        return iter([self[key] for key in self.keys()])

    def items(self) -> Iterator[tuple[str, Tensor | None]]:
        """Pairs of name and field."""
        return iter([(key, self[key]) for key in self.keys()])


class VertexJointSelector(nn.Module):
    """Appends vertices to joints. Hands own one in smplx, and so in its checkpoints, but do not apply it."""

    def __init__(self, indices: tuple[int, ...]) -> None:
        super().__init__()
        self.register_buffer("extra_joints_idxs", torch.tensor(indices, dtype=torch.int64))

    def forward(
        self,
        vertices: Tensor,  # (B, V, 3)
        joints: Tensor,  # (B, J, 3)
    ) -> Tensor:
        """The joints and the chosen vertices (B, J + 5, 3): fingertips, thumb to little."""
        return torch.cat([joints, vertices.index_select(1, self.extra_joints_idxs)], 1)


class MANO(SkinnedModule):
    """A hand with its parameters as module state; axis-angle or pose components in, metres out.

    Names, defaults and ``state_dict`` are smplx's, an unused ``body_pose`` included. Left hands are taken as they
    are in the file, as there, unless `fix_left_shapedirs`. Arguments of ``forward`` and parameters of the module
    broadcast against each other.

    Attributes:
        betas, global_orient, hand_pose, transl: parameters (batch_size, ...), where they were asked for.
        v_template: (778, 3) metres; shapedirs: (778, 3, num_betas); posedirs: (135, 2334);
            J_regressor: (16, 778); lbs_weights: (778, 16); parents: (16,).
        faces: (1538, 3) NumPy; faces_tensor: the same as int64.
        hand_components: (num_pca_comps, 45), if `use_pca`; np_hand_components: the same in NumPy, always.
        hand_mean: (45,) the pose added to all, zero for a flat mean; pose_mean: (48,) the same after a zero root.
    """

    BASIS_BUFFERS = ("v_template", "shapedirs", "posedirs", "J_regressor", "lbs_weights")
    NUM_BODY_JOINTS = 1
    NUM_HAND_JOINTS = N_ARTICULATED
    NUM_JOINTS = N_JOINTS
    SHAPE_SPACE_DIM = N_SHAPE

    def __init__(
        self,
        model_path: str | os.PathLike[str] | None,
        is_rhand: bool = True,
        data_struct: Any = None,
        create_hand_pose: bool = True,
        hand_pose: Any = None,  # (batch_size, num_pca_comps or 45)
        use_pca: bool = True,
        num_pca_comps: int = 6,
        flat_hand_mean: bool = False,
        batch_size: int = 1,
        dtype: torch.dtype = torch.float32,
        vertex_ids: Mapping[str, int] | None = None,
        use_compressed: bool = True,
        ext: str = "pkl",
        *,
        create_betas: bool = True,
        betas: Any = None,  # (batch_size, num_betas)
        num_betas: int = N_SHAPE,
        create_global_orient: bool = True,
        global_orient: Any = None,  # (batch_size, 3)
        create_body_pose: bool = True,
        create_transl: bool = True,
        transl: Any = None,  # (batch_size, 3)
        v_template: Any = None,  # (778, 3)
        joint_mapper: Callable[[Tensor], Tensor] | None = None,
        gender: str = "neutral",
        fix_left_shapedirs: bool = False,
        **kwargs: Any,
    ) -> None:
        """As smplx's, and `fix_left_shapedirs`.

        Args:
            model_path: the folder of MANO_RIGHT.pkl and MANO_LEFT.pkl, or one such file (pkl or npz), which then
                decides the side, or None for the package's own hand, which needs no licensed file.
            is_rhand: the side, where the path does not decide it.
            data_struct: the model's arrays instead of a file, as attributes or as a mapping, with MANO's keys.
            create_hand_pose: whether there is a parameter ``hand_pose``; likewise `create_betas`,
                `create_global_orient`, `create_transl` and `create_body_pose`.
            hand_pose: first value of that parameter, else zero; likewise `betas`, `global_orient`, `transl`.
            use_pca: fingers are given as coefficients of the pose components.
            num_pca_comps: how many; all 45 mean axis-angle instead, as in smplx.
            flat_hand_mean: zero coefficients are the flat hand; else the mean pose.
            batch_size: of the parameters; ``forward`` takes any.
            dtype: of buffers and parameters.
            vertex_ids: accepted and not used, as are `use_compressed` and unknown keywords: calls that serve
                bodies too may be left as they are.
            use_compressed: see `vertex_ids`.
            ext: of the files in a folder, 'pkl' or 'npz'.
            create_betas: see `create_hand_pose`.
            betas: see `hand_pose`.
            num_betas: shape coefficients in use, at most 10.
            create_global_orient: see `create_hand_pose`.
            global_orient: see `hand_pose`.
            create_body_pose: see `create_hand_pose`; hands have no body, but smplx's checkpoints do.
            create_transl: see `create_hand_pose`.
            transl: see `hand_pose`.
            v_template: rest vertices in place of the model's, metres.
            joint_mapper: applied to the joints (B, 16, 3), before the translation.
            gender: only kept.
            fix_left_shapedirs: correct the sign fault of the released MANO_LEFT.pkl (smplx issue 48).
            **kwargs: see `vertex_ids`.

        Raises:
            ValueError: an argument is none of these, or the file is missing, unsafe or no hand model.
        """
        super().__init__()
        if ext not in ("pkl", "npz"):
            raise ValueError(f"ext: expected 'pkl' or 'npz', got {ext!r}")
        if not 0 <= num_pca_comps <= N_POSE:
            raise ValueError(f"num_pca_comps: expected 0 to {N_POSE}, got {num_pca_comps}")
        arrays, self.is_rhand = _arrays(model_path, data_struct, is_rhand, ext, fix_left_shapedirs)
        self.gender, self.age = gender, "adult"
        self.batch_size, self.dtype = batch_size, dtype
        self.joint_mapper = joint_mapper
        self.num_pca_comps = num_pca_comps
        self.use_pca = use_pca and num_pca_comps < N_POSE
        self.flat_hand_mean = flat_hand_mean
        self._num_betas = min(num_betas, N_SHAPE)
        self._register_constants(arrays, v_template)
        for name, wanted, value, size in (
            ("betas", create_betas, betas, self._num_betas),
            ("global_orient", create_global_orient, global_orient, 3),
            ("body_pose", create_body_pose, None, 3 * self.NUM_BODY_JOINTS),
            ("transl", create_transl, transl, 3),
            ("hand_pose", create_hand_pose, hand_pose, self.hand_pose_size),
        ):
            if wanted:
                first = torch.zeros(batch_size, size) if value is None else torch.as_tensor(value).detach()
                self.register_parameter(name, nn.Parameter(first.to(dtype, copy=True)))

    def _register_constants(self, arrays: Mapping[str, np.ndarray], v_template: Any) -> None:
        self.faces = arrays["f"].astype(np.uint32)
        self.np_hand_components = arrays["hands_components"][: self.num_pca_comps]
        hand_mean = np.zeros(N_POSE) if self.flat_hand_mean else arrays["hands_mean"]
        template = torch.as_tensor(arrays["v_template"] if v_template is None else v_template)
        if template.shape != arrays["v_template"].shape:
            raise ValueError(f"v_template: expected {arrays['v_template'].shape}, got {tuple(template.shape)}")
        constants = {
            "v_template": template.detach(),
            "shapedirs": arrays["shapedirs"][:, :, : self._num_betas],
            "posedirs": arrays["posedirs"].reshape(-1, arrays["posedirs"].shape[-1]).T,
            "J_regressor": arrays["J_regressor"],
            "lbs_weights": arrays["weights"],
            "hand_mean": hand_mean,
            "pose_mean": np.concatenate([np.zeros(3), hand_mean]),
        }
        if self.use_pca:
            constants["hand_components"] = self.np_hand_components
        for name, values in constants.items():
            self.register_buffer(name, torch.as_tensor(values).to(self.dtype, copy=True).contiguous())
        self.register_buffer("faces_tensor", torch.as_tensor(arrays["f"], dtype=torch.int64))
        self.register_buffer("parents", torch.as_tensor(arrays["kintree_table"][0], dtype=torch.int64))
        self.vertex_joint_selector = VertexJointSelector(tuple(int(vertex) for vertex in arrays["tip_ids"]))

    @property
    def num_betas(self) -> int:
        """Shape coefficients in use."""
        return self._num_betas

    @property
    def hand_pose_size(self) -> int:
        """Coefficients that ``hand_pose`` has."""
        return self.num_pca_comps if self.use_pca else N_POSE

    def name(self) -> str:
        """'MANO'."""
        return "MANO"

    def get_num_verts(self) -> int:
        """778."""
        return self.v_template.shape[0]

    def get_num_faces(self) -> int:
        """1538."""
        return self.faces.shape[0]

    @torch.no_grad()
    def reset_params(self, **params_dict: Any) -> None:
        """Fills the named parameters with the given values and all others with zero."""
        for name, parameter in self.named_parameters():
            value = params_dict.get(name)
            if value is None:
                parameter.zero_()
            else:
                parameter.copy_(torch.as_tensor(value))

    def build_basis(self) -> LbsBasis:
        """The skinning op's constants, in metres."""
        v_template, shapedirs, posedirs, J_regressor, weights = (self._buffers[name] for name in self.BASIS_BUFFERS)
        return basis_from_mano(v_template, shapedirs, posedirs.T.unflatten(0, (-1, 3)), J_regressor, weights)

    def forward_shape(
        self,
        betas: Tensor | None = None,  # (B, num_betas)
    ) -> MANOOutput:
        """The hand at rest, without pose: ``vertices`` and ``v_shaped`` (B, 778, 3)."""
        betas = self._given("betas", betas)
        betas = out_of_half(betas, self.shapedirs.dtype)
        with full_precision(betas.device):
            v_shaped = self.v_template + torch.einsum("bs,vcs->bvc", betas, self.shapedirs)
        return MANOOutput(vertices=v_shaped, v_shaped=v_shaped, betas=betas)

    def forward(
        self,
        betas: Tensor | None = None,  # (B, num_betas)
        global_orient: Tensor | None = None,  # (B, 3) axis-angle
        hand_pose: Tensor | None = None,  # (B, num_pca_comps) or (B, 45)
        transl: Tensor | None = None,  # (B, 3) metres
        return_verts: bool = True,
        return_full_pose: bool = False,
        **kwargs: Any,
    ) -> MANOOutput:
        """Poses the hand; what is not given is taken from the module's parameters. Differentiable once.

        Args:
            betas: shape coefficients.
            global_orient: rotation about the wrist joint.
            hand_pose: coefficients or axis-angles of the fingers, to which the mean pose is added.
            transl: added to vertices and joints.
            return_verts: whether vertices *and joints* are in the output, as in smplx.
            return_full_pose: whether ``full_pose`` is.
            **kwargs: not used.

        Raises:
            TypeError: an argument is no floating-point tensor.
            ValueError: an argument is neither given nor a parameter, or shapes or types do not fit.
        """
        basis = self.basis
        betas = self._given("betas", betas)
        global_orient = self._given("global_orient", global_orient, 3)
        hand_pose = self._given("hand_pose", hand_pose, self.hand_pose_size)
        transl = transl if transl is not None else self._parameters.get("transl")
        if self.use_pca:
            components = self._buffers["hand_components"]
            hand_pose = out_of_half(hand_pose, components.dtype)
            with full_precision(hand_pose.device):
                hand_pose = hand_pose @ components
        batch = _common_batch(global_orient=global_orient, hand_pose=hand_pose, betas=betas)
        full_pose = torch.cat([global_orient.expand(*batch, 3), hand_pose.expand(*batch, N_POSE)], -1)
        full_pose = full_pose + self._buffers["pose_mean"]
        vertices, joints = self._skin(full_pose.unflatten(-1, (N_JOINTS, 3)), betas, transl, basis)
        return MANOOutput(
            vertices=vertices if return_verts else None,
            joints=joints if return_verts else None,
            full_pose=full_pose if return_full_pose else None,
            global_orient=global_orient,
            betas=betas,
            hand_pose=hand_pose,
        )

    def extra_repr(self) -> str:
        pose = f"{self.num_pca_comps} components" if self.use_pca else "axis-angle"
        side = "right" if self.is_rhand else "left"
        return f"side={side!r}, pose={pose}, flat_hand_mean={self.flat_hand_mean}, num_betas={self.num_betas}"

    def _skin(self, full_pose: Tensor, betas: Tensor, transl: Tensor | None, basis: LbsBasis) -> tuple[Tensor, Tensor]:
        vertices, joints = lbs(full_pose, betas, basis)
        if self.joint_mapper is not None:
            joints = self.joint_mapper(joints)
        if transl is not None:
            vertices, joints = vertices + transl[..., None, :], joints + transl[..., None, :]
        return vertices, joints

    def _given(self, name: str, value: Tensor | None, size: int | None = None) -> Tensor:
        value = value if value is not None else self._parameters.get(name)
        if value is None:
            raise ValueError(f"{name}: not given, and the model was made without it (create_{name}=False)")
        if not isinstance(value, Tensor) or not value.is_floating_point():
            given = f"a tensor of {value.dtype}" if isinstance(value, Tensor) else type(value).__name__
            raise TypeError(f"{name}: expected a floating-point tensor, got {given}")
        if size is not None and value.shape[-1:] != (size,):
            raise ValueError(f"{name}: expected (B, {size}), got {tuple(value.shape)}")
        return value


class MANOLayer(MANO):
    """The hand without parameters: rotation matrices in, metres out; what is not given is the identity or zero.

    Neither the mean pose nor pose components play a part. The constructor is ``MANO``'s.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        flags = ("create_hand_pose", "create_global_orient", "create_betas", "create_transl")
        super().__init__(*args, **kwargs | dict.fromkeys(flags, False))

    def forward(
        self,
        betas: Tensor | None = None,  # (B, num_betas)
        global_orient: Tensor | None = None,  # (B, 1, 3, 3)
        hand_pose: Tensor | None = None,  # (B, 15, 3, 3)
        transl: Tensor | None = None,  # (B, 3) metres
        return_verts: bool = True,
        return_full_pose: bool = False,
        **kwargs: Any,
    ) -> MANOOutput:
        """Poses the hand; see :meth:`MANO.forward`. Matrices are used as they are; the root may be (B, 3, 3)."""
        basis, template = self.basis, self._buffers["v_template"]
        eye = torch.eye(3, dtype=template.dtype, device=template.device)
        global_orient = eye.expand(1, 1, 3, 3) if global_orient is None else global_orient
        hand_pose = eye.expand(1, N_ARTICULATED, 3, 3) if hand_pose is None else hand_pose
        betas = template.new_zeros(1, self.num_betas) if betas is None else betas
        root, fingers = (
            _matrices("global_orient", global_orient, 1),
            _matrices("hand_pose", hand_pose, N_ARTICULATED),
        )
        (batch,) = _common_batch(global_orient=root[:, 0, 0], hand_pose=fingers[:, 0, 0], betas=betas)
        full_pose = torch.cat([root.expand(batch, -1, -1, -1), fingers.expand(batch, -1, -1, -1)], 1)
        vertices, joints = self._skin(full_pose, betas, transl, basis)
        return MANOOutput(
            vertices=vertices if return_verts else None,
            joints=joints if return_verts else None,
            full_pose=full_pose if return_full_pose else None,
            global_orient=global_orient,
            betas=betas,
            hand_pose=hand_pose,
        )


def create(model_path: str | os.PathLike[str] | None, model_type: str = "mano", **kwargs: Any) -> MANO:
    """A hand with parameters: ``MANO(model_path, **kwargs)``.

    Args:
        model_path: a folder that holds one folder for each type of model, here 'mano'; or a model's file; or None
            for the package's own hand.
        model_type: 'mano'; bodies and faces are not here.
        **kwargs: passed on.

    Raises:
        ValueError: `model_type` is another one; or see :class:`MANO`.
    """
    return MANO(_model_file(model_path, model_type), **kwargs)


def build_layer(model_path: str | os.PathLike[str] | None, model_type: str = "mano", **kwargs: Any) -> MANOLayer:
    """A hand without parameters: ``MANOLayer(model_path, **kwargs)``; see :func:`create`."""
    return MANOLayer(_model_file(model_path, model_type), **kwargs)


def _model_file(path: str | os.PathLike[str] | None, model_type: str) -> str | os.PathLike[str] | None:
    if "mano" not in model_type.lower():
        raise ValueError(f"model_type: expected 'mano', got {model_type!r}: bodies and faces need smplx itself")
    return os.path.join(path, model_type) if path is not None and os.path.isdir(path) else path


def _arrays(
    path: str | os.PathLike[str] | None, data_struct: Any, is_rhand: bool, ext: str, fix_left_shapedirs: bool
) -> tuple[dict[str, Any], bool]:
    """The model's arrays in float64, `tip_ids` among them, and whether it is a right hand."""
    named = "right" if is_rhand else "left"
    if data_struct is None:
        is_file = path is not None and not os.path.isdir(path)
        hand = load_hand(
            path,
            None if is_file else named,
            extension=ext,
            tip_ids="smplx",
            fix_left_shapedirs=fix_left_shapedirs,
        )
        return hand.arrays(), hand.side == "right"
    entries = data_struct if isinstance(data_struct, Mapping) else vars(data_struct)
    dense = {key: value.toarray() if hasattr(value, "toarray") else value for key, value in entries.items()}
    arrays = check_model(dense, "data_struct") | {"side": named, "tip_ids": TIP_VERTEX_IDS["smplx"]}
    if fix_left_shapedirs and not is_rhand and shapedirs_x_sign_is_wrong(arrays):
        arrays["shapedirs"] = flip_shapedirs_x(arrays["shapedirs"])
    return arrays, is_rhand


def _matrices(name: str, value: Tensor, count: int) -> Tensor:
    """(B, count, 3, 3) from that shape, or any other with as many rotation matrices for each hand."""
    if not isinstance(value, Tensor) or not value.is_floating_point():
        given = f"a tensor of {value.dtype}" if isinstance(value, Tensor) else type(value).__name__
        raise TypeError(f"{name}: expected a floating-point tensor, got {given}")
    if value.dim() < 2 or value.shape[1:].numel() != 9 * count:
        raise ValueError(f"{name}: expected (B, {count}, 3, 3) rotation matrices, got {tuple(value.shape)}")
    return value.reshape(-1, count, 3, 3)


def _common_batch(**tensors: Tensor) -> tuple[int, ...]:
    """The batch that all share, by broadcasting; each tensor is (*batch, size)."""
    batches = [tensor.shape[:-1] for tensor in tensors.values()]
    if all(batch == batches[0] for batch in batches):
        return batches[0]
    try:
        return torch.broadcast_shapes(*batches)
    except RuntimeError:
        shapes = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in tensors.items())
        raise ValueError(f"batches do not broadcast: {shapes}") from None
