"""The losses of Baek, Kim and Kim, CVPR 2019: one function per equation, one value per instance.

Convention
    Every loss returns ``(*batch,)`` and leaves the mean over instances to the caller. Crop frame and pixels are those
    of :mod:`dhpe_fast.conventions`; images and masks are in [0, 1]. Half types are summed in float32.

Norms
    The paper prints squared 2-norms, so ``reduction="sum"`` is the default. ``"mean"`` divides by the number of
    annotated elements, for weights that do not depend on the sizes of images, features and skeletons.

Missing labels
    `valid` (per joint) and `has_mask` (per instance) say what is annotated; None means everything. What is not,
    contributes exactly 0, to the value and to every gradient, whatever its label holds, NaN included.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from dhpe_fast.conventions import CROP_SIZE_PX
from dhpe_fast.ops import silhouette
from dhpe_fast.torch_settings import full_precision

REDUCTIONS = ("sum", "mean")
GATE_MODES = ("mean_distance", "squared_norm", "constant")
CONSTANT_LAMBDA = 0.01
"""Weight of the shape loss in the paper's ablation without the gate (Fig. 5(f), 'Constant weight')."""


def feature_loss(
    features: Tensor,  # (*batch, N) F(x)
    features_masked: Tensor,  # (*batch, N) F(x * m)
    has_mask: Tensor | None = None,  # (*batch,) bool
    *,
    reduction: str = "sum",
) -> Tensor:
    """Eq. 2, L_Feat = ||F(x) - F(x * m)||^2: (*batch,).

    Both branches receive a gradient, as the equation has it. A constant F minimises it; to hold one side still, pass
    that side detached.

    Args:
        features: of the whole images.
        features_masked: of the images with everything but the hand set to zero. For instances without a mask pass any
            finite image through F: a NaN inside F would reach its weights, where no loss can stop it.
        has_mask: which instances have a mask.
        reduction: "sum" or "mean" over the N features.

    Raises:
        TypeError, ValueError: an argument has the wrong type or shape, or `reduction` is unknown.
    """
    pair = {"features": features, "features_masked": features_masked}
    return _squared_norm(pair, 1, {"has_mask": has_mask}, reduction)


def heatmap_loss(
    heatmaps: Tensor | Sequence[Tensor],  # (*batch, 21, H, W), or one for each stage
    heatmaps_gt: Tensor,  # (*batch, 21, H, W)
    valid: Tensor | None = None,  # (*batch, 21) bool
    *,
    reduction: str = "sum",
) -> Tensor:
    """Eq. 3, L_J2D = ||f_J2D(x) - j_2DHeat||^2: (*batch,).

    Args:
        heatmaps: the network's output alone, as printed, or the maps of all of its stages, whose losses add up: the
            intermediate supervision with which Zimmermann and Brox 2017 trained this network.
        heatmaps_gt: the maps that every stage should give.
        valid: which joints are annotated.
        reduction: "sum" or "mean" over joints and pixels; stages always add up.

    Raises:
        TypeError, ValueError: an argument has the wrong type or shape, there is no stage, or `reduction` is unknown.
    """
    stages = [heatmaps] if isinstance(heatmaps, Tensor) else list(heatmaps)
    if not stages:
        raise ValueError("heatmaps: expected a tensor or at least one stage, got an empty sequence")
    pairs = ({"heatmaps": stage, "heatmaps_gt": heatmaps_gt} for stage in stages)
    return sum(_squared_norm(pair, 3, {"valid": valid}, reduction) for pair in pairs)


