"""Clusters: by name, from a file, with other numbers, in other sizes."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from jaxscale.hardware.by_name import cluster_by_name, explain_name
from jaxscale.hardware.changes import override_keys, with_overrides
from jaxscale.hardware.cluster import Cluster
from jaxscale.hardware.cluster_file import cluster_to_yaml, load_cluster_file
from jaxscale.hardware.resize import larger_clusters, sizes, with_devices

__all__ = [
    "cluster_to_yaml",
    "explain_name",
    "larger_clusters",
    "load_cluster_file",
    "override_keys",
    "parse_cluster",
    "sizes",
    "with_devices",
    "with_overrides",
]

_NONE: Mapping[str, str] = MappingProxyType({})


def parse_cluster(text: str, *, overrides: Mapping[str, str] = _NONE) -> Cluster:
    """The cluster that `text` names, or that the file ending in .yaml or .yml describes, under `overrides`.

    Raises UserError where nothing is named so, no such cluster exists, or the file or an override is wrong.
    """
    is_file = text.strip().lower().endswith((".yaml", ".yml"))
    cluster = load_cluster_file(Path(text.strip())) if is_file else cluster_by_name(text)
    return with_overrides(cluster, overrides)
