"""The networks that ship with the package: read when they are first asked for, checked, and kept.

``dhpe_fast/weights`` holds a file for each network, and ``manifest.json``, which has their checksums and says how they
were made. ``import dhpe_fast`` opens none of them. A file is what ``torch.save`` makes of ``{"spec": ..., "state":
...}``: the options by which the network is built, and its tensors, matrices and kernels in half precision. Networks
compute in float32. ``dhpe-fast export`` makes such files of training runs; of a folder of your own,
``WeightsFolder(folder).network("dhpe")`` reads them.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dhpe_fast.torch_settings import plain_torch

if TYPE_CHECKING:
    from dhpe_fast.nets import DHPE
    from dhpe_fast.nets.lifter import Lifter
    from dhpe_fast.nets.locator import Locator

MANIFEST = "manifest.json"
NAMES = ("dhpe", "lifter", "locator")
HALF_ROUNDING = 2.0**-11
"""Relative error of a number in half precision that neither overflows nor underflows."""

SHOWN_FIGURES = 3
"""Of the accuracy in the manifest, in a description."""

REINSTALL = (
    "the installation is incomplete or damaged, run `pip install --force-reinstall --no-deps .` in a checkout of it"
)
"""What helps where the package's own weights are missing or damaged."""
EXPORT_AGAIN = "write the network with `dhpe-fast export` again"
"""What helps in a folder of your own."""


class WeightsError(ImportError):
    """Weights are missing or damaged; the message names the file and says what to do."""


def dhpe(device: torch.device | str = "cpu") -> DHPE:
    """The package's DHPE: a crop of a right hand to 2D joints, mesh and mask.

    As all networks of this module it is in evaluation mode, without gradients, float32, made once for each device and
    shared by all who ask: `copy.deepcopy` gives one to change.

    Raises:
        WeightsError: if its file, or the manifest, is missing or damaged.
    """
    return shipped.network("dhpe", device)


def lifter(device: torch.device | str = "cpu") -> Lifter:
    """The package's lifter: 2D joints of a right hand to its parameters; see :func:`dhpe`.

    Raises:
        WeightsError: if its file, or the manifest, is missing or damaged.
    """
    return shipped.network("lifter", device)


def locator(device: torch.device | str = "cpu") -> Locator:
    """The package's locator: a photograph to the boxes and sides of its hands; see :func:`dhpe`.

    Raises:
        WeightsError: if its file, or the manifest, is missing or damaged.
    """
    return shipped.network("locator", device)


def available(name: str) -> bool:
    """Whether the package has this network, one of ``NAMES``: its file may still prove to be missing or damaged."""
    return shipped.promises(name)


def describe() -> list[Description]:
    """What ships, and whether it is whole."""
    return shipped.describe()


@dataclass(frozen=True)
class Description:
    """A network in one line."""

    name: str
    text: str
    """Its size and accuracy, or what is wrong."""
    ok: bool


class WeightsFolder:
    """A folder of networks with their manifest; what was read once is kept.

    Args:
        folder: where ``dhpe-fast export`` has written them.
        remedy: what an error says to do where a file is missing or damaged.
    """

    def __init__(self, folder: str | os.PathLike[str], *, remedy: str = EXPORT_AGAIN) -> None:
        self.folder = Path(folder)
        self._remedy = remedy
        self._lock = threading.RLock()
        self._made: dict[tuple[str, torch.device], nn.Module] = {}

    def has(self, name: str) -> bool:
        """Whether the network's file is there."""
        return (self.folder / f"{name}.pt").is_file()

    def promises(self, name: str) -> bool:
        """Whether the manifest names the network; one that is damaged may do so, one that is missing does not."""
        with self._lock:
            if any(made == name for made, _ in self._made):
                return True
        try:
            return f"{name}.pt" in self.manifest()
        except WeightsError:
            return (self.folder / MANIFEST).exists()

    def network(self, name: str, device: torch.device | str = "cpu") -> nn.Module:
        """The network on the device; see :func:`dhpe`.

        Raises:
            WeightsError: if its file, or the manifest, is missing or damaged. ValueError: if the name is unknown.
        """
        if name not in NAMES:
            raise ValueError(f"name: expected one of {', '.join(NAMES)}, got {name!r}")
        place = torch.device(device)
        with self._lock:  # who comes while it is read waits for it
            if (name, place) not in self._made:
                data = self._checked_bytes(name)
                # Whatever the caller has set, now or later: the network serves all.
                with plain_torch(), torch.random.fork_rng(devices=[]):
                    network = self._built(name, data)
                    self._made[name, place] = network.to(place)
            return self._made[name, place]

    def manifest(self) -> dict[str, dict[str, Any]]:
        """What is known of each file, by its name.

        Raises:
            WeightsError: if it is missing or damaged.
        """
        file = self.folder / MANIFEST
        try:
            manifest = json.loads(file.read_text())
        except OSError as error:
            raise WeightsError(f"{file}: cannot be read ({error.strerror}); {self._remedy}") from None
        except ValueError as error:
            raise WeightsError(f"{file}: is no JSON ({error}); {self._remedy}") from None
        if not isinstance(manifest, dict) or not all(isinstance(entry, dict) for entry in manifest.values()):
            raise WeightsError(f"{file}: is no manifest of weights; {self._remedy}")
        return manifest

    def describe(self) -> list[Description]:
        """A line for each network, checked by its checksum; nothing is loaded."""
        lines = []
        for name in NAMES:
            if not self.has(name) and not self.promises(name):
                lines.append(Description(name, "not part of this build", ok=True))
                continue
            try:
                size = len(self._checked_bytes(name))
            except WeightsError as error:
                lines.append(Description(name, str(error), ok=False))
                continue
            accuracy = list((self.manifest()[f"{name}.pt"].get("accuracy") or {}).items())
            figures = "".join(f"; {what}: {_figure(value)}" for what, value in accuracy[:SHOWN_FIGURES])
            lines.append(Description(name, f"{size / 1e6:.1f} MB{figures}", ok=True))
        return lines

    def _checked_bytes(self, name: str) -> bytes:
        """The file of a network, if it is the one of the manifest."""
        file = self.folder / f"{name}.pt"
        entry = self.manifest().get(file.name, {})
        if not isinstance(entry.get("bytes"), int) or not isinstance(entry.get("sha256"), str):
            raise WeightsError(f"{file}: {MANIFEST} has no checksum of it; {self._remedy}")
        try:
            data = file.read_bytes()
        except OSError as error:
            raise WeightsError(f"{file}: cannot be read ({error.strerror}); {self._remedy}") from None
        if len(data) != entry["bytes"]:
            raise WeightsError(f"{file}: has {len(data)} bytes instead of {entry['bytes']}; {self._remedy}")
        checksum = hashlib.sha256(data).hexdigest()
        if checksum != entry["sha256"]:
            raise WeightsError(f"{file}: its SHA-256 is {checksum}, expected {entry['sha256']}; {self._remedy}")
        return data

    def _built(self, name: str, data: bytes) -> nn.Module:
        try:
            return unpacked(lambda spec: blank(name, spec), data)
        except ValueError as error:
            raise WeightsError(f"{self.folder / f'{name}.pt'}: {error}; {self._remedy}") from None