def heatmap_entropy_loss(
    heatmaps: Tensor,  # (*batch, 21, H, W) >= 0
    heatmaps_gt: Tensor,  # (*batch, 21, H, W)
    mass: float,
    valid: Tensor | None = None,  # (*batch, 21) bool
) -> Tensor:
    """In the place of Eq. 3 for maps that are distributions: their cross-entropy against the targets, (*batch,).

    Both maps sum up to `mass` for a joint inside of the crop; what is missing is the share outside. The mean over the
    joints that are annotated, of each the cross-entropy less that of a perfect answer, so that the least value is 0.
    Squares of the differences (Eq. 3) hardly tell a wrong guess from none while most cells are zero; this does.

    Args:
        heatmaps: the network's output.
        heatmaps_gt: the maps that it should give.
        mass: what a whole map sums up to.
        valid: which joints are annotated.

    Raises:
        TypeError, ValueError: an argument has the wrong type or shape, or `mass` is not positive.
    """
    if not mass > 0:
        raise ValueError(f"mass: expected a positive number, got {mass!r}")
    pair = {"heatmaps": heatmaps, "heatmaps_gt": heatmaps_gt}
    found, wanted, _ = _comparable(pair, 3, {"valid": valid})
    shares, truth = (torch.cat([m.flatten(-2), mass - m.sum((-2, -1))[..., None]], -1) / mass for m in (found, wanted))
    truth = truth.clamp_min(0)
    # Below the smaller bound the sum that the share outside is the rest of has rounding errors alone.
    logs = torch.cat([shares[..., :-1].clamp_min(1e-30), shares[..., -1:].clamp_min(1e-6)], -1).log()
    terms = (torch.special.xlogy(truth, truth.clamp_min(1e-30)) - truth * logs).sum(-1)
    return terms.mean(-1) if valid is None else (terms * valid).sum(-1) / valid.sum(-1).clamp_min(1)


def seen_silhouette_loss(
    log_odds: Tensor,  # (*batch, n, n)
    masks: Tensor,  # (*batch, S, S) in [0, 1], S a multiple of n
    has_mask: Tensor | None = None,  # (*batch,) bool
) -> Tensor:
    """Cross-entropy of a silhouette seen in cells against the share of each cell that the mask covers: (*batch,).

    The mean over the cells, in nats; 0 for instances without a mask.

    Args:
        log_odds: that a cell shows the hand.
        masks: finer than the cells or as fine.
        has_mask: which instances have one.

    Raises:
        TypeError, ValueError: an argument has the wrong type or shape.
    """
    _check_floating({"log_odds": log_odds, "masks": masks})
    if log_odds.dim() < 2 or masks.shape[:-2] != log_odds.shape[:-2]:
        raise ValueError(f"masks: expected one for each of log_odds {tuple(log_odds.shape)}, got {tuple(masks.shape)}")
    cells, size = log_odds.shape[-1], masks.shape[-1]
    if log_odds.shape[-2] != cells or masks.shape[-2] != size or not cells or size % cells:
        raise ValueError(
            f"masks: expected squares of a multiple of {cells} pixels for log_odds {tuple(log_odds.shape)}, "
            f"got {tuple(masks.shape)}"
        )
    shares = masks.to(log_odds.dtype).unflatten(-1, (cells, -1)).unflatten(-3, (cells, -1)).mean((-3, -1))
    terms = binary_cross_entropy_with_logits(log_odds, shares, reduction="none").mean((-2, -1))
    return terms if has_mask is None else terms * has_mask


def joints2d_refine_loss(
    joints2d_px: Tensor,  # (*batch, 21, 2)
    joints2d_gt_px: Tensor,  # (*batch, 21, 2)
    valid: Tensor | None = None,  # (*batch, 21) bool
    image_size: int = CROP_SIZE_PX,
    *,
    reduction: str = "sum",
) -> Tensor:
    """Eq. 6, L_Ref = ||f_Ref(...) - j_2DGT||^2 in the unit interval (pixels / image_size): (*batch,).

    The paper leaves the unit open; this one is that of Eq. 8, so that the terms of Eq. 7 can have equal weights. It
    is written for one iteration t; over several, add up the values.

    Args:
        joints2d_px: the refined joints, pixels of the crop.
        joints2d_gt_px: the annotated joints, pixels of the crop.
        valid: which joints are annotated.
        image_size: side of the crop, pixels.
        reduction: "sum" or "mean" over joints and coordinates.

    Raises:
        TypeError, ValueError: an argument has the wrong type or shape, or `reduction` is unknown.
    """
    if not isinstance(image_size, int) or image_size < 1:
        raise ValueError(f"image_size: expected a whole number of pixels >= 1, got {image_size!r}")
    pair = {"joints2d_px": joints2d_px, "joints2d_gt_px": joints2d_gt_px}
    return _squared_norm(pair, 2, {"valid": valid}, reduction) / image_size**2


