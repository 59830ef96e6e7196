"""f_E3D = (f_J3D, f_Ref): from 2D evidence to a hand, in three iterations (paper, Sec. 3.2, Eqs. 4 to 6).

Both networks are one fully-connected layer. 2D joints and f_Reg(v') enter as fractions of the crop, which spans [0, 1]
(Eq. 8), h as it is, and the features divided by the square root of their number. That leaves what a layer can express,
but not how fast it moves. Adam's first steps change every weight by the learning rate, so 2048 features of about 1/2
change each output by 1000 times it: at the paper's 1e-3, one step then moves all of h by 3, the hand out of its crop.
Divided, it is 0.2. Weights start at a hundredth of Xavier's (as in the last layer of Kanazawa et al. 2018), biases such
that the output is a hand, see ``initial_hand``.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dhpe_fast.conventions import CROP_MARGIN, CROP_SIZE_PX, H_LAYOUT, H_SIZE, MIDDLE_MCP, N_JOINTS_STD
from dhpe_fast.hand import HandModel, HandParams
from dhpe_fast.nets.projector import check_joint0, decode_verts, regress_joints
from dhpe_fast.nets.results import Evidence, MeshEstimate, MeshStep

JOINTS2D_SIZE = 2 * N_JOINTS_STD
JOINTS3D_SIZE = 3 * N_JOINTS_STD

FIRST_GAIN = 0.01
"""Of the layers' first weights on their inputs, features as they are, times Xavier's."""
UPRIGHT = {"right": (0.5, 0.5, 0.5, 0.5), "left": (0.5, 0.5, -0.5, -0.5)}
"""The rotation (w, x, y, z) which shows a hand in the model frame upright in the crop, its palm to the camera.

