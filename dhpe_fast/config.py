"""What a training run is made of: typed, checked, and saved with the run.

A configuration is a YAML file; ``load_config`` also takes the name of one that ships with the package (``paper``,
``synthetic``, ``tiny``). Unknown keys and wrong types are errors that name the key.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from pydantic import ValidationError as _ValidationError

from dhpe_fast.atomic_write import write_whole
from dhpe_fast.data import CropAugmentation
from dhpe_fast.data.lifting import HandSampling
from dhpe_fast.data.synthetic import SPAN
from dhpe_fast.losses import CONSTANT_LAMBDA
from dhpe_fast.nets.dhpe import DHPESpec
from dhpe_fast.nets.lifter import LifterSpec
from dhpe_fast.refinement import RefineOptions


class ConfigError(ValueError):
    """A configuration that cannot be read or is not one."""


class _Section(BaseModel):
    # Dataclasses of other rooms which are fields are checked by these rules, too.
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class DataSource(_Section):
    """A data set on disk, see ``dhpe_fast.data.open_dataset``."""

    format: str
    """rhd, stb, dexter_object or freihand."""
    root: Path
    split: str
    options: dict[str, Any] = {}
    """Keyword arguments of the format's reader."""


class Synthesis(_Section):
    """Data which the run makes itself, in the layout of RHD, where `root` does not exist yet."""

    root: Path
    n_training: PositiveInt
    n_evaluation: PositiveInt
    seed: int = 0
    size_px: PositiveInt = 320
    max_angle_deg: PositiveFloat = 180.0
    """How far hands are turned away from an upright one, seen from the palm or the back; 180 is any orientation."""
    span: tuple[PositiveFloat, PositiveFloat] = SPAN
    """Smallest and largest longer side of a hand's bounding box, by the side of the picture."""
    backgrounds: Path | None = None
    """Folder of photographs, or "scikit-image" for those in that package; None draws all backgrounds."""
    gestures: float = Field(default=0.0, ge=0, le=1)
    """Share of the hands near one of ``anatomy.named_poses``: flat, spread, a fist, pointing, a pinch and others."""
    held: float = Field(default=0.0, ge=0, le=1)
    """Share of the pictures in which a hand holds something; the other hand, where there are two, never does."""


class Data(_Section):
    """Where samples come from and how they are brought to the networks."""

    train: tuple[DataSource, ...] = Field(min_length=1)
    validation: tuple[DataSource, ...] = Field(min_length=1)
    synthesize: Synthesis | None = None
    crop: CropAugmentation = CropAugmentation()
    """Random changes of the training crops; none is the paper's crop."""
    workers: NonNegativeInt = 1
    """Processes that decode and crop, for each training process."""


class Start(_Section):
    """What a run starts from."""

    mano: Path | None = None
    """A licensed MANO_RIGHT.pkl; None is the default hand."""
    imagenet: Path | None = None
    """ImageNet weights of the feature extractor, as torchvision saves them; None is random."""
    posenet: Path | None = None
    """Weights of the 2D pose network, as Zimmermann and Brox publish them; None is random."""
    pose2d: Path | None = None
    """A run of this package whose 2D pose network is taken over, in its last state."""


class Gate(_Section):
    """Eq. 10: when the silhouette has its say."""

    mode: Literal["mean_distance", "squared_norm", "constant"] = "mean_distance"
    """See ``losses.silhouette_gate``."""
    tau_px: PositiveFloat = 15.0
    """Pixels of a 224 crop; of other crops in proportion."""
    constant: NonNegativeFloat = CONSTANT_LAMBDA