def articulation_loss(
    joints_crop: Tensor,  # (*batch, 21, 3)
    joints_crop_gt: Tensor,  # (*batch, 21, 3)
    valid: Tensor | None = None,  # (*batch, 21) bool
    *,
    reduction: str = "sum",
) -> Tensor:
    """Eq. 8, L_Art = ||[f_DHPE(x)]_J - j_norm||^2 in the unit interval: (*batch,).

    Joints come in the crop frame, [-1, 1] across the crop. Eq. 8's unit interval is joints_norm = (joints_crop + 1)/2,
    so the value is a quarter of the squared distance in crop units. The estimate is not re-centred: the truth has its
    root (middle MCP) at z = 0, and the network has to put it there.

    Args:
        joints_crop: the estimate, f_Reg of the mesh.
        joints_crop_gt: the truth, see :mod:`dhpe_fast.data.normalize`.
        valid: which joints are annotated.
        reduction: "sum" or "mean" over joints and coordinates.

    Raises:
        TypeError, ValueError: an argument has the wrong type or shape, or `reduction` is unknown.
    """
    pair = {"joints_crop": joints_crop, "joints_crop_gt": joints_crop_gt}
    return _squared_norm(pair, 2, {"valid": valid}, reduction) / 4


def silhouette_loss(
    mask: Tensor,  # (*batch, H, W)
    mask_gt: Tensor,  # (*batch, H, W)
    has_mask: Tensor | None = None,  # (*batch,) bool
    *,
    reduction: str = "sum",
) -> Tensor:
    """Eq. 9, L_Sh = ||[f_DHPE(x)]_M - m||^2: (*batch,).

    Between two hard masks the sum counts the pixels that differ.

    Args:
        mask: the rendered silhouettes, see :func:`dhpe_fast.ops.silhouette` for the gradients they can have.
        mask_gt: the annotated masks.
        has_mask: which instances have one.
        reduction: "sum" or "mean" over pixels.

    Raises:
        TypeError, ValueError: an argument has the wrong type or shape, or `reduction` is unknown.
    """
    return _squared_norm({"mask": mask, "mask_gt": mask_gt}, 2, {"has_mask": has_mask}, reduction)


def mask_iou_loss(
    mask: Tensor,  # (*batch, H, W) in [0, 1]
    mask_gt: Tensor,  # (*batch, H, W) in [0, 1]
    has_mask: Tensor | None = None,  # (*batch,) bool
) -> Tensor:
    """1 - IoU of two masks, sum(a b) / sum(a + b - a b): (*batch,) in [0, 1].

    Bounded, unlike the sum over pixels of Eq. 9: a mask that shows little of the hand has little to say.

    Raises:
        TypeError, ValueError: an argument has the wrong type or shape.
    """
    a, b, annotated = _comparable({"mask": mask, "mask_gt": mask_gt}, 2, {"has_mask": has_mask})
    a, b = (part if annotated is None else torch.where(annotated, part, 0.0) for part in (a, b))
    both = (a * b).sum((-2, -1))
    either = a.sum((-2, -1)) + b.sum((-2, -1)) - both
    loss = 1 - both / either.clamp_min(1.0)
    return loss if has_mask is None else torch.where(has_mask, loss, 0.0)


def silhouette_iou_loss(
    verts_px: Tensor,  # (*batch, V, 3) x, y in pixels of the mask, z away from the camera
    faces: Tensor,  # (F, 3)
    mask: Tensor,  # (*batch, H, W) in [0, 1]
) -> Tensor:
    """``mask_iou_loss`` of a mesh's own silhouette and a mask: (*batch,) in [0, 1].

    Anti-aliased, with its exact gradient (``silhouette(mode="edge")``).
    """
    return mask_iou_loss(silhouette(verts_px, faces, tuple(mask.shape[-2:]), mode="edge"), mask)


def laplacian_loss(
    verts: Tensor,  # (*batch, V, 3)
    laplacian: Tensor,  # (V, V)
) -> Tensor:
    """Mean length of the mesh's Laplacian coordinates (L_Lap of Eq. 7, after Kanazawa et al. 2018): (*batch,).

    The unit is that of the vertices; the value does not change when the mesh is turned or moved.
    """
    with full_precision(verts.device):
        return torch.linalg.vector_norm(laplacian @ verts, dim=-1).mean(-1)