Fingers turn from -x (left hand: +x) to -y, up; the palm's normal from -y to -z. The thumb of a right hand is at the
right then, as when one looks at one's own palm.
"""


class ParamRegressor(nn.Linear):
    """f_J3D: [F(x), j_2D, h(t)] to the offset of h, one layer of (n_features + 42 + 63) x 63 weights (Eq. 5).

    Without `use_joints2d`, j_2D is left out, as in Kanazawa et al. (2018). With `hidden`, two hidden layers of so many
    units, as theirs, add to what the one layer says; they start by adding nothing.
    """

    def __init__(self, n_features: int, use_joints2d: bool = True, hidden: int = 0) -> None:
        super().__init__(n_features + (JOINTS2D_SIZE if use_joints2d else 0) + H_SIZE, H_SIZE)
        self.use_joints2d = use_joints2d
        self.feature_scale = n_features**-0.5
        _initialise(self, slice(n_features), self.feature_scale)
        self.deeper = _hidden_layers(self.in_features, hidden) if hidden else None

    def forward(
        self,
        features: Tensor,  # (B, n_features)
        joints2d: Tensor,  # (B, 21, 2) in the unit interval
        h: Tensor,  # (B, 63)
    ) -> Tensor:
        """Delta h (B, 63)."""
        joints = [joints2d.flatten(1)] if self.use_joints2d else []
        inputs = torch.cat([features * self.feature_scale, *joints, h], dim=1)
        offset = super().forward(inputs)
        return offset if self.deeper is None else offset + self.deeper(inputs)


class Joints2dRefiner(nn.Linear):
    """f_Ref: [j'_2D(t), F(x), h'(t), f_Reg(v')] to j'_2D(t + 1), one layer of (42 + n_features + 63 + 63) x 42 weights.

    It starts by returning the joints which it is given, but for its small other weights.
    """

    def __init__(self, n_features: int) -> None:
        super().__init__(JOINTS2D_SIZE + n_features + H_SIZE + JOINTS3D_SIZE, JOINTS2D_SIZE)
        self.feature_scale = n_features**-0.5
        _initialise(self, slice(JOINTS2D_SIZE, JOINTS2D_SIZE + n_features), self.feature_scale)
        with torch.no_grad():
            self.weight[:, :JOINTS2D_SIZE] += torch.eye(JOINTS2D_SIZE)

    def forward(
        self,
        joints2d: Tensor,  # (B, 21, 2) in the unit interval
        features: Tensor,  # (B, n_features)
        h: Tensor,  # (B, 63)
        joints_norm: Tensor,  # (B, 21, 3) in the unit interval
    ) -> Tensor:
        """Joints (B, 21, 2) in the unit interval, by the input of Eq. 6."""
        inputs = [joints2d.flatten(1), features * self.feature_scale, h, joints_norm.flatten(1)]
        return super().forward(torch.cat(inputs, dim=1)).unflatten(1, (N_JOINTS_STD, 2))


def _hidden_layers(n_inputs: int, hidden: int) -> nn.Sequential:
    layers = nn.Sequential(
        nn.Linear(n_inputs, hidden), nn.LayerNorm(hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU()
    )
    last = nn.Linear(hidden, H_SIZE)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return layers.append(last)


def _initialise(layer: nn.Linear, features: slice, feature_scale: float) -> None:
    nn.init.xavier_uniform_(layer.weight, gain=FIRST_GAIN)
    nn.init.zeros_(layer.bias)
    with torch.no_grad():
        layer.weight[:, features] /= feature_scale


class MeshEstimator(nn.Module):
    """f_E3D: three times an offset of h by f_J3D, a mesh, and joints refined by f_Ref.

    It computes in the precision of its weights, under autocast as well: its layers are small, and parameters of a hand
    rounded to bfloat16 move the mesh by pixels.
    """

    def __init__(
        self,
        n_features: int,
        hand: HandModel,
        iterations: int = 3,
        *,
        image_size: int = CROP_SIZE_PX,
        use_joints2d: bool = True,
        use_refiner: bool = True,
        joint0: str = "palm",
        hidden: int = 0,
    ) -> None:
        """The biases of f_J3D are such that the first estimate is close to ``initial_hand``.

        Args:
            n_features: length of F(x).
            hand: the model which is posed; kept as a submodule, it has constants only.
            iterations: 3 in the paper.
            image_size: side of the crop in pixels.
            use_joints2d: give j'_2D(t) to f_J3D; False is an ablation of the paper (Fig. 5e).
            use_refiner: refine j'_2D by f_Ref; False is an ablation of the paper: they stay j_2D.
            joint0: see :class:`~dhpe_fast.nets.projector.Projector`.
            hidden: units of f_J3D's hidden layers; 0 is the paper's single layer.

        Raises:
            ValueError: if `iterations` is less than 1, `hidden` is negative or `joint0` unknown.
        """
        super().__init__()
        if isinstance(iterations, bool) or not isinstance(iterations, int) or iterations < 1:
            raise ValueError(f"iterations: expected a whole number >= 1, got {iterations!r}")
        if isinstance(hidden, bool) or not isinstance(hidden, int) or hidden < 0:
            raise ValueError(f"regressor_hidden: expected a whole number >= 0, got {hidden!r}")
        check_joint0(joint0)
        self.hand = hand
        self.iterations = iterations
        self.image_size = image_size
        self.joint0 = joint0
        self.regressor = ParamRegressor(n_features, use_joints2d, hidden)
        self.refiner = Joints2dRefiner(n_features) if use_refiner else None
        with torch.no_grad():
            start = HandParams.initial(hand).packed()
            self.regressor.bias.copy_((initial_hand(hand, joint0).packed() - start)[0] / iterations)

    def forward(
        self,
        evidence: Evidence,
    ) -> MeshEstimate:
        """h'(t) and j'_2D(t) of all iterations. Heat maps are not looked at.

        Raises:
            ValueError: if features or joints of the evidence have another shape.
        """
        features, joints2d_px = evidence.features, evidence.joints2d_px
        self._check(features, joints2d_px)
        dtype = self.regressor.weight.dtype
        with torch.autocast(features.device.type, enabled=False):
            features = features.to(dtype)
            joints2d = joints2d_px.to(dtype) / self.image_size
            h = HandParams.initial(self.hand, len(features)).packed().to(dtype)
            steps = []
            for _ in range(self.iterations):
                h = h + self.regressor(features, joints2d, h)  # Eq. 5
                if self.refiner is not None:
                    joints2d = self.refiner(joints2d, features, h, self._joints_norm(h).to(dtype))  # Eq. 6
                steps.append(MeshStep(h, joints2d * self.image_size))
            return MeshEstimate(tuple(steps))

    def _joints_norm(self, h: Tensor) -> Tensor:
        """f_Reg(v'), (B, 21, 3), where the crop spans [0, 1]; depth in the same unit, 1/2 at the root."""
        return 0.5 * regress_joints(self.hand, decode_verts(self.hand, h), self.joint0) + 0.5

    def _check(self, features: Tensor, joints2d_px: Tensor) -> None:
        fixed = H_SIZE + (JOINTS2D_SIZE if self.regressor.use_joints2d else 0)
        n_features = self.regressor.in_features - fixed
        if features.dim() != 2 or features.shape[1] != n_features:
            raise ValueError(f"evidence.features: expected (B, {n_features}), got {tuple(features.shape)}")
        if joints2d_px.shape != (len(features), N_JOINTS_STD, 2):
            raise ValueError(
                f"evidence.joints2d_px: expected ({len(features)}, {N_JOINTS_STD}, 2) as the features, "
                f"got {tuple(joints2d_px.shape)}"
            )


def initial_hand(hand: HandModel, joint0: str = "palm") -> HandParams:
    """The hand which an untrained network sees in every crop: mean pose and shape, upright, palm to the camera; B = 1.

    Placed as the paper crops: the middle MCP at the crop's centre and at depth zero, the crop's side 1.5 times the
    longer side of the box around its 2D joints.
    """
    like = hand.hands_mean
    params = HandParams.initial(hand).packed()
    params[:, H_LAYOUT["quat"]] = like.new_tensor(UPRIGHT[hand.side])
    params[:, H_LAYOUT["scale"]] = 1
    joints_m = regress_joints(hand, decode_verts(hand, params), joint0)[0]
    extent_m = (joints_m.amax(0) - joints_m.amin(0))[:2].max()
    scale = 2 / (CROP_MARGIN * extent_m)
    params[:, H_LAYOUT["scale"]] = scale
    params[:, H_LAYOUT["trans"]] = -scale * joints_m[MIDDLE_MCP]
    return HandParams.from_packed(params)
