"""A random hand model with MANO's sizes, tree and topology, and pickles of it as Python 2 and chumpy wrote
them.

It does not look like a hand. Its surface is a long tube, open at the wrist and capped at the other end, and
its joints lie as MANO's do (fingers to -x, thumb side to +z), so that everything that reads a model can be
tested without one.
"""

from __future__ import annotations

import io
import pickle
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import numpy as np
from scipy.spatial.transform import Rotation

N_VERTS, N_FACES, RING = 778, 1538, 16
PARENTS = [-1, 0, 1, 2, 0, 4, 5, 0, 7, 8, 0, 10, 11, 0, 13, 14]

# Metres, right hand: wrist, index, middle, little, ring, thumb, each from base to tip.
JOINTS_M = np.array(
    [[0.095, 0.006, 0.006]]
    + [[0.010 - 0.030 * i, 0.002, 0.028 + 0.002 * i] for i in range(3)]
    + [[0.005 - 0.032 * i, 0.004, 0.004] for i in range(3)]
    + [[0.025 - 0.022 * i, -0.004, -0.036 - 0.003 * i] for i in range(3)]
    + [[0.012 - 0.029 * i, 0.002, -0.018 - 0.001 * i] for i in range(3)]
    + [[0.070 - 0.025 * i, -0.010, 0.035 + 0.018 * i] for i in range(3)]
)


def tube_faces() -> np.ndarray:
    """(1538, 3): 48 loops of 16 vertices and a cap of ten; outward for loops that advance to -x."""
    faces = []
    for loop in range(47):
        for column in range(RING):
            a, b = loop * RING + column, loop * RING + (column + 1) % RING
            faces += [(a, b, b + RING), (a, b + RING, a + RING)]
    last = [47 * RING + column for column in range(RING)]
    fan = [(last[column], last[(column + 1) % RING], 768) for column in range(RING)]
    for centre in range(769, N_VERTS):  # a vertex inside a triangle makes three of it
        a, b, c = fan.pop(0)
        fan += [(a, b, centre), (b, c, centre), (c, a, centre)]
    return np.array(faces + fan)


def tube_verts_m() -> np.ndarray:
    """(778, 3) metres: 190 mm long, about 80 mm wide (z) and 30 mm thick (y)."""
    verts = np.zeros((N_VERTS, 3))
    angle = 2 * np.pi * np.arange(RING) / RING
    for loop in range(48):
        part = verts[loop * RING : (loop + 1) * RING]
        part[:, 0] = 0.095 - 0.190 * loop / 47
        part[:, 1], part[:, 2] = 0.015 * np.sin(angle), 0.040 * np.cos(angle)
    verts[768] = (-0.100, 0.0, 0.0)
    for face in tube_faces()[47 * 32 :]:  # inner vertices of the cap sit at the middle of their corners
        inner = [v for v in face if v > 768]
        for vertex in inner:
            neighbours = [v for f in tube_faces()[47 * 32 :] if vertex in f for v in f if v < vertex]
            verts[vertex] = verts[neighbours].mean(0)
    return verts


def synthetic_mano(seed: int = 0) -> dict[str, Any]:
    """A right-hand model: float64 arrays with MANO's keys, and what an npz of this package adds."""
    rng = np.random.default_rng(seed)
    verts_m = tube_verts_m()
    # Each joint is a combination of all vertices that gives its place exactly and whose weights sum to one.
    system = np.concatenate([verts_m.T, np.ones((1, N_VERTS))])
    target = np.concatenate([JOINTS_M.T, np.ones((1, 16))])
    regressor = (np.linalg.pinv(system) @ target).T
    distance = np.linalg.norm(verts_m[:, None] - JOINTS_M, axis=-1)
    weights = 1 / (distance + 0.005) ** 2 * (distance <= np.sort(distance, axis=1)[:, 3:4])
    weights /= weights.sum(1, keepdims=True)
    shapedirs = rng.normal(0, 3e-4, (N_VERTS, 3, 10))
    shapedirs[:, :, 0] = 0.05 * verts_m  # the first direction is size, as in MANO
    components, _ = np.linalg.qr(rng.normal(size=(45, 45)))
    angle = np.arange(RING) / RING
    uv = np.concatenate(
        [np.stack([angle, np.full(RING, loop / 48)], 1) for loop in range(48)] + [np.full((10, 2), 0.99)]
    )
    return {
        "v_template": verts_m,
        "f": tube_faces(),
        "shapedirs": shapedirs,
        "posedirs": rng.normal(0, 5e-4, (N_VERTS, 3, 135)),
        "J_regressor": regressor,
        "weights": weights,
        "kintree_table": np.array([PARENTS, list(range(16))]),
        "hands_components": components.T,
        "hands_mean": rng.normal(0, 0.2, 45),
        "hands_coeffs": rng.normal(size=(20, 45)),
        "tip_ids": np.array([600, 700, 720, 740, 760]),
        "uv": uv,
        "uv_faces": tube_faces(),
        "side": "right",
        "name": "synthetic",
        "licence": "none",
    }


class FakeCsc:
    """Stands for scipy.sparse.csc_matrix when a pickle is written; its attributes are SciPy's."""

    def __init__(self, dense: np.ndarray) -> None:
        columns = [np.flatnonzero(dense[:, column]) for column in range(dense.shape[1])]
        self._shape = dense.shape
        self.maxprint = 50
        self.indices = np.concatenate(columns).astype(np.int32)
        self.indptr = np.concatenate([[0], np.cumsum([len(column) for column in columns])]).astype(np.int32)
        self.data = np.concatenate([dense[rows, column] for column, rows in enumerate(columns)])


