"""Training of the locator: targets against loops over cells, the loss, and the stream of batches."""

from __future__ import annotations

import math
import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch

pytest.importorskip("pydantic", reason="the extra `train` is not installed")
pytest.importorskip("tqdm", reason="the extra `train` is not installed")

from dhpe_fast.config import LocatorConfig, load_config
from dhpe_fast.data import hand_layers
from dhpe_fast.data.whole_pictures import LabelledPicture
from dhpe_fast.metrics.detection import match
from dhpe_fast.nets.locator import Locator
from dhpe_fast.train import locator as training
from dhpe_fast.train.locator import Target, batches, collate, joined, locator_loss, measure, parts_of

HAND, OTHER, NONE = (20.0, 10.0, 60.0, 34.0), (70.0, 40.0, 90.0, 60.0), (0.0, 0.0, 0.0, 0.0)


def target(boxes, is_left, counts) -> Target:
    """Of one picture of 64 x 96 pixels, 8 x 12 cells."""
    return Target.of(torch.tensor([boxes]), torch.tensor([is_left]), torch.tensor([counts]), (8, 12))


def test_the_heat_is_that_of_a_loop_over_cells():
    heat = target([HAND, NONE], [False, False], [True, False]).heat
    sigma = 0.12 * math.sqrt(40 * 24) / 8
    sigma = max(sigma, 0.7)
    for row in range(8):
        for column in range(12):
            dx, dy = (column + 0.5) - 40 / 8, (row + 0.5) - 22 / 8
            expected = min(math.exp(-(dx**2 + dy**2) / (2 * sigma**2)), 0.999)
            if abs(dx) <= 0.5 and abs(dy) <= 0.5:
                expected = 1.0
            assert float(heat[0, row, column]) == pytest.approx(expected, abs=1e-6)


def test_each_hand_is_told_by_the_cells_about_it():
    found = target([HAND, OTHER], [False, True], [True, True])
    assert float(found.heat[0, 2, 4]) == float(found.heat[0, 6, 9]) == 1
    assert (float(found.left[0, 2, 4]), float(found.left[0, 6, 9])) == (0, 1)
    # Centres (40, 22) and (80, 50); those of the cells (36, 20) and (76, 52).
    assert found.offset[0, :, 2, 4].tolist() == pytest.approx([4 / 8, 2 / 8])
    assert found.offset[0, :, 6, 9].tolist() == pytest.approx([4 / 8, -2 / 8])
    assert found.log_size[0, :, 2, 4].tolist() == pytest.approx([math.log(40 / 64), math.log(24 / 64)])
    assert found.log_size[0, :, 6, 9].tolist() == pytest.approx([math.log(20 / 64)] * 2)


def test_cells_of_a_hand_that_need_not_be_found_are_left_out():
    found = target([HAND, OTHER], [False, True], [True, False])
    assert float(found.heat[0, 6, 9]) < 0.01
    ignored = {(row, column) for _, row, column in torch.nonzero(found.ignored).tolist()}
    assert ignored == {(row, column) for row in range(8) for column in range(12) if 5 <= row <= 7 and 9 <= column <= 10}


def picture(seed: int, boxes=(), lefts=()) -> LabelledPicture:
    """Noise, with a bright box for each hand: its left half is brighter in those of right hands."""
    image = np.random.default_rng(seed).integers(0, 60, (64, 96, 3)).astype(np.uint8)
    for (left, top, right, bottom), is_left in zip(boxes, lefts, strict=True):
        middle = int(left + right) // 2
        first, second = (int(left), middle), (middle, int(right))
        image[int(top) : int(bottom), slice(*first)] += 60 if is_left else 190
        image[int(top) : int(bottom), slice(*second)] += 190 if is_left else 60
    flags = np.ones(len(lefts), bool)
    return LabelledPicture(image, np.array(boxes, np.float32).reshape(-1, 4), np.array(lefts, bool), flags)


def test_batches_are_filled_up():
    batch = collate([picture(0, [HAND, OTHER], [False, True]), picture(1)])
    assert batch["images"].shape == (2, 3, 64, 96)
    assert batch["counts"].tolist() == [[True, True], [False, False]]
    assert batch["boxes_px"][1].tolist() == [list(NONE)] * 2