def cotangent_laplacian(
    verts: Tensor,  # (V, 3) the template
    faces: Tensor,  # (F, 3)
) -> Tensor:
    """Cotangent Laplacian L (V, V) of a template, frozen afterwards as in Kanazawa et al. 2018.

    L_ij = (cot a + cot b) / 2 for the two angles opposite edge ij; rows sum to zero; not divided by vertex areas.
    Dense: at a hand's 778 vertices one matrix product beats the sparse formats.
    """
    faces = faces.long()
    triangle = verts[faces]  # (F, corner, 3)
    laplacian = verts.new_zeros(len(verts), len(verts))
    for corner in range(3):
        i, j = faces[:, (corner + 1) % 3], faces[:, (corner + 2) % 3]
        u = triangle[:, (corner + 1) % 3] - triangle[:, corner]
        v = triangle[:, (corner + 2) % 3] - triangle[:, corner]
        area = torch.linalg.vector_norm(torch.linalg.cross(u, v), dim=-1).clamp_min(1e-12)
        half_cot = 0.5 * (u * v).sum(-1) / area
        for row, column, sign in ((i, j, 1), (j, i, 1), (i, i, -1), (j, j, -1)):
            laplacian.index_put_((row, column), sign * half_cot, accumulate=True)
    return laplacian


@torch.no_grad()
def silhouette_gate(
    joints2d_px: Tensor,  # (*batch, 21, 2)
    joints2d_gt_px: Tensor,  # (*batch, 21, 2)
    valid: Tensor | None = None,  # (*batch, 21) bool
    tau_px: float = 15.0,
    mode: str = "mean_distance",
    constant: float = CONSTANT_LAMBDA,
) -> Tensor:
    """Eq. 10, lambda: 1 for instances whose projected joints are closer than tau to the truth, else 0: (*batch,).

    A weight, not a loss: it never carries a gradient. Instances without an annotated joint, or whose estimate is not
    finite, have lambda 0: nothing says that they are aligned.

    The paper compares a squared norm, summed over the joints, with "15 pixels". Its Fig. 5(f) shows a share of
    instances below tau that grows from the start of the training, which only the first reading can give: the second
    needs every joint within a pixel or so.

    Args:
        joints2d_px: the estimated 3D joints seen in the crop, pixels.
        joints2d_gt_px: the annotated ones.
        valid: which joints are annotated.
        tau_px: the threshold, in pixels of the crop for "mean_distance", in square pixels for "squared_norm".
        mode: "mean_distance", the mean distance of the annotated joints is below tau; "squared_norm", as printed: the
            sum of their squared distances is (of fewer than all joints, their mean times the number of all);
            "constant", lambda is `constant` for every instance (the paper's ablation, Fig. 5(f)).
        constant: of "constant".

    Raises:
        TypeError, ValueError: an argument has the wrong type or shape, `mode` is unknown, `tau_px` is not positive, or
            `constant` is negative.
    """
    if mode not in GATE_MODES:
        raise ValueError(f"mode is {mode!r}, expected one of {', '.join(map(repr, GATE_MODES))}")
    if not (tau_px > 0 and constant >= 0 and math.isfinite(constant)):
        raise ValueError(f"tau_px, constant: expected numbers > 0 and >= 0, got {tau_px} and {constant}")
    pair = {"joints2d_px": joints2d_px, "joints2d_gt_px": joints2d_gt_px}
    estimate, truth, annotated = _comparable(pair, 2, {"valid": valid})
    if mode == "constant":
        return estimate.new_full(estimate.shape[:-2], constant)
    difference = estimate - truth
    if annotated is not None:
        difference = torch.where(annotated, difference, 0.0)
    distance_sq = difference.square().sum(-1)
    count = _count(annotated, distance_sq[..., None], 2)
    if mode == "mean_distance":
        deviation = distance_sq.sqrt().sum(-1) / count
    else:
        deviation = distance_sq.sum(-1) / count * distance_sq.shape[-1]
    return ((deviation < tau_px) & (count > 0)).to(estimate.dtype)


