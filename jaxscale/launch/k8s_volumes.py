"""Storage of a pod: `pvc:CLAIM:/mnt`, `secret:NAME:/etc/keys`, `configmap:NAME:/etc/x`, `gcs:BUCKET:/gcs`."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from types import MappingProxyType
from typing import Any

from jaxscale.errors import UserError

_KINDS = ("pvc", "secret", "configmap", "gcs")
_SHARED_MEMORY, _SHARED_MEMORY_PATH = "shared-memory", "/dev/shm"
_NAME = re.compile(r"[a-z0-9]([-a-z0-9._]{0,251}[a-z0-9])?")
_FUSE = MappingProxyType({"gke-gcsfuse/volumes": "true"})
_NONE: Mapping[str, str] = MappingProxyType({})

Tree = dict[str, Any]


@dataclass(frozen=True)
class Volume:
    """kind: of `_KINDS`. source: the claim, secret, config map or bucket. path: where pods see it."""

    kind: str
    source: str
    path: str

    @property
    def writable(self) -> bool:
        return self.kind in {"pvc", "gcs"}

    @property
    def annotations(self) -> Mapping[str, str]:
        """What a pod needs to have it: GKE's FUSE driver looks for a mark."""
        return _FUSE if self.kind == "gcs" else _NONE


def parse_volume(text: str) -> Volume:
    """Raises UserError for a kind that there is not, or a path that is not absolute."""
    kind, _, rest = text.partition(":")
    source, _, path = rest.partition(":")
    if kind not in _KINDS or not source or not PurePosixPath(path).is_absolute():
        raise UserError(
            f"--volume {text!r}: write KIND:NAME:/PATH with one of {', '.join(_KINDS)}; for example "
            "pvc:training:/mnt/training"
        )
    if not _NAME.fullmatch(source):
        raise UserError(
            f"--volume {text!r}: {source!r} is no name of Kubernetes: lower-case letters, digits, dashes and dots"
        )
    return Volume(kind, source, path)


def check_paths(given: Sequence[Volume], taken: Sequence[str]) -> None:
    """Raises UserError where two things would be mounted at one path. taken: what is mounted anyway."""
    places = [PurePosixPath(one) for one in (*taken, _SHARED_MEMORY_PATH)]
    for one in given:
        if PurePosixPath(one.path) in places:
            raise UserError(
                f"--volume {one.kind}:{one.source}:{one.path}: something else is mounted there already; give another "
                "path"
            )
        places.append(PurePosixPath(one.path))


def default_run_dir(given: Sequence[Volume], name: str) -> str:
    """On the first volume that can be written; where there is none, `check_run_dir` says so."""
    return next(
        (f"{one.path.rstrip('/')}/{name}" for one in given if one.writable), f"/runs/{name}"
    )


def check_run_dir(run_dir: str, given: Sequence[Volume]) -> None:
    """Raises UserError for a run directory that would be lost with its pod."""
    places = [one.path for one in given if one.writable]
    if not any(PurePosixPath(run_dir).is_relative_to(place) for place in places):
        raise UserError(
            f"--run-dir {run_dir} is on no --volume that pods share, so what is written there would be lost with them; "
            f"volumes that can be written: {', '.join(places) or 'none'}"
        )


def volumes(given: Sequence[Volume], *, shared_memory: bool) -> list[Tree]:
    """For a pod's `volumes`. NCCL talks through /dev/shm, which is 64 MB unless it is asked for."""
    extra = [{"name": _SHARED_MEMORY, "emptyDir": {"medium": "Memory"}}] if shared_memory else []
    return [*({"name": _name(i), **_source(one)} for i, one in enumerate(given)), *extra]


def mounts(given: Sequence[Volume], *, shared_memory: bool) -> list[Tree]:
    """For a container's `volumeMounts`."""
    extra = [{"name": _SHARED_MEMORY, "mountPath": _SHARED_MEMORY_PATH}] if shared_memory else []
    return [*(_mount(i, one) for i, one in enumerate(given)), *extra]


def _mount(index: int, volume: Volume) -> Tree:
    read_only = {} if volume.writable else {"readOnly": True}
    return {"name": _name(index), "mountPath": volume.path, **read_only}


def _name(index: int) -> str:
    return f"volume-{index}"


def _source(volume: Volume) -> Tree:
    if volume.kind == "pvc":
        return {"persistentVolumeClaim": {"claimName": volume.source}}
    if volume.kind == "secret":
        return {"secret": {"secretName": volume.source}}
    if volume.kind == "configmap":
        return {"configMap": {"name": volume.source}}
    attributes = {"bucketName": volume.source, "mountOptions": "implicit-dirs"}
    return {"csi": {"driver": "gcsfuse.csi.storage.gke.io", "volumeAttributes": attributes}}
