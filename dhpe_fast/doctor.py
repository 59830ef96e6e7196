"""What runs here and whether it is right: versions, processors, kernels, weights, and each op against its twin.

``dhpe-fast doctor`` prints it; so does ``python -m dhpe_fast.doctor``, where the command line is not
installed.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import dhpe_fast

if TYPE_CHECKING:
    import torch

TOLERANCE = 1e-4
"""Largest accepted difference between an op and its twin in float32, by the largest value of the twin."""
EDGE_PIXELS = 0.002
"""Part of the pixels in which rasterizers may differ: centres that rounding moves across an edge."""

_IMAGE_SIZE = (48, 64)


@dataclass(frozen=True)
class Finding:
    """One line of the report."""

    section: str
    name: str
    value: str
    ok: bool = True
    """False where something is broken; what is merely absent is fine."""


def examine() -> list[Finding]:
    """Everything there is to report; never raises for a broken installation."""
    findings = list(_versions())
    try:
        findings += _machine()
        findings += _kernels()
        findings += _weights()
        findings += _self_checks()
    except Exception as error:
        findings.append(Finding("kernels", type(error).__name__, str(error), ok=False))
    return findings


def _versions() -> Iterator[Finding]:
    yield Finding("versions", "dhpe_fast", f"{dhpe_fast.__version__} in {Path(dhpe_fast.__file__).parent}")
    yield Finding("versions", "python", f"{platform.python_version()}, {platform.system()} {platform.machine()}")
    for package in ("torch", "numpy", "trimesh"):
        version = _version_of(package)
        yield Finding("versions", package, version or "missing", ok=version is not None)
    found = {name: _version_of(name) for name in ("opencv-python-headless", "opencv-python", "opencv-contrib-python")}
    opencv = [f"{version} ({name})" for name, version in found.items() if version]
    yield Finding("versions", "opencv", ", ".join(opencv) or "missing", ok=bool(opencv))
    mediapipe = _version_of("mediapipe")
    yield Finding("versions", "mediapipe", mediapipe or "not installed, an extra: pip install 'dhpe-fast[mediapipe]'")


def _machine() -> Iterator[Finding]:
    import torch

    yield Finding("machine", "processor", f"{cpu_name()}, {os.cpu_count()} logical cores")
    yield Finding("machine", "threads", f"{torch.get_num_threads()} (torch.set_num_threads changes it)")
    for index in range(torch.cuda.device_count()):
        major, minor = torch.cuda.get_device_capability(index)
        yield Finding("machine", f"cuda:{index}", f"{torch.cuda.get_device_name(index)}, sm_{major}{minor}")


def _kernels() -> Iterator[Finding]:
    import torch

    from dhpe_fast.ops import _library

    build, missing = _library.build, _library.cuda_missing_because
    yield Finding("kernels", "CPU", f"{build.cpu_isa()}, compiler {getattr(build, 'compiler', 'unknown')}")
    built = f"built for {build.cuda_archs}" if build.cuda_built else "not built"
    if missing:
        state = f"not loaded, {missing}"
    else:
        state = "loaded" if torch.cuda.is_available() else "loaded, but torch sees no device"
    yield Finding("kernels", "CUDA", f"{built}; {state}")
    for op in _op_names():
        keys = [k for k in ("CPU", "CUDA") if torch._C._dispatch_has_kernel_for_dispatch_key(f"dhpe_fast::{op}", k)]
        yield Finding("kernels", op, " and ".join(keys) or "none", ok="CPU" in keys)


def _weights() -> Iterator[Finding]:
    from dhpe_fast import pretrained

    for network in pretrained.describe():
        yield Finding("weights", network.name, network.text, ok=network.ok)


def _self_checks() -> Iterator[Finding]:
    import torch

    devices = ["cpu"]
    if torch.cuda.is_available() and torch._C._dispatch_has_kernel_for_dispatch_key("dhpe_fast::lbs", "CUDA"):
        devices.append("cuda")
    for device in devices:
        for name, check in (("lbs", _check_lbs), ("rasterize", _check_rasterize)):
            yield check(f"{name} on {device}", torch.device(device))
        for mode in ("nmr", "edge"):
            yield _check_silhouette(f"silhouette ({mode}) on {device}", torch.device(device), mode)


def _check_lbs(name: str, device: torch.device) -> Finding:
    import torch

    from dhpe_fast import ops, reference

    basis = _model(device).basis
    pose, betas = _random(4, 16, 3).to(device), _random(4, 10).to(device)
    return _compare(name, (pose, betas), lambda op, *x: torch.cat(op(*x, basis), dim=1), ops.lbs, reference.lbs)


def _check_silhouette(name: str, device: torch.device, mode: str) -> Finding:
    from dhpe_fast import ops, reference

    model = _model(device)
    return _compare(
        name,
        (_view(model),),
        lambda op, verts_px: op(verts_px, model.faces, _IMAGE_SIZE, mode=mode),
        ops.silhouette,
        reference.silhouette,
    )


def _check_rasterize(name: str, device: torch.device) -> Finding:
    from dhpe_fast import ops, reference

    model = _model(device)
    found, truth = (op(_view(model), model.faces, _IMAGE_SIZE) for op in (ops.rasterize, reference.rasterize))
    same = found.face_index == truth.face_index
    other = 1 - float(same.float().mean())
    covered = same & (truth.face_index >= 0)
    error = max(
        float((found.bary - truth.bary)[covered].abs().max()), _relative(found.depth[covered], truth.depth[covered])
    )
    value = f"largest error {error:.1e} (accepted {TOLERANCE:.0e}), {other:.2%} of the pixels see another face"
    return Finding("self-check", name, value, ok=error <= TOLERANCE and other <= EDGE_PIXELS)


def _compare(
    name: str, inputs: tuple[torch.Tensor, ...], run: Callable[..., torch.Tensor], op: Callable, twin: Callable
) -> Finding:
    """The result and the gradients of an op against those of its twin."""
    import torch

    results = []
    for function in (op, twin):
        leaves = [value.clone().requires_grad_() for value in inputs]
        result = run(function, *leaves)
        weights = torch.linspace(-1, 1, result.numel(), device=result.device).reshape(result.shape)
        gradients = torch.autograd.grad((result * weights).sum(), leaves)
        results.append((result.detach(), *gradients))
    forward, *backward = (_relative(found, truth) for found, truth in zip(*results, strict=True))
    value = f"largest error {forward:.1e}, of the gradient {max(backward):.1e} (accepted {TOLERANCE:.0e})"
    return Finding("self-check", name, value, ok=max(forward, *backward) <= TOLERANCE)


def _relative(found: torch.Tensor, truth: torch.Tensor) -> float:
    return float((found - truth).abs().max() / truth.abs().max().clamp(min=1e-12))


def _model(device: torch.device):
    from dhpe_fast.hand import HandModel

    return HandModel.default().to(device)


def _view(model) -> torch.Tensor:
    """(1, 778, 3): the back of the rest hand, filling most of the image."""
    import torch

    verts_m = model.v_template
    height, width = _IMAGE_SIZE
    x, depth, y = (verts_m - verts_m.mean(0)).unbind(1)
    return torch.stack([320 * x + width / 2, 320 * y + height / 2, depth], dim=1)[None]


def _random(*shape: int) -> torch.Tensor:
    import torch

    return 0.3 * torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def _op_names() -> list[str]:
    import torch

    names = (name.split("::")[1] for name in torch._C._dispatch_get_all_op_names() if name.startswith("dhpe_fast::"))
    return sorted(name for name in names if not name.startswith("_"))


def _version_of(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def cpu_name() -> str:
    """What the processor calls itself."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(errors="replace").splitlines() if info.is_file() else []
    named = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or "unknown processor"


def report(findings: list[Finding]) -> str:
    """The findings as text, a block for each section."""
    width = max(len(finding.name) for finding in findings)
    lines: list[str] = []
    for index, finding in enumerate(findings):
        if index == 0 or finding.section != findings[index - 1].section:
            lines += [*([""] if lines else []), finding.section]
        mark = " " if finding.ok else "!"
        lines.append(f"{mark} {finding.name:<{width}}  {finding.value}")
    broken = sum(not finding.ok for finding in findings)
    lines += ["", f"{broken} of these are broken, marked with !" if broken else "All is well."]
    return "\n".join(lines)


def main() -> int:
    """Prints the report; 1 if something is broken."""
    findings = examine()
    print(report(findings))
    return int(any(not finding.ok for finding in findings))


if __name__ == "__main__":
    sys.exit(main())