class Loss(_Section):
    """Weights of Eq. 7, whose terms the paper weights equally, and what its norms sum over."""

    articulation: NonNegativeFloat = 1.0
    laplacian: NonNegativeFloat = 1.0
    feature: NonNegativeFloat = 1.0
    silhouette: NonNegativeFloat = 1.0
    refine: NonNegativeFloat = 1.0
    heatmap_measure: Literal["squared", "entropy"] = "squared"
    """How heat maps are compared with their targets: by Eq. 3, or for a "unet" by ``losses.heatmap_entropy_loss``."""
    other_side: float = Field(0.0, ge=0, lt=1)
    """Share of each batch that f_J2D, trained alone, sees mirrored, as hands of the other side: there it is to find no
    joint, so that its maps tell the side of a hand."""
    heatmap: NonNegativeFloat = 1.0
    """Of Eq. 3, which trains the 2D pose network alone; 0 leaves that as it is. Where all other weights are 0, nothing
    else is trained, and nothing else runs."""
    seen_silhouette: NonNegativeFloat = 0.0
    """Where f_J2D is trained alone: of the cross-entropy between the silhouette it sees and the mask."""
    pose_prior: NonNegativeFloat = 0.0
    """Of the squared distance to natural poses; not in the paper."""
    shape_prior: NonNegativeFloat = 0.0
    """Of the squared norm of the shape coefficients; not in the paper."""
    image_reduction: Literal["sum", "mean"] = "mean"
    """Over the pixels of Eq. 9 and the maps of Eq. 3: the printed norm sums."""
    feature_reduction: Literal["sum", "mean"] = "mean"
    """Over the components of F in Eq. 2: the printed norm sums."""
    gate: Gate = Gate()

    @property
    def heatmap_alone(self) -> bool:
        """Whether f_J2D is all that is trained."""
        others = (self.articulation, self.laplacian, self.feature, self.silhouette, self.refine)
        return self.heatmap > 0 and not any(others)


class Optimisation(_Section):
    """How the weights are found."""

    epochs: PositiveInt
    batch_size: PositiveInt
    """Of all processes together."""
    learning_rate: PositiveFloat = 1e-3
    schedule: Literal["constant", "cosine"] = "constant"
    warmup_steps: NonNegativeInt = 0
    gradient_clip: PositiveFloat | None = 5.0
    """Largest norm of the gradient, of the mesh networks and of the 2D pose network, each."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of the networks; hands are posed and drawn in float32."""
    max_skipped_steps: PositiveInt = 10
    """So many steps running may have a loss or gradient that is not finite and be left out; then the run stops."""


class SelfSupervision(_Section):
    """New instances from predicted meshes (Sec. 3.5)."""

    start_epoch: NonNegativeInt = 20
    instances_per_seed: NonNegativeInt = 3
    """0 switches it off."""
    max_instances: PositiveInt = 100_000
    """The newest are kept."""
    backgrounds: Path | None = None
    """Folder of images; None draws backgrounds."""


class StreamOptimisation(_Section):
    """How the weights of a network are found that sees every example once; the rate falls to zero by a cosine."""

    steps: PositiveInt
    cycles: PositiveInt = 1
    """So many times, each in an equal part of the steps. The first steps are those of a run of fewer cycles."""
    batch_size: PositiveInt
    learning_rate: PositiveFloat = 1e-3
    warmup_steps: NonNegativeInt = 0
    weight_decay: NonNegativeFloat = 0.0
    """As in AdamW: not part of the gradient."""
    gradient_clip: PositiveFloat | None = 5.0
    """Largest norm of the gradient."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of the network; its losses are told by the objective."""
    max_skipped_steps: PositiveInt = 10
    """So many steps running may have a loss or gradient that is not finite and be left out; then the run stops."""


class StreamConfig(_Section):
    """One run of a network that is trained on an endless stream of examples; subclasses say which."""

    network: str
    seed: int = 0
    optimisation: StreamOptimisation
    checkpoint_every: PositiveInt = 1000
    """Steps between checkpoints; there is one after the last step, too."""
    log_every: PositiveInt = 50
    """Steps between lines of the log."""
    validate_every: PositiveInt = 1000
    """Steps between measurements on examples that are not trained on; there is one after the last step, too."""


