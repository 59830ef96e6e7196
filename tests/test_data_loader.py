"""Batches from tiny data sets on the disk: the same in one process and in several, with errors that name samples."""

from __future__ import annotations

import dataclasses
import pickle

import numpy as np
import pytest
import torch
from dataset_files import write_rhd, write_stb

from dhpe_fast.data import (
    CropAugmentation,
    DatasetError,
    EpochSampler,
    HandCrops,
    MissingDataError,
    apply_colour,
    collate,
    make_loader,
)
from dhpe_fast.data.normalize import denormalize
from dhpe_fast.data.rhd import read_rhd
from dhpe_fast.data.stb import read_stb

# Newer versions of Python warn of a fork of a process with threads, which torch's workers are.
pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
AUGMENTATION = dataclasses.replace(CropAugmentation.standard(), blur_px=1.0, occluders=2)


@pytest.fixture(scope="module")
def datasets(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_rhd(folder / "rhd", 5)
    write_stb(folder / "stb", ["B1Counting", "B1Random"], n=2)
    return read_rhd(folder / "rhd", "train"), read_stb(folder / "stb", "test")


def tensors(record):
    for field in dataclasses.fields(record):
        value = getattr(record, field.name)
        if isinstance(value, torch.Tensor):
            yield field.name, value
        elif dataclasses.is_dataclass(value):
            yield from tensors(value)


def assert_same(one, other) -> None:
    pairs = list(zip(tensors(one), tensors(other), strict=True))
    assert len(pairs) >= 14
    for (name, value), (_, expected) in pairs:
        assert torch.equal(value, expected), name
    assert one.names == other.names


def test_a_batch_of_several_data_sets(datasets):
    rhd, stb = datasets
    crops = HandCrops([rhd, stb], size=48)
    assert len(crops) == 5 + 8
    assert [crops.sample(i).name for i in (4, 5)] == [rhd[4].name, stb[0].name]
    batch = collate([crops[4], crops[5]])
    assert (batch.images.shape, batch.images.dtype) == ((2, 3, 48, 48), torch.uint8)
    assert batch.images.is_contiguous(memory_format=torch.channels_last)
    assert batch.masks.dtype == torch.uint8
    assert batch.has_mask.tolist() == [True, False]
    assert batch.mirrored.tolist() == [True, True]
    assert batch.index.tolist() == [4, 5]
    assert batch.names == (rhd[4].name, stb[0].name)
    assert batch.joint0 == "palm"
    assert batch.appearance is None
    assert not batch.masks[1].any()


def test_a_batch_leads_back_to_metres(datasets):
    crops = HandCrops(datasets, size=32, augmentation=AUGMENTATION)
    batch = collate([crops[0, 1], crops[0, 6]])
    back = denormalize(batch.joints_crop, batch.square, batch.camera, batch.root_depth_m)
    torch.testing.assert_close(back, batch.joints_m, atol=2e-6, rtol=0)
    np.testing.assert_allclose(batch.joints_m[1], datasets[1][1].joints_m * (-1, 1, 1), atol=1e-6)


def test_an_item_depends_on_seed_epoch_and_index_only(datasets):
    crops = HandCrops(datasets, 32, AUGMENTATION, seed=3)
    again = HandCrops(datasets, 32, AUGMENTATION, seed=3)
    again[1, 0]
    assert_same(collate([crops[2, 7]]), collate([again[2, 7]]))
    keys = [(2, 7), (2, 8), (3, 7)]
    angles = {crops[key].angle for key in keys} | {HandCrops(datasets, 32, AUGMENTATION, seed=4)[2, 7].angle}
    assert len(angles) == 4
    assert crops[5].angle == crops[0, 5].angle


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_make_the_same_batches(datasets, workers):
    crops = HandCrops(datasets, 32, AUGMENTATION)
    sampler = EpochSampler(len(crops), batch_size=4)
    alone, loader = make_loader(crops, sampler), make_loader(crops, sampler, workers)
    for epoch, first_batch in ((0, 0), (1, 1)):
        sampler.set_epoch(epoch, first_batch)
        batches = list(zip(alone, loader, strict=True))
        assert len(batches) == 3 - first_batch
        for one, other in batches:
            assert_same(one, other)


def test_the_global_generator_is_left_alone(datasets):
    state = torch.get_rng_state()
    crops = HandCrops(datasets, 32, AUGMENTATION)
    next(iter(make_loader(crops, EpochSampler(len(crops), batch_size=2))))
    assert torch.equal(torch.get_rng_state(), state)


def test_two_ranks_make_the_batches_of_one(datasets):
    crops = HandCrops(datasets, 32, AUGMENTATION)
    whole = list(make_loader(crops, EpochSampler(len(crops), batch_size=6)))
    shares = [list(make_loader(crops, EpochSampler(len(crops), 0, rank, 2, 6))) for rank in range(2)]
    for batch, first, second in zip(whole, *shares, strict=True):
        assert torch.equal(batch.images, torch.cat([first.images, second.images]))
        torch.testing.assert_close(apply_colour(batch).images[3:], apply_colour(second).images, atol=1e-5, rtol=0)


def test_errors_name_the_sample(tmp_path):
    write_rhd(tmp_path, 2)
    crops = HandCrops(read_rhd(tmp_path, "train"), 32)
    file = tmp_path / "training" / "color" / "00001.png"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(DatasetError, match=r"00001\.png: is empty or cut off.*training/00001"):
        list(make_loader(crops, EpochSampler(2, batch_size=1, shuffle=False)))


@pytest.mark.parametrize("error", [DatasetError, MissingDataError])
def test_errors_survive_the_way_from_a_worker(error):
    """Torch sends the class and the text, and makes a new error of them (a worker takes 5 s to end after one)."""
    message = "x.png: no such file; it belongs to sample training/00001"
    assert str(error(message)) == message
    assert str(pickle.loads(pickle.dumps(error(message)))) == message


def test_any_other_error_names_the_sample_too(datasets):
    rhd = datasets[0]
    labels = dataclasses.replace(rhd.labels, cameras=rhd.labels.cameras * (1, -1, 1, 1))
    crops = HandCrops(dataclasses.replace(rhd, labels=labels), 32)
    with pytest.raises(DatasetError, match=r"sample training/00002 of Dataset\('rhd'.*ValueError: Pinhole.fy"):
        crops[2]


def test_no_random_numbers_without_augmentation(datasets):
    crops = HandCrops(datasets, 32)
    assert np.array_equal(crops[0, 3].image, crops[9, 3].image)
    plain = HandCrops(datasets, 32, CropAugmentation(rotation=0.5))
    assert plain[0, 3].look is None
    assert plain[0, 3].angle != 0


def test_wrong_arguments_are_named(datasets):
    with pytest.raises(ValueError, match="datasets: expected at least one sample"):
        HandCrops([])
    with pytest.raises(ValueError, match="seed: expected a whole number >= 0, got -1"):
        HandCrops(datasets, seed=-1)
    with pytest.raises(ValueError, match=r"joint0, wrist_rule: .* got 'root' and 'ring'"):
        HandCrops(datasets, joint0="root")
    with pytest.raises(ValueError, match="size: "):
        HandCrops(datasets, size=0)
    with pytest.raises(IndexError, match="index 13 of 13 crops"):
        HandCrops(datasets)[13]
    one, other = HandCrops(datasets, 32)[0], HandCrops(datasets, 32, joint0="wrist")[0]
    with pytest.raises(ValueError, match="items: expected at least one, with one meaning of joint 0, got 2"):
        collate([one, other])
