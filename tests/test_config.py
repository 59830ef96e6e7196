"""Configurations: the shipped ones, what a run saves, and what is refused by name."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

pytest.importorskip("pydantic", reason="the extra `train` is not installed")

from dhpe_fast import pretrained
from dhpe_fast.config import ConfigError, data_source, load_config, save_config, shipped_configs
from dhpe_fast.refinement import EnergyWeights

TEXT = """
data:
  train: [{format: rhd, root: a, split: train}]
  validation: [{format: rhd, root: a, split: test}]
optimisation: {epochs: 2, batch_size: 8}
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "own.yaml"
    path.write_text(TEXT)
    return path


@pytest.mark.parametrize("name", ["paper", "synthetic", "tiny"])
def test_shipped_configurations_load_and_survive_being_saved(name, tmp_path):
    assert name in shipped_configs()
    config = load_config(name)
    save_config(config, tmp_path / "saved.yaml")
    assert load_config(tmp_path / "saved.yaml") == config


def as_trained(entry, tmp_path):
    """The settings that weights come from, completed as any configuration, without places and processes."""
    (tmp_path / "entry.yaml").write_text(json.dumps(entry["config"]))
    return settings(load_config(tmp_path / "entry.yaml"))


def settings(config):
    def kept(value):
        if isinstance(value, dict):
            return {key: kept(own) for key, own in value.items() if key not in ("root", "workers", "device", "start")}
        return [kept(own) for own in value] if isinstance(value, list) else value

    start = config.start.model_dump(mode="json") if hasattr(config, "start") else {}
    return kept(config.model_dump(mode="json")) | {"starts_from": [key for key, path in start.items() if path]}


@pytest.mark.parametrize(
    ("weights", "name", "run"),
    [
        ("dhpe.pt", "dhpe", 0),
        ("dhpe.pt", "gestures", 1),
        ("dhpe.pt", "pose2d", 2),
        ("lifter.pt", "lifter", 0),
        ("locator.pt", "locator", 0),
    ],
)
def test_the_weights_of_the_package_were_trained_by_its_configurations(weights, name, run, tmp_path):
    """Number `run` is the run that the weights come from, or of those that it started from, latest first."""
    entry = pretrained.shipped.manifest()[weights]
    for _ in range(run):
        entry = entry["starts_from"]
    assert as_trained(entry, tmp_path) == settings(load_config(name))
    assert ("starts_from" in entry) == bool(settings(load_config(name))["starts_from"])


def test_settings_leave_out_places_and_processes_alone():
    changes = ["data.workers=7", "data.synthesize.root=elsewhere", "start.pose2d=elsewhere"]
    assert settings(load_config("dhpe", changes)) == settings(load_config("dhpe"))
    assert settings(load_config("dhpe", ["data.synthesize.seed=7"])) != settings(load_config("dhpe"))
    assert settings(load_config("dhpe", ["start.pose2d=null"])) != settings(load_config("dhpe"))


def test_the_paper_s_setting():
    config = load_config("paper")
    assert (config.model.depth, config.model.image_size, config.model.iterations) == (50, 224, 3)
    assert (config.model.use_joints2d, config.model.use_refiner, config.model.joint0) == (True, True, "palm")
    assert config.optimisation.learning_rate == 1e-3
    assert (config.loss.gate.mode, config.loss.gate.tau_px) == ("mean_distance", 15.0)
    terms = ("articulation", "laplacian", "feature", "silhouette", "refine", "heatmap")
    assert [getattr(config.loss, term) for term in terms] == [1.0] * 6
    assert (config.loss.pose_prior, config.loss.shape_prior) == (0.0, 0.0)
    assert (config.self_supervision.start_epoch, config.self_supervision.instances_per_seed) == (20, 3)
    assert (config.refinement.iterations, config.refinement.optimizer, config.refinement.step_size) == (50, "gd", 1e-3)
    assert [source.format for source in config.data.train] == ["rhd", "stb"]
    # Zimmermann and Brox's rule, with whose results those on RHD are compared.
    rhd = [source for source in (*config.data.train, *config.data.validation) if source.format == "rhd"]
    assert [source.options for source in rhd] == [{"hand": "dominant_by_mask"}] * 2


def test_dhpe_has_the_data_and_the_networks_of_pose2d_from_which_it_starts():
    """The hands are drawn once; what differs is of no use to the other one."""
    first, more, second = (load_config(name) for name in ("pose2d", "gestures", "dhpe"))
    assert str(more.start.pose2d) == "runs/pose2d"
    assert str(second.start.pose2d) == "runs/gestures"
    assert first.data.train == more.data.train[:1]
    assert more.model == first.model
    # Crops beside the hand teach f_J2D alone; so many pixels are seen by F alone.
    crop = replace(first.data.crop, astray=second.data.crop.astray)
    assert second.data == first.data.model_copy(update={"crop": crop})
    assert second.model == replace(first.model, features_size=second.model.features_size)