def total_loss(
    terms: Mapping[str, Tensor],  # each (*batch,)
    weights: Mapping[str, float | Tensor] | None = None,  # each a number or (*batch,)
) -> Tensor:
    """Eq. 7, L = L_Art + L_Lap + L_Feat + lambda L_Sh + L_Ref: (*batch,).

    Args:
        terms: the losses by name, as many as there are.
        weights: of the named terms, 1 where none is given; lambda of Eq. 10 is the weight of L_Sh. No gradient flows
            into a weight, and where it is 0, none out of the term, even if that is infinite or NaN.

    Raises:
        ValueError: there is no term, a weight belongs to none, or terms have different shapes.
    """
    weights = {} if weights is None else weights
    if not terms:
        raise ValueError("terms: expected at least one loss, got none")
    unknown = sorted(set(weights) - set(terms))
    if unknown:
        raise ValueError(f"weights: {', '.join(unknown)} weigh no term; the terms are {', '.join(terms)}")
    shape = next(iter(terms.values())).shape
    weighted = []
    for name, term in terms.items():
        weight = weights.get(name, 1.0)
        # A number stays one: as a tensor it would have to be copied to the device, once a step.
        weight = weight.detach() if isinstance(weight, Tensor) else float(weight)
        weight_shape = weight.shape if isinstance(weight, Tensor) else shape
        if term.shape != shape or weight_shape not in ((), shape):
            raise ValueError(
                f"terms: expected {tuple(shape)} as of the first term, and weights that are numbers or of that shape, "
                f"got {name} {tuple(term.shape)} with weight {tuple(weight_shape)}"
            )
        if isinstance(weight, Tensor):
            term = torch.where(weight == 0, 0.0, term)
        elif weight == 0:
            term = torch.zeros_like(term)
        weighted.append(weight * term)
    return sum(weighted)


def _squared_norm(pair: dict[str, Tensor], axes: int, label: dict[str, Tensor | None], reduction: str) -> Tensor:
    """||a - b||^2 over the last `axes` of what is annotated; arguments as of `_comparable`."""
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction is {reduction!r}, expected 'sum' or 'mean'")
    a, b, annotated = _comparable(pair, axes, label)
    difference = a - b
    if annotated is not None:
        # Chosen before it is squared: the gradient of a square at NaN would be NaN, even where it does not count.
        difference = torch.where(annotated, difference, 0.0)
    total = difference.square().flatten(-axes).sum(-1)
    return total if reduction == "sum" else total / _count(annotated, difference, axes).clamp_min(1)


def _count(annotated: Tensor | None, elements: Tensor, axes: int) -> Tensor:
    """Number of annotated elements in the last `axes`: (*batch,), or () if all are."""
    size = math.prod(elements.shape[-axes:])
    if annotated is None:
        return elements.new_full((), size)
    flags = annotated.flatten(-axes)
    return flags.sum(-1).to(elements.dtype) * (size // max(flags.shape[-1], 1))


def _check_floating(values: Mapping[str, Tensor]) -> None:
    for name, value in values.items():
        if not isinstance(value, Tensor) or not value.is_floating_point():
            given = f"a tensor of {value.dtype}" if isinstance(value, Tensor) else type(value).__name__
            raise TypeError(f"{name}: expected a floating-point tensor, got {given}")


def _comparable(
    pair: dict[str, Tensor],  # two by name, (*batch, ...) with `axes` more
    axes: int,
    label: dict[str, Tensor | None],  # "has_mask" (*batch,) or "valid" (*batch, joints)
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Both in single precision at least, and which of their elements are annotated, made to broadcast."""
    _check_floating(pair)
    (name_a, a), (name_b, b) = pair.items()
    if a.shape != b.shape or a.dim() < axes:
        raise ValueError(
            f"{name_a} {tuple(a.shape)} and {name_b} {tuple(b.shape)}: expected one shape of {axes} axes or more"
        )
    ((name, annotated),) = label.items()
    if annotated is not None:
        expected = a.shape[: a.dim() - axes + (name == "valid")]
        if not isinstance(annotated, Tensor) or annotated.dtype != torch.bool or annotated.shape != expected:
            given = (tuple(annotated.shape), annotated.dtype) if isinstance(annotated, Tensor) else type(annotated)
            raise ValueError(f"{name}: expected a tensor of bool {tuple(expected)}, got {given}")
        annotated = annotated.reshape(*expected, *(1,) * (a.dim() - len(expected)))
    a, b = (value.float() if value.dtype in (torch.float16, torch.bfloat16) else value for value in (a, b))
    return a, b, annotated