shipped = WeightsFolder(Path(__file__).parent / "weights", remedy=REINSTALL)
"""The networks of this installation."""


def blank(name: str, spec: Mapping[str, Any]) -> nn.Module:
    """A network of this name and these options, with random weights.

    Raises:
        ValueError: if the name is none of ``NAMES``. TypeError, ValueError: if the options are not the network's.
    """
    if name == "dhpe":
        from dhpe_fast.nets.dhpe import DHPE

        return DHPE.from_spec(spec)
    if name == "lifter":
        from dhpe_fast.nets.lifter import Lifter, LifterSpec

        return Lifter(LifterSpec(**spec))
    if name == "locator":
        from dhpe_fast.nets.locator import Locator

        return Locator.from_spec(spec)
    raise ValueError(f"name: expected one of {', '.join(NAMES)}, got {name!r}")


def packed(network: nn.Module, spec: Mapping[str, Any]) -> bytes:
    """The file of a network: its options, plain numbers and strings, and its tensors.

    Matrices and kernels go in half precision unless that would cost a tensor more than its rounding, by overflow or as
    all of it is tiny. Vectors stay float32: they are a hundredth of the bytes, and among them are the variances of
    batch normalisation, which may have any magnitude.
    """
    state = {key: _halved(value.detach().cpu().contiguous()) for key, value in network.state_dict().items()}
    stream = io.BytesIO()
    torch.save({"spec": dict(spec), "state": state}, stream)
    return stream.getvalue()


def unpacked(build: Callable[[Mapping[str, Any]], nn.Module], data: bytes) -> nn.Module:
    """The network of a file, float32, on the CPU, in evaluation mode and without gradients.

    Args:
        build: makes the network of a spec.
        data: what ``packed`` gave.

    Raises:
        ValueError: if the data are no such network.
    """
    try:
        content = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # the unpickler raises whatever the damage leads it to
        raise ValueError(f"cannot be decoded ({_first_line(error)})") from None
    if not isinstance(content, dict) or not all(isinstance(content.get(part), dict) for part in ("spec", "state")):
        raise ValueError("holds no network")
    if not all(isinstance(key, str) and isinstance(value, Tensor) for key, value in content["state"].items()):
        raise ValueError("holds no network: its state is not of tensors by name")
    try:
        network = build(content["spec"]).float()
    except (TypeError, ValueError) as error:
        raise ValueError(f"is of another version, its spec is not taken ({error})") from None
    expected, state = network.state_dict(), content["state"]
    differing = sorted(expected.keys() ^ state.keys()) + sorted(
        key for key in expected.keys() & state.keys() if expected[key].shape != state[key].shape
    )
    if differing:
        raise ValueError(f"is of another version: {len(differing)} tensors differ, the first {differing[:3]}")
    network.load_state_dict(state)  # to the type of what it replaces
    return network.eval().requires_grad_(False)


def _halved(tensor: Tensor) -> Tensor:
    if tensor.dtype not in (torch.float32, torch.float64) or tensor.dim() < 2 or tensor.numel() == 0:
        return tensor
    half = tensor.half()
    worst = (half.to(tensor.dtype) - tensor).abs().max()  # not a number, where both are infinite
    return half if bool(worst <= HALF_ROUNDING * tensor.abs().max()) else tensor


def _figure(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
