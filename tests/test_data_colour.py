"""The look of a batch against loops over pixels; noise by its statistics; the same on every device."""

from __future__ import annotations

import colorsys
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from test_data_sample import batch

from dhpe_fast.data import Appearance, CropAugmentation, apply_colour
from dhpe_fast.data.augmentation import OCCLUDER_FIELDS, draw_look
from dhpe_fast.data.colour import adjust_colours, blur, draw_occluders, seeded_noise

B, S = 2, 16


def appearance(**changed) -> Appearance:
    fields = {
        "gain": torch.ones(B, 3),
        "contrast": torch.ones(B),
        "saturation": torch.ones(B),
        "hue": torch.zeros(B),
        "blur_px": torch.zeros(B),
        "blur_radius": 0,
        "noise": None,
        "noise_seed": torch.arange(B),
        "occluders": torch.zeros(B, 0, 12),
    }
    return Appearance(**{**fields, **changed})


def pictures(seed=0) -> torch.Tensor:
    return torch.rand(B, 3, S, S, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def uint8_batch(**changed):
    images = torch.randint(0, 256, (B, S, S, 3), dtype=torch.uint8).permute(0, 3, 1, 2)
    return batch(B, **{"images": images, "masks": torch.ones(B, S, S, dtype=torch.uint8), **changed})


def test_bytes_become_numbers_in_the_unit_interval():
    raw = uint8_batch()
    done = apply_colour(raw)
    assert (done.images.dtype, done.masks.dtype) == (torch.float32, torch.float32)
    torch.testing.assert_close(done.images, raw.images.float() / 255)
    assert done.masks.unique().tolist() == [1]
    assert apply_colour(done) is done
    assert raw.images.dtype == torch.uint8


def test_nothing_drawn_changes_nothing():
    raw = uint8_batch(appearance=appearance())
    torch.testing.assert_close(apply_colour(raw).images, raw.images.float() / 255, atol=1e-6, rtol=0)
    assert apply_colour(raw).appearance is None


def test_colours_against_a_loop_over_pixels():
    look = appearance(
        gain=torch.tensor([[0.8, 1.1, 1.2], [1.3, 0.9, 1.0]]),
        contrast=torch.tensor([0.7, 1.2]),
        saturation=torch.tensor([1.4, 0.0]),
    )
    images = pictures()
    found = adjust_colours(images, look)
    for b in range(B):
        adjusted = np.empty((S, S, 3))
        for i in range(S):
            for j in range(S):
                colour = images[b, :, i, j].numpy() * look.gain[b].numpy()
                grey = colour @ (0.299, 0.587, 0.114)
                adjusted[i, j] = grey + float(look.saturation[b]) * (colour - grey)
        mean = (adjusted @ (0.299, 0.587, 0.114)).mean()
        expected = mean + float(look.contrast[b]) * (adjusted - mean)
        np.testing.assert_allclose(found[b].permute(1, 2, 0), expected, atol=1e-6)


def test_hue_turns_colours_and_leaves_grey():
    images = torch.full((B, 3, 2, 2), 0.4, dtype=torch.float64)
    images[1] = torch.tensor([0.8, 0.2, 0.2], dtype=torch.float64)[:, None, None]
    found = adjust_colours(images, appearance(hue=torch.full((B,), 2 * math.pi / 3, dtype=torch.float64)))
    torch.testing.assert_close(found[0], images[0])
    torch.testing.assert_close(found[1, :, 0, 0], torch.tensor([0.2, 0.8, 0.2], dtype=torch.float64))
    small = adjust_colours(images, appearance(hue=torch.full((B,), 0.2, dtype=torch.float64)))[1, :, 0, 0]
    assert colorsys.rgb_to_hsv(*small.tolist())[0] == pytest.approx(0.2 / (2 * math.pi), rel=0.15)


def occluder(**values) -> torch.Tensor:
    row = {**dict.fromkeys(OCCLUDER_FIELDS, 0.0), **values}
    return torch.tensor([row[name] for name in OCCLUDER_FIELDS], dtype=torch.float64)


def test_occluders_against_a_loop_over_pixels():
    rectangle = occluder(x=0.2, y=-0.1, half_width=0.6, half_height=0.2, angle=0.4, red=1.0, green=0.5)
    ellipse = occluder(
        is_ellipse=1, x=-0.3, half_width=0.3, half_height=0.5, blue=0.7, stripes=0.2, frequency=9, phase=1
    )
    images = pictures()
    found = draw_occluders(images, torch.stack([torch.stack([rectangle, ellipse]), torch.zeros(2, 12).double()]))
    assert torch.equal(found[1], images[1]), "shapes of no size are not there"
    covered = 0
    for i in range(S):
        for j in range(S):
            x, y = (2 * j + 1) / S - 1, (2 * i + 1) / S - 1
            dx, dy = x - 0.2, y + 0.1
            along = math.cos(0.4) * dx + math.sin(0.4) * dy
            across = -math.sin(0.4) * dx + math.cos(0.4) * dy
            expected = images[0, :, i, j].tolist()
            if abs(along) <= 0.6 and abs(across) <= 0.2:
                expected, covered = [1.0, 0.5, 0.0], covered + 1
            if ((x + 0.3) / 0.3) ** 2 + (y / 0.5) ** 2 <= 1:
                stripe = 0.2 * math.sin(9 * (x + 0.3) + 1)
                expected, covered = [max(stripe, 0), max(stripe, 0), 0.7 + stripe], covered + 1
            np.testing.assert_allclose(found[0, :, i, j], expected, atol=1e-9)
    assert covered > 40


def test_blur_against_its_formula():
    images = torch.zeros(B, 3, S, S, dtype=torch.float64)
    images[:, :, 8, 8] = 1
    found = blur(images, torch.tensor([1.2, 0.0], dtype=torch.float64), radius=4)
    torch.testing.assert_close(found[1], images[1], atol=1e-9, rtol=0)
    weights = np.exp(-0.5 * (np.arange(-4, 5) / 1.2) ** 2)
    expected = np.outer(weights, weights) / weights.sum() ** 2
    np.testing.assert_allclose(found[0, 1, 4:13, 4:13], expected, atol=1e-9)
    ones = torch.ones(B, 3, S, S)
    torch.testing.assert_close(blur(ones, torch.tensor([1.0, 2.0]), radius=6), ones)


def test_noise_is_nearly_normal_and_depends_on_its_seed_only():
    images = torch.zeros(3, 3, 128, 128)
    noise = seeded_noise(images, torch.tensor([7, 8, 7]))
    assert torch.equal(noise[0], noise[2])
    assert not torch.equal(noise[0], noise[1])
    assert torch.equal(noise[1:2], seeded_noise(images[:1], torch.tensor([8])))
    values = noise[:2].flatten()
    assert values.mean().abs() < 0.01
    assert values.std() == pytest.approx(1, abs=0.01)
    assert (values.abs() < 1).float().mean() == pytest.approx(0.683, abs=0.02)
    neighbours = [noise[0, 0, :, 1:] * noise[0, 0, :, :-1], noise[0, 0] * noise[0, 1], noise[0] * noise[1]]
    assert all(product.mean().abs() < 0.02 for product in neighbours)


def test_noise_by_hand():
    """SplitMix64 in Python's integers, for a pixel of each of two seeds."""

    def mix(x):
        x ^= x >> 30
        x = x * 0xBF58476D1CE4E5B9 % 2**64
        x ^= x >> 27
        x = x * 0x94D049BB133111EB % 2**64
        return x ^ (x >> 31)

    gamma = 0x9E3779B97F4A7C15
    found = seeded_noise(torch.zeros(2, 3, 2, 5, dtype=torch.float64), torch.tensor([0, 123456]))
    for b, seed in enumerate((0, 123456)):
        bits = mix((mix(seed * gamma % 2**64) + (1 * 5 + 3 + 1) * gamma) % 2**64)
        for channel in range(3):
            total = sum(bits >> (20 * channel + shift) & 31 for shift in (0, 5, 10, 15))
            assert found[b, channel, 1, 3] == pytest.approx((total - 62) / math.sqrt(341))


def test_noise_is_added_in_shares_of_the_range():
    raw = uint8_batch(
        images=torch.full((B, 3, 64, 64), 128, dtype=torch.uint8),
        masks=torch.zeros(B, 64, 64, dtype=torch.uint8),
        appearance=appearance(noise=torch.tensor([0.0, 0.05])),
    )
    images = apply_colour(raw).images
    assert images[0].std() < 1e-6
    assert images[1].std() == pytest.approx(0.05, rel=0.05)


def test_results_stay_in_the_unit_interval():
    raw = uint8_batch(appearance=appearance(gain=torch.full((B, 3), 3.0), contrast=torch.full((B,), 2.0)))
    images = apply_colour(raw).images
    assert (images.min(), images.max()) == (0, 1)


def test_draws_fill_their_ranges():
    ranges = CropAugmentation(brightness=0.3, hue=0.2, noise=0.05, occluders=2, occlusion=0.5, occluder_size=(0.1, 0.4))
    looks = [draw_look(ranges, np.random.default_rng(seed)) for seed in range(300)]
    gains = np.array([look.gain for look in looks])
    assert np.ptp(gains, axis=1).max() < 1e-12, "without tint all channels change alike"
    assert 0.7 <= gains.min() < 0.72
    assert 1.28 < gains.max() <= 1.3
    assert 0.19 < max(look.hue for look in looks) <= 0.2
    assert {look.contrast for look in looks} == {1}
    shapes = np.stack([look.occluders for look in looks]).reshape(-1, 12)
    drawn = shapes[shapes[:, 3] > 0]
    assert len(drawn) / len(shapes) == pytest.approx(0.5, abs=0.08)
    assert drawn[:, 3:5].min() >= 0.1
    assert drawn[:, 3:5].max() <= 0.4
    assert CropAugmentation().varies_look is False


def test_every_device_gives_the_same(device):
    look = appearance(
        gain=torch.rand(B, 3) + 0.5,
        hue=torch.tensor([0.1, -0.1]),
        noise=torch.tensor([0.05, 0.1]),
        blur_px=torch.tensor([0.5, 1.0]),
        blur_radius=3,
        occluders=torch.stack([occluder(half_width=0.3, half_height=0.3, red=1)] * B)[:, None].float(),
    )
    raw = uint8_batch(appearance=look)
    found = apply_colour(raw.to(device)).images.cpu()
    torch.testing.assert_close(found, apply_colour(raw).images, atol=1e-5, rtol=0)
    alone = replace(look, **{k: v[:1] for k, v in vars(look).items() if isinstance(v, torch.Tensor)})
    one = batch(1, images=raw.images[:1], masks=raw.masks[:1], appearance=alone)
    torch.testing.assert_close(apply_colour(one.to(device)).images.cpu(), found[:1], atol=1e-5, rtol=0)