class LifterLoss(_Section):
    """Weights of what is minimised for the hypothesis that is closest, and a little for the others."""

    joints3d: NonNegativeFloat = 1.0
    """Mean distance of the joints from the root on, decimetres."""
    joints2d: NonNegativeFloat = 1.0
    """Mean distance in the image, placed there by least squares, crop units."""
    pose: NonNegativeFloat = 0.3
    """Mean absolute difference, radians."""
    betas: NonNegativeFloat = 0.03
    """Mean squared difference."""
    score: NonNegativeFloat = 0.03
    """Cross entropy of which hypothesis is the closest."""
    noise: NonNegativeFloat = 0.05
    """Mean absolute difference of the logarithms."""
    relaxation: float = Field(default=0.05, ge=0.0, lt=1.0)
    """Share of the loss that all the other hypotheses have: none starves."""


class LifterConfig(StreamConfig):
    """One run of the network from 2D joints to hands, :class:`dhpe_fast.nets.lifter.Lifter`."""

    network: Literal["lifter"]
    data: HandSampling = HandSampling()
    model: LifterSpec = LifterSpec()
    loss: LifterLoss = LifterLoss()
    validation_hands: PositiveInt = 1000
    """Drawn once, for each level of noise."""


class WholePictureData(_Section):
    """Pictures that are composed while the network is trained, of layers which the run draws itself, once."""

    root: Path
    """Folder of the layers; drawn where they are not there."""
    n_training: PositiveInt
    """Layers; a sixth of them are no hands."""
    n_evaluation: PositiveInt
    n_measured: PositiveInt = 1000
    """Pictures of evaluation layers that are measured."""
    seed: int = 0
    """Of the layers."""
    size_px: PositiveInt = 160
    backgrounds: Path | None = None
    """Folder of photographs, or "scikit-image" for those in that package; None draws all backgrounds."""
    workers: NonNegativeInt = 1
    """Processes that compose pictures."""


class LocatorConfig(StreamConfig):
    """One run of the network that finds hands in photographs, :class:`dhpe_fast.nets.locator.Locator`."""

    network: Literal["locator"]
    data: WholePictureData
    width: PositiveInt = 32
    """See :class:`~dhpe_fast.nets.locator.Locator`."""


NETWORKS: dict[str, type[StreamConfig]] = {"lifter": LifterConfig, "locator": LocatorConfig}
"""What stands beside the key `network` -> the kind of configuration. Without that key it is a TrainConfig."""


class TrainConfig(_Section):
    """One run of the paper's networks."""

    seed: int = 0
    data: Data
    model: DHPESpec = DHPESpec()
    """The networks; the defaults are the paper's."""
    start: Start = Start()
    loss: Loss = Loss()
    optimisation: Optimisation
    self_supervision: SelfSupervision = SelfSupervision()
    refinement: RefineOptions = RefineOptions()
    """Eq. 11, at evaluation."""
    checkpoint_every: PositiveInt = 500
    """Steps between checkpoints; there is one after every epoch, too."""
    picture_every: PositiveInt = 500
    """Steps between picture grids."""


def shipped_configs() -> tuple[str, ...]:
    """Names of the configurations in the package."""
    folder = resources.files("dhpe_fast") / "configs"
    return tuple(sorted(Path(item.name).stem for item in folder.iterdir() if item.name.endswith(".yaml")))


def load_config(source: str | os.PathLike[str], overrides: Iterable[str] = ()) -> TrainConfig | StreamConfig:
    """Reads a configuration: of the paper's networks, or of the one that its key `network` names.

    Args:
        source: a YAML file, or the name of a shipped configuration.
        overrides: ``section.key=value`` changes, the value as in YAML.

    Raises:
        ConfigError: if the file is missing or no YAML, or a key or value is not accepted; it names all of them.
    """
    tree = _read_yaml(source)
    for override in overrides:
        _override(tree, override)
    kind = _kind_of(tree, source)
    try:
        # As JSON, since strict checks of that take lists for tuples and text for paths, but no text for numbers.
        return kind.model_validate_json(json.dumps(tree, default=str), strict=True)
    except _ValidationError as error:
        lines = [
            f"  {'.'.join(map(str, item['loc']))}: {item['msg'].removeprefix('Value error, ')}, got {item['input']!r}"
            for item in error.errors()
        ]
        raise ConfigError(f"{os.fspath(source)} is no training configuration:\n" + "\n".join(lines)) from None