def test_defaults_fill_what_a_file_leaves_out(file):
    config = load_config(file)
    assert config.model.depth == 50
    assert config.data.crop.center == 0.0


def test_overrides_are_yaml(file):
    config = load_config(
        file,
        ["optimisation.epochs=7", "refinement.weights={feature: 0.5}", "start.imagenet=weights.pth", "model.depth=18"],
    )
    assert config.optimisation.epochs == 7
    assert config.refinement.weights == EnergyWeights(feature=0.5)
    assert str(config.start.imagenet) == "weights.pth"
    assert config.model.depth == 18


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optimisation.epochs=0", "optimisation.epochs: .*greater than 0, got 0"),
        ("optimisation.epoch=3", "optimisation.epoch: .*not permitted, got 3"),
        ("optimisation.precision=float8", "optimisation.precision"),
        ("model={dept: 3}", r"model\.dept: Unexpected keyword argument, got 3"),
        ("data.crop={scale: 0.5}", "data.crop: .*scale: expected a factor >= 1"),
        ("refinement={weights: {joint: 1}}", r"refinement\.weights\.joint: "),
        ("refinement={optimizer: sgd}", "refinement: .*optimizer"),
        ("data.train=[]", "data.train"),
        ("data.train=[{", r"overrides \(--set\): 'data\.train=\[\{': '\[\{' is not YAML"),
        ("model.use_refiner=none", r"model\.use_refiner: .*boolean, got 'none'"),
        ("model.joint0=wirst", r"model\.joint0: .*'palm' or 'wrist', got 'wirst'"),
        ("model.silhouette_mode=hard", r"model\.silhouette_mode: .*'soft', got 'hard'"),
        ("model.depth=19", r"model\.depth: .*18, 34, 50, 101 or 152, got 19"),
        ("model.pose2d_width=wide", r"model\.pose2d_width: .*number, got 'wide'"),
        ("optimisation.learning_rate='1e-3'", r"optimisation\.learning_rate: .*number, got '1e-3'"),
        ("refinement.iterations=true", r"refinement\.iterations: .*integer, got True"),
        ("refinement.weights={joints: many}", r"refinement\.weights\.joints: .*number, got 'many'"),
        ("data.crop.occluder_size=[0.1, big]", r"data\.crop\.occluder_size\.1: .*number, got 'big'"),
        ("seed=one", "seed"),
        ("seed", "expected section.key=value"),
        ("seed.x=1", "'seed' is not a section"),
    ],
)
def test_refused_with_the_key_and_what_was_given(file, override, message):
    text = file.read_text() + "seed: 0\n"
    file.write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_config(file, [override])


@pytest.mark.parametrize(("text", "number"), [("1e-1", 0.1), ("5E-1", 0.5), ("1.e-1", 0.1), (".5e0", 0.5), ("1", 1.0)])
def test_numbers_with_an_exponent_need_no_point(file, tmp_path, text, number):
    """YAML 1.1 takes 1e-1 for text."""
    keys = ("model.pose2d_width", "refinement.step_size", "optimisation.learning_rate", "data.crop.noise")
    config = load_config(file, [f"{key}={text}" for key in keys])
    found = (config.model.pose2d_width, config.refinement.step_size, config.optimisation.learning_rate)
    assert (*found, config.data.crop.noise) == (number,) * 4
    save_config(config, tmp_path / "saved.yaml")
    assert load_config(tmp_path / "saved.yaml") == config


def test_text_that_looks_like_a_number_survives_being_saved(file, tmp_path):
    config = load_config(file, ["start.mano='1e-3'"])
    save_config(config, tmp_path / "saved.yaml")
    assert str(load_config(tmp_path / "saved.yaml").start.mano) == "1e-3"


def test_all_faults_are_told_at_once(file):
    with pytest.raises(ConfigError) as caught:
        load_config(file, ["optimisation.epochs=-1", "seed=x"])
    assert "optimisation.epochs" in str(caught.value)
    assert "seed" in str(caught.value)


@pytest.mark.parametrize("text", ["", "- a\n- b\n", "a: [1,\n", "\x00"])
def test_files_that_are_no_configuration(tmp_path, text):
    path = tmp_path / "broken.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"broken\.yaml"):
        load_config(path)


def test_files_that_are_not_there(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        load_config(tmp_path / "none.yaml")
    with pytest.raises(
        ConfigError, match=r"no shipped configuration.*dhpe, gestures, lifter, locator, paper, pose2d, synthetic, tiny"
    ):
        load_config("huge")


def test_data_sources_on_the_command_line():
    source = data_source("stb:data/STB:test")
    assert (source.format, str(source.root), source.split) == ("stb", "data/STB", "test")
    with pytest.raises(ConfigError, match="FORMAT:ROOT:SPLIT"):
        data_source("data/STB")
