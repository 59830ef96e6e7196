"""UNetPose2D, the smaller f_J2D: shapes, what it may see, and that it learns where a mark is."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from dhpe_fast.losses import heatmap_entropy_loss, seen_silhouette_loss
from dhpe_fast.nets import DHPE, UNetPose2D, heatmap_targets, joints_from_heatmaps
from dhpe_fast.nets.heatmaps import heatmap_mass
from dhpe_fast.nets.results import DHPEOutput


def test_maps_have_a_fourth_of_the_resolution_whatever_the_crop():
    net = UNetPose2D(width=0.25, input_size=64).eval()
    for side in (48, 64, 100):
        (maps,) = net(torch.rand(2, 3, side, side))
        assert maps.shape == (2, 21, 16, 16)
    assert net.heatmap_size == 16


def test_size_and_work_are_as_documented():
    net = UNetPose2D()
    assert sum(p.numel() for p in net.parameters()) == pytest.approx(3.3e6, rel=0.02)
    counted = FlopCounterMode(display=False)
    with counted, torch.no_grad():
        net(torch.rand(1, 3, 128, 128))
    assert counted.get_total_flops() / 2 == pytest.approx(0.38e9, rel=0.02)


def test_a_moved_picture_has_moved_maps():
    """By a multiple of the coarsest stride, and away from the border, which is no part of the picture."""
    torch.manual_seed(0)
    net = UNetPose2D(width=0.25, input_size=256).eval()
    torch.nn.init.normal_(net.head.weight)
    picture = torch.zeros(1, 3, 256, 256)
    picture[..., 96:128, 96:128] = torch.rand(3, 32, 32)
    here, there = net(picture)[0], net(picture.roll(32, dims=-1))[0]
    torch.testing.assert_close(here[..., 24:40, 24:32], there[..., 24:40, 32:40], rtol=1e-3, atol=1e-4)


def test_it_learns_where_a_mark_is():
    torch.manual_seed(0)
    net = UNetPose2D(width=0.25, input_size=32)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    generator = torch.Generator().manual_seed(0)

    def marked(n: int) -> tuple[torch.Tensor, torch.Tensor]:
        at = torch.randint(4, 28, (n, 2), generator=generator)
        images = torch.zeros(n, 3, 32, 32)
        for image, (x, y) in zip(images, at.tolist(), strict=True):
            image[:, y - 2 : y + 2, x - 2 : x + 2] = 1
        return images, at[:, None].expand(-1, 21, -1).float()

    valid = torch.ones(32, 21, dtype=torch.bool)
    for _ in range(60):
        images, joints2d_px = marked(32)
        target = heatmap_targets(joints2d_px, valid, 8, 32)
        loss = heatmap_entropy_loss(net(images)[0], target, heatmap_mass(8)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    images, joints2d_px = marked(32)
    with torch.no_grad():
        found = joints_from_heatmaps(net.eval()(images)[0], 32, subpixel=True)
    assert (found - joints2d_px).norm(dim=-1).mean() < 1.5  # a cell is four pixels


def test_a_map_is_a_distribution_over_the_cells_and_the_outside():
    torch.manual_seed(0)
    net = UNetPose2D(width=0.25, input_size=64).eval()
    torch.nn.init.normal_(net.head.weight, std=0.1)
    shares = net(torch.rand(2, 3, 64, 64))[0].sum((-2, -1)) / heatmap_mass(16)
    assert ((shares > 0) & (shares < 1)).all()
    with torch.no_grad():
        net.outside.fill_(1e6)
    assert net(torch.rand(2, 3, 64, 64))[0].max() == 0  # every joint is outside


def test_maps_stay_float32_under_autocast():
    net = UNetPose2D(width=0.25, input_size=32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert net(torch.rand(2, 3, 32, 32))[0].dtype == torch.float32


def test_dhpe_with_it_reads_joints_between_cells():
    torch.manual_seed(0)
    options = {"depth": 18, "image_size": 64, "pose2d": "unet", "pose2d_width": 0.25, "pose2d_input_size": 64}
    dhpe = DHPE(**options, pose2d_subpixel=True).eval()
    torch.nn.init.normal_(dhpe.pose2d.head.weight)
    images = torch.rand(2, 3, 64, 64)
    output = dhpe(images)
    assert isinstance(output, DHPEOutput)
    heatmaps, joints2d_px = dhpe.estimate_joints2d(images)
    torch.testing.assert_close(joints2d_px, joints_from_heatmaps(heatmaps[-1], 64, subpixel=True), rtol=0, atol=0)
    assert (output.evidence.joints2d_px - joints_from_heatmaps(heatmaps[-1], 64)).abs().max() > 0


def test_the_silhouette_is_seen_in_the_cells_of_the_maps_which_it_leaves_as_they_are():
    torch.manual_seed(0)
    net = UNetPose2D(width=0.25, input_size=64, silhouette=True).eval()
    images = torch.rand(2, 3, 48, 48)
    maps, log_odds = net.heatmaps_and_silhouette(images)
    assert log_odds.shape == (2, 16, 16)
    torch.testing.assert_close(maps, net(images)[0], rtol=0, atol=0)
    before = log_odds.detach().clone()
    with torch.no_grad():
        net.silhouette.bias += 3
    torch.testing.assert_close(net.heatmaps_and_silhouette(images)[1], before + 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert net.heatmaps_and_silhouette(images)[1].dtype == torch.float32


def test_it_learns_which_cells_are_bright():
    torch.manual_seed(0)
    net = UNetPose2D(width=0.25, input_size=32, silhouette=True)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    generator = torch.Generator().manual_seed(0)

    def blocks() -> tuple[torch.Tensor, torch.Tensor]:
        bright = (torch.rand(16, 8, 8, generator=generator) < 0.5).float()
        return bright.repeat_interleave(4, 1).repeat_interleave(4, 2)[:, None].expand(-1, 3, -1, -1), bright

    for _ in range(40):
        images, bright = blocks()
        loss = seen_silhouette_loss(net.heatmaps_and_silhouette(images)[1], bright).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    images, bright = blocks()
    with torch.no_grad():
        seen = net.eval().heatmaps_and_silhouette(images)[1] > 0
    assert (seen == bright.bool()).float().mean() > 0.95


def test_a_network_that_was_made_without_a_silhouette_says_so():
    net = UNetPose2D(width=0.25, input_size=32)
    assert not any(name.startswith("silhouette") for name in net.state_dict())
    with pytest.raises(ValueError, match="silhouette: this network has none, it was made without"):
        net.heatmaps_and_silhouette(torch.rand(1, 3, 32, 32))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 0}, "width: expected a number above 0 and up to 8, got 0"),
        ({"input_size": 100}, "input_size: expected a positive multiple of 32, got 100"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        UNetPose2D(**options)


def test_an_unknown_f_j2d_is_named():
    with pytest.raises(ValueError, match="pose2d: expected 'posenet' or 'unet', got 'other'"):
        DHPE(pose2d="other")
