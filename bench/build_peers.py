"""Compiles the CPU code of the peers that have some, for bench_raster.py to compare with.

    python bench/build_peers.py drtk CHECKOUT SITE
    python bench/build_peers.py pytorch3d CHECKOUT SITE
    PYTHONPATH=SITE pytest bench/bench_raster.py --benchmark-only

CHECKOUT is a clone of the peer's repository and stays as it is; SITE receives the package. To be run by the Python that
will import it, with torch, setuptools and ninja; DRTK's sources also include `cuda_runtime.h`, found on CPATH.

The kernels are the peer's own, compiled with its own flags. DRTK's own build needs CUDA and leaves OpenMP out, so that
its loops over faces and pixels take one thread; here they take all. PyTorch3D's own build would do; it compiles all
that the package has, and here only what the benchmarks call is.
"""

from __future__ import annotations

import argparse
import ast
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_py import build_py
from torch.utils.cpp_extension import BuildExtension, CppExtension

DRTK_OPS = {
    "rasterize": ("rasterize",),
    "render": ("render",),
    "edge_grad": ("edge_grad_estimator",),
    "interpolate": ("interpolate", "interpolation_matrix", "interpolation_normal_matrix_values"),
}
"""Extensions that have CPU kernels, and whose they are."""
DRTK_FLAGS = ["-std=c++17", "-Wall", "-O3", "--fast-math"]

PYTORCH3D_OPS = {
    "rasterize_meshes": "rasterize_meshes",
    "sigmoid_alpha_blend": "blending",
    "face_areas_normals": "face_areas_normals",
    "packed_to_padded_tensor": "packed_to_padded_tensor",
}
"""C++ files, and their folders, of mesh rasterization, silhouettes and `Meshes`."""
PYTORCH3D_BINDINGS = {
    "rasterize_meshes": "RasterizeMeshes",
    "rasterize_meshes_backward": "RasterizeMeshesBackward",
    "sigmoid_alpha_blend": "SigmoidAlphaBlend",
    "sigmoid_alpha_blend_backward": "SigmoidAlphaBlendBackward",
    "face_areas_normals_forward": "FaceAreasNormalsForward",
    "face_areas_normals_backward": "FaceAreasNormalsBackward",
    "packed_to_padded": "PackedToPadded",
    "padded_to_packed": "PaddedToPacked",
}

LEFT_OUT = {
    "drtk/__init__.py": ("filter2d", "grid_scatter", "mipmap_grid_sample", "msi"),
    "pytorch3d/renderer/__init__.py": ("points",),
}
"""What these import and is not compiled here."""


def drtk_extensions(_: Path) -> list[Extension]:
    """One for each op that runs on the CPU."""
    return [
        CppExtension(
            f"drtk.{op}_ext",
            [f"src/{op}/{op}_module.cpp", f"src/{op}/{op}_kernel_cpu.cpp"],
            include_dirs=[os.path.abspath("src/include")],
            # Each registers its CUDA kernels too: here these names are the CPU ones', and never asked for.
            define_macros=[(f"{f}_cuda{b}", f"{f}_cpu{b}") for f in functions for b in ("", "_backward")],
            extra_compile_args=[*DRTK_FLAGS, "-fopenmp"],
            extra_link_args=["-fopenmp"],
        )
        for op, functions in DRTK_OPS.items()
    ]


def pytorch3d_extensions(scratch: Path) -> list[Extension]:
    """Its one extension, with the functions that are called here."""
    sources = [f"pytorch3d/csrc/{folder}/{name}_cpu.cpp" for name, folder in PYTORCH3D_OPS.items()]
    headers = ["torch/extension.h", "utils/pytorch3d_cutils.h", *(f"{f}/{n}.h" for n, f in PYTORCH3D_OPS.items())]
    bindings = scratch / "bindings.cpp"
    bindings.write_text(
        "".join(f"#include <{header}>\n" for header in headers)
        + "PYBIND11_MODULE(TORCH_EXTENSION_NAME, module) {\n"
        + "".join(f'  module.def("{name}", &{function});\n' for name, function in PYTORCH3D_BINDINGS.items())
        + "}\n"
    )
    include = os.path.abspath("pytorch3d/csrc")
    args = ["-std=c++17"]
    return [CppExtension("pytorch3d._C", [*sources, str(bindings)], include_dirs=[include], extra_compile_args=args)]


class PartOfPackage(build_py):
    """Copies the package without the imports of what is left out."""

    def run(self) -> None:
        super().run()
        for name, modules in LEFT_OUT.items():
            path = Path(self.build_lib) / name
            if path.exists():
                tree = ast.parse(path.read_text())
                tree.body = [node for node in tree.body if getattr(node, "module", None) not in modules]
                path.write_text(ast.unparse(tree) + "\n")


EXTENSIONS: dict[str, Callable[[Path], list[Extension]]] = {"drtk": drtk_extensions, "pytorch3d": pytorch3d_extensions}


def build(peer: str, checkout: Path, site: Path) -> None:
    """Compiles a peer's checkout into a folder for PYTHONPATH."""
    site = site.resolve()
    os.chdir(checkout)
    with tempfile.TemporaryDirectory() as scratch:
        setup(
            name=peer,
            packages=find_packages(include=(peer, f"{peer}.*")),
            ext_modules=EXTENSIONS[peer](Path(scratch)),
            cmdclass={"build_ext": BuildExtension, "build_py": PartOfPackage},
            script_args=["build", "--build-lib", str(site), "--build-temp", scratch],
        )


def main() -> None:
    """Builds what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("peer", choices=EXTENSIONS)
    parser.add_argument("checkout", type=Path, help="a clone of the peer's repository")
    parser.add_argument("site", type=Path, help="the folder that receives the package")
    arguments = parser.parse_args()
    build(arguments.peer, arguments.checkout, arguments.site)


if __name__ == "__main__":
    main()
