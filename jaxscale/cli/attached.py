"""`--on here`: the attached devices as a cluster, their links measured."""

from collections.abc import Callable
from pathlib import Path

from jaxscale.hardware.catalogue import cluster_to_yaml
from jaxscale.hardware.cluster import Cluster
from jaxscale.parallel.attached import attached_cluster
from jaxscale.parallel.link_benchmark import measure_links, measured_cluster
from jaxscale.telemetry.format import bytes_text


def cluster_here(say: Callable[[str], None], save: Path | None = None) -> Cluster:
    """`--on here`: the attached devices with measured links, saved where a file is named for them.

    Raises UnknownDevices for devices that the hardware tables do not have.
    """
    cluster = attached_cluster()
    speeds = measure_links(cluster)
    for speed in speeds:
        say(
            f"{speed.dim} ({speed.size} devices): all-gather {bytes_text(speed.gather)}/s, "
            f"all-reduce {bytes_text(speed.reduce)}/s, to a neighbor {bytes_text(speed.neighbor)}/s, "
            f"latency {speed.latency * 1e6:.0f} us"
        )
    found = measured_cluster(cluster, speeds)
    if save is not None:
        save.parent.mkdir(parents=True, exist_ok=True)
        save.write_text(cluster_to_yaml(found), encoding="utf-8")
        say(f"cluster: {save}")
    return found