def data_source(text: str, options: dict[str, Any] | None = None) -> DataSource:
    """A data set from ``FORMAT:ROOT:SPLIT``, and options of its reader.

    Raises:
        ConfigError: if the text has other than three parts.
    """
    parts = text.split(":")
    if len(parts) != 3 or not all(parts):
        raise ConfigError(f"data: expected FORMAT:ROOT:SPLIT, as rhd:data/RHD_published_v2:evaluation, got {text!r}")
    return DataSource(format=parts[0], root=Path(parts[1]), split=parts[2], options=options or {})


def save_config(config: TrainConfig | StreamConfig, path: str | os.PathLike[str]) -> None:
    """Writes a configuration, with every default spelled out; ``load_config`` reads it back."""
    text = yaml.dump(config.model_dump(mode="json"), Dumper=_Dumper, sort_keys=False)
    write_whole(Path(path), text.encode())


class _Loader(yaml.SafeLoader):
    """Reads 1e-3 as a number, as YAML 1.2 does; to YAML 1.1 it is text, for want of a point."""


class _Dumper(yaml.SafeDumper):
    """Puts such text into quotes."""


for _kind in (_Loader, _Dumper):
    _exponent = re.compile(r"[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)[eE][-+]?[0-9]+$")
    _kind.add_implicit_resolver("tag:yaml.org,2002:float", _exponent, list("-+.0123456789"))


def _read_yaml(source: str | os.PathLike[str]) -> dict[str, Any]:
    path = Path(source)
    if path.suffix not in (".yaml", ".yml") and not path.exists():
        if str(source) not in shipped_configs():
            raise ConfigError(
                f"config: there is no file {str(path)!r}, and no shipped configuration of this name; "
                f"there are {', '.join(shipped_configs())}"
            )
        text = (resources.files("dhpe_fast") / "configs" / f"{source}.yaml").read_text()
    else:
        try:
            text = path.read_text()
        except OSError as error:
            raise ConfigError(f"config: {str(path)!r} cannot be read: {error.strerror}") from None
    try:
        tree = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise ConfigError(f"config: {str(path)!r} is not YAML: {error}") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"config: {str(path)!r} holds {type(tree).__name__}, expected sections with keys")
    return tree


def _kind_of(tree: dict[str, Any], source: str | os.PathLike[str]) -> type[TrainConfig | StreamConfig]:
    if "network" not in tree:
        return TrainConfig
    try:
        return NETWORKS[tree["network"]]
    except (KeyError, TypeError):
        known = ", ".join(NETWORKS) or "nothing"
        raise ConfigError(
            f"{os.fspath(source)} is no training configuration:\n  network: expected {known}, or no such key for the "
            f"networks of the paper, got {tree['network']!r}"
        ) from None


def _override(tree: dict[str, Any], override: str) -> None:
    key, equals, value = override.partition("=")
    *sections, name = key.strip().split(".")
    if not equals or not name:
        raise ConfigError(f"overrides (--set): {override!r}: expected section.key=value")
    for section in sections:
        tree = tree.setdefault(section, {})
        if not isinstance(tree, dict):
            raise ConfigError(f"overrides (--set): {override!r}: {section!r} is not a section")
    try:
        tree[name] = yaml.load(value, Loader=_Loader)
    except yaml.YAMLError as error:
        raise ConfigError(f"overrides (--set): {override!r}: {value!r} is not YAML: {error}") from None