def test_the_network_learns_and_is_measured():
    places = [(8 * (k % 5), 8 * (k % 3), 8 * (k % 5) + 40, 8 * (k % 3) + 30) for k in range(8)]
    pictures = [picture(k, [place], [k % 2 == 1]) for k, place in enumerate(places)]
    pictures += [picture(k) for k in range(8, 12)]
    network, batch = Locator(8), collate(pictures)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    losses = []
    for _ in range(60):
        terms = locator_loss(network, batch)
        assert set(terms) == {"heat", "side", "offset", "size"}
        optimizer.zero_grad()
        sum(terms.values()).backward()
        optimizer.step()
        losses.append(sum(term.item() for term in terms.values()))
    assert losses[-1] < 0.1 * losses[0]
    with torch.no_grad():
        for _ in range(20):
            network(batch["images"].float() / 255)  # batch statistics settle
    scores = measure(network.eval(), pictures)
    assert scores["average_precision"] > 0.9
    assert scores["side_accuracy"] > 0.9
    assert scores["false_alarms"] == 0


def test_a_hand_that_fills_its_picture_raises_no_false_alarm():
    network, filled = Locator(4).eval(), [replace(picture(k), has_unlabelled=True) for k in range(2)]
    matches = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "match", lambda found: matches.extend(found) or match(found))
        assert measure(network, filled)["false_alarms"] == 0
    assert [found.has_unlabelled for found in matches] == [True, True]


def test_a_batch_without_hands_has_a_loss():
    terms = locator_loss(Locator(4), collate([picture(0), picture(1)]))
    assert all(bool(torch.isfinite(term)) for term in terms.values())
    assert terms["offset"].item() == terms["size"].item() == 0


@pytest.mark.parametrize("batch_size", [3, 5, 8])
def test_batches_are_the_same_for_any_number_of_workers_each_of_which_keeps_few_pictures(batch_size):
    """A picture is composed once, by one worker, and kept until its last use."""
    last, new = max(lag for lag, _ in training._USES), -(-batch_size // 4)
    expected = None
    for workers in range(1, 9):
        composed, kept = [], [weakref.WeakSet() for _ in range(workers)]

        class Pictures:
            def __init__(self, of_worker: weakref.WeakSet, composed: list[int]) -> None:
                self.of_worker, self.composed = of_worker, composed

            def __getitem__(self, number: int) -> LabelledPicture:
                self.composed.append(number)
                boxes = [(1, 2, 5 + number % 3, 7)] * (number % 3)
                image = np.full((8, 8, 3), number % 251, np.uint8)
                made = LabelledPicture(
                    image, np.array(boxes, np.float32).reshape(-1, 4), *np.ones((2, len(boxes)), bool)
                )
                self.of_worker.add(made)
                return made

        streams = [parts_of(Pictures(own, composed), batch_size, 0, k, workers) for k, own in enumerate(kept)]
        batches = [joined([next(stream) for stream in streams]) for _ in range(2 * last + 50)]
        assert len(composed) == len(set(composed))
        assert max(map(len, kept)) <= new * (last + 1) / workers + new + 1
        expected = expected or batches
        for one, same in zip(batches, expected, strict=True):
            assert one.keys() == same.keys() == {"images", "boxes_px", "is_left", "counts"}
            assert all(torch.equal(one[name], same[name]) for name in one)


def config(folder, workers: int = 0) -> LocatorConfig:
    small = ["n_training=18", "n_evaluation=18", "n_measured=4", "size_px=64", f"workers={workers}", "backgrounds=null"]
    changes = [f"data.{change}" for change in small] + [f"data.root={folder}"]
    return load_config("locator", [*changes, "optimisation.steps=2", "optimisation.batch_size=3", "width=4"])


@pytest.fixture(scope="module")
def layers_folder(tmp_path_factory):
    """Hands, and one head and one other thing: those that a seed gives among its first few."""
    folder = tmp_path_factory.mktemp("layers")
    hand_layers.write_layers(folder, 18, 18, workers=1)
    return folder


def test_a_resumed_stream_goes_on_where_it_was(layers_folder):
    whole, rest = batches(config(layers_folder)), batches(config(layers_folder), 1)
    next(whole)
    second, again = next(whole), next(rest)
    for name, value in second.items():
        torch.testing.assert_close(again[name], value, rtol=0, atol=0)


def test_a_run_trains_on_layers_that_are_there_and_draws_none(layers_folder, tmp_path, monkeypatch):
    pytest.importorskip("safetensors", reason="the extra `train` is not installed")
    pytest.importorskip("tensorboard", reason="the extra `train` is not installed")
    drawn = []
    monkeypatch.setattr(training, "write_layers", lambda *arguments, **options: drawn.append(arguments))
    folder = training.train_locator(config(layers_folder), tmp_path / "run", device="cpu")
    assert folder.is_dir()
    assert drawn == []
    assert (tmp_path / "run" / "metrics.jsonl").exists()
