"""The detail of drawn skin: where nails, creases and the palm's colour are, and where there is nothing."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from dhpe_fast.data.pictures import Skin, hand_layer
from dhpe_fast.data.skin_detail import SkinDetail
from dhpe_fast.hand import HandModel, WeakPerspective
from dhpe_fast.shading import Lighting

NAIL = np.array((0.2, 0.5, 0.9))
BARE = SkinDetail(NAIL, creases=0, folds=0, relief=0, veins=0, palm=np.ones(3), warp=np.zeros((3, 4)))
"""Nothing but nails, which are blue."""
DIP, TIP = 11, 12
"""Of the middle finger, in STD order."""
FRONTAL = Lighting(key=(0, 0, -1), fill=(0, 0, -1), shadows=False, per_vertex=True)


@pytest.fixture(scope="module")
def right() -> HandModel:
    return HandModel.default("right")


@pytest.fixture(scope="module")
def middle_nail(right) -> tuple[torch.Tensor, torch.Tensor]:
    """Places (1, 3) on the back and on the palmar side of the middle finger's last bone, near its end."""
    dip, tip = (right.joint_regressor @ right.v_template)[[DIP, TIP]]
    aside_m = (right.v_template - (dip + 0.75 * (tip - dip)))[:, [0, 2]].norm(dim=1)
    around = right.v_template[aside_m < 0.004]
    back, palmar = around[around[:, 1].argmax()], around[around[:, 1].argmin()]  # the back of the hand faces +y
    assert back[1] - palmar[1] > 0.008
    return back[None], palmar[None]


def test_a_nail_is_on_the_back_of_its_finger(middle_nail):
    back, palmar = middle_nail
    np.testing.assert_allclose(BARE.factor(back)[0], NAIL, atol=0.04)
    np.testing.assert_allclose(BARE.factor(palmar)[0], 1, atol=1e-5)


def test_people_without_lines_have_plain_skin_away_from_their_nails(right):
    away = torch.cdist(right.v_template, right.rest_tips_m()).min(1).values > 0.02
    assert away.sum() > 500
    np.testing.assert_allclose(BARE.factor(right.v_template[away]), 1, atol=1e-6)


def test_strengths_are_in_proportion(right):
    half, full = (replace(BARE, creases=by).factor(right.v_template) - 1 for by in (0.4, 0.8))
    lined = (full < -0.1).any(1) & (BARE.factor(right.v_template) > 0.99).all(1)
    assert lined.sum() > 10
    torch.testing.assert_close(full[lined], 2 * half[lined], rtol=1e-3, atol=1e-5)


def test_the_palmar_side_alone_takes_the_palms_colour(right):
    palm = replace(BARE, palm=np.array((1.1, 0.8, 0.7)))
    x, y, z = right.v_template.unbind(1)
    flat = (x > 0.03) & (x < 0.08) & (z.abs() < 0.015)  # between the knuckles and the wrist
    inner, back = right.v_template[flat & (y < -0.01)], right.v_template[flat & (y > 0.015)]
    assert min(len(inner), len(back)) > 5
    np.testing.assert_allclose(palm.factor(inner), np.tile((1.1, 0.8, 0.7), (len(inner), 1)), atol=0.01)
    np.testing.assert_allclose(palm.factor(back), 1, atol=0.01)


def test_far_from_the_hand_and_along_the_forearm_there_is_nothing(right):
    lined = replace(BARE, creases=1.0, folds=1.0, relief=1.0, veins=1.0)
    far_m = torch.tensor([(1.0, 0, 0), (0, -1, 0), (0, 0, 1), (0, 0, -1)])
    forearm = right.v_template[right.wrist_index] + torch.tensor((0.05, 0, 0))
    np.testing.assert_allclose(lined.factor(torch.cat([far_m, forearm])), 1, atol=1e-3)


def test_anybodys_factors_are_finite_and_not_negative(right):
    rng = np.random.default_rng(0)
    factors = [SkinDetail.random(rng.uniform(0.02, 0.8, 3), rng).factor(right.v_template) for _ in range(30)]
    assert all(factor.isfinite().all() and (factor >= 0).all() for factor in factors)
    assert (factors[0] != factors[1]).any()


# --- Drawn hands ------------------------------------------------------------------------------------------------

VIEWS = {
    "palm": torch.tensor([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]]),
    "back": torch.tensor([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]]),
}
"""From the frame of the hand at rest to a camera that sees one side of it."""


def drawn(side: str, view: str, detail: SkinDetail) -> np.ndarray:
    """A grey hand (H, W, 4), in the middle of the picture."""
    model = HandModel.default(side)
    verts_m = model.v_template @ VIEWS[view].T
    middle_m = 0.5 * (verts_m.amin(0) + verts_m.amax(0))
    camera, skin = WeakPerspective(450, (48, 48)), Skin(torch.full((778, 3), 0.6), detail)
    return hand_layer(model, verts_m - middle_m, camera, (96, 96), skin, FRONTAL, supersample=2)


@pytest.mark.parametrize(
    ("strength", "lined", "plain"),
    [("creases", "palm", "back"), ("folds", "back", "palm"), ("relief", "back", "palm"), ("veins", "back", "palm")],
)
def test_each_kind_of_line_is_drawn_on_its_side_of_the_hand(strength, lined, plain):
    def changed_px(view: str) -> int:
        change = drawn("right", view, replace(BARE, **{strength: 1.0})) - drawn("right", view, BARE)
        return int((np.abs(change).max(-1) > 0.025).sum())

    assert changed_px(lined) > max(20, 8 * changed_px(plain))


def test_nails_are_seen_from_the_back_alone():
    blue = {
        view: (picture[..., 2] - picture[..., 0] > 0.1).sum()
        for view in VIEWS
        for picture in [drawn("right", view, BARE)]
    }
    assert blue["back"] > 60
    assert blue["palm"] == 0


def test_a_left_hand_is_the_mirror_image():
    lined = replace(BARE, creases=1.0, folds=1.0, relief=1.0, veins=1.0, palm=np.array((1.1, 0.8, 0.7)))
    for view in VIEWS:
        left, right = drawn("left", view, lined)[:, ::-1], drawn("right", view, lined)
        inside = (left[..., 3] == 1) & (right[..., 3] == 1)  # at the outline, samples may be on either side
        assert inside.sum() > 0.7 * (right[..., 3] > 0).sum()
        np.testing.assert_allclose(left[inside], right[inside], atol=0.03)  # forearms have other triangles