class FakeCh:
    """Stands for chumpy.ch.Ch."""

    def __init__(self, **attributes: Any) -> None:
        self.__dict__.update(attributes)


class FakeSelect(FakeCh):
    """Stands for chumpy.reordering.Select."""


@contextmanager
def _importable(classes: dict[tuple[str, str], type]) -> Iterator[None]:
    """Makes classes importable under module paths while they are pickled, then puts everything back."""
    saved_modules = dict(sys.modules)
    saved_names = {cls: (cls.__module__, cls.__qualname__, cls.__name__) for cls in classes.values()}
    try:
        for (module, name), cls in classes.items():
            parts = module.split(".")
            for depth in range(1, len(parts) + 1):
                sys.modules[".".join(parts[:depth])] = types.ModuleType(".".join(parts[:depth]))
            cls.__module__, cls.__qualname__, cls.__name__ = module, name, name
        for (module, name), cls in classes.items():
            setattr(sys.modules[module], name, cls)
        yield
    finally:
        sys.modules.clear()
        sys.modules.update(saved_modules)
        for cls, (module, qualname, name) in saved_names.items():
            cls.__module__, cls.__qualname__, cls.__name__ = module, qualname, name


def mano_pickle(
    arrays: dict[str, Any],
    *,
    protocol: int = 2,
    select_module: str = "chumpy.reordering",
    csc_module: str = "scipy.sparse.csc",
    python2: bool = True,
) -> bytes:
    """The bytes of a MANO file: chumpy `shapedirs`, sparse `J_regressor`, root parent 2**32 - 1.

    `python2` writes raw array bytes as Python-2 strings and NumPy's old module paths, as the released files
    do.
    """
    shapedirs = arrays["shapedirs"]
    # The released basis is a selection of the first ten of more directions.
    wide = np.concatenate([shapedirs, np.zeros((*shapedirs.shape[:2], 2))], axis=2)
    source = FakeCh(x=wide, _dirty_vars=set(), _itr=None)
    index = np.arange(wide.size).reshape(wide.shape)[:, :, : shapedirs.shape[2]].ravel()
    content = {key: value for key, value in arrays.items() if isinstance(value, np.ndarray)}
    for key in ("tip_ids", "uv", "uv_faces"):
        content.pop(key, None)
    content["shapedirs"] = FakeSelect(a=source, idxs=index, preferred_shape=shapedirs.shape, _dirty_vars=set())
    content["J_regressor"] = FakeCsc(arrays["J_regressor"])
    content["f"] = arrays["f"].astype(np.uint32)
    content["kintree_table"] = (arrays["kintree_table"].astype(np.int64) % 2**32).astype(np.uint32)
    content["J"] = arrays["J_regressor"] @ arrays["v_template"]
    content |= {"bs_type": "lrotmin", "bs_style": "lbs"}
    classes = {
        ("chumpy.ch", "Ch"): FakeCh,
        (select_module, "Select"): FakeSelect,
        (csc_module, "csc_matrix"): FakeCsc,
    }
    with _importable(classes):
        if not python2:
            return pickle.dumps(content, protocol)
        stream = io.BytesIO()
        _Python2Pickler(stream, protocol).dump(content)
        return stream.getvalue()


class _Python2Pickler(pickle._Pickler):
    """Writes bytes as Python 2 did, with BINSTRING opcodes, and NumPy under its old module paths."""

    dispatch: ClassVar[dict] = dict(pickle._Pickler.dispatch)

    def save_bytes(self, value: bytes) -> None:
        self.write(pickle.BINSTRING + len(value).to_bytes(4, "little") + value)
        self.memoize(value)

    dispatch[bytes] = save_bytes

    def save_global(self, value: Any, name: str | None = None) -> None:
        name = name or value.__qualname__
        module = {"builtins": "__builtin__", "copyreg": "copy_reg"}.get(value.__module__, value.__module__)
        module = module.replace("numpy._core", "numpy.core")
        self.write(pickle.GLOBAL + f"{module}\n{name}\n".encode())
        self.memoize(value)

    dispatch[types.FunctionType] = save_global
    dispatch[type] = save_global


def mano_by_loops(
    arrays: dict[str, Any], pose: np.ndarray, betas: np.ndarray, global_orient: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """MANO's forward model (Romero et al. 2017) in float64 loops: verts (778, 3), joints (16, 3).

    Args:
        arrays: the model, with MANO's keys.
        pose: (45,) absolute axis-angle.
        betas: (10,).
        global_orient: (3,) axis-angle about the wrist joint.
    """
    rest = arrays["v_template"].copy()
    for k in range(10):
        rest += betas[k] * arrays["shapedirs"][:, :, k]
    joints = arrays["J_regressor"] @ rest
    turns = Rotation.from_rotvec(np.concatenate([global_orient, pose]).reshape(16, 3)).as_matrix()
    bent = rest.copy()
    column = 0
    for joint in range(1, 16):
        for row in range(3):
            for col in range(3):
                bent += (turns[joint, row, col] - (row == col)) * arrays["posedirs"][:, :, column]
                column += 1
    world = []
    for joint in range(16):
        local = np.eye(4)
        local[:3, :3] = turns[joint]
        local[:3, 3] = joints[joint] - (joints[PARENTS[joint]] if joint else 0)
        world.append(world[PARENTS[joint]] @ local if joint else local)
    verts = np.zeros_like(rest)
    for joint in range(16):
        about_rest = world[joint][:3, :3] @ (bent - joints[joint]).T + world[joint][:3, 3:]
        verts += arrays["weights"][:, joint, None] * about_rest.T
    return verts, np.array([matrix[:3, 3] for matrix in world])
