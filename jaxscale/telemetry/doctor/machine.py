"""Limits, clock, network and cache of a machine."""

import ctypes
import os
import resource
import shutil
import socket
from pathlib import Path

from jaxscale.telemetry.doctor.finding import Finding, Options
from jaxscale.telemetry.doctor.versions import has_gpu
from jaxscale.telemetry.format import bytes_text
from jaxscale.telemetry.peak import usable_cores

_FEW_HANDLES = 4096
_SHARED_MEMORY = 2**30
_TIMEX_BYTES, _UNSYNCHRONIZED = 512, 5
_CONNECT_SECONDS = 5.0


def check_limits(_options: Options) -> list[Finding]:
    """Open files, shared memory, cores."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    findings = [Finding("limits", "good", f"{usable_cores()} CPU cores, {soft:,} open files")]
    if soft < _FEW_HANDLES:
        words = f"a process may open {soft:,} files; sharded checkpoints and data want more"
        findings.append(Finding("limits", "warn", words, f"ulimit -n {min(hard, 65536)}"))
    shared = Path("/dev/shm")
    if has_gpu() and shared.is_dir() and shutil.disk_usage(shared).total < _SHARED_MEMORY:
        words = f"/dev/shm has {bytes_text(shutil.disk_usage(shared).total)}; NCCL and data workers need more"
        findings.append(
            Finding("limits", "warn", words, "docker run --shm-size=16g (or --ipc=host)")
        )
    return findings


def check_clock(_options: Options) -> list[Finding]:
    """Whether the kernel believes its clock. (Against the storage's clock: see `storage`.)"""
    library = ctypes.CDLL(None)
    if not hasattr(library, "adjtimex"):
        return []
    # All zeros ask and change nothing; the answer is TIME_ERROR where nobody keeps the clock (adjtimex(2)).
    if library.adjtimex(ctypes.create_string_buffer(_TIMEX_BYTES)) == _UNSYNCHRONIZED:
        words = "the clock is not synchronized: times of several machines will not fit together"
        return [Finding("clock", "warn", words, "run chrony or systemd-timesyncd on the machine")]
    return [Finding("clock", "good", "the clock is synchronized")]


def check_network(options: Options) -> list[Finding]:
    """The machine's name, the port that process 0 listens on, and whether process 0 is reached, where it is named."""
    findings = [_name_finding(), _port_finding(options.port)]
    if options.coordinator is not None:
        findings.append(_reach_finding(options.coordinator))
    return findings


def _name_finding() -> Finding:
    name = socket.gethostname()
    try:
        address = socket.gethostbyname(name)
    except OSError as error:
        words = f"this machine's name ({name}) has no address ({error.strerror})"
        return Finding(
            "network", "warn", words, "give other processes its address, or add it to /etc/hosts"
        )
    if address.startswith("127."):
        words = f"this machine's name ({name}) means {address}, which other machines cannot reach"
        return Finding(
            "network", "warn", words, "matters with several machines: give them its real address"
        )
    return Finding("network", "good", f"{name} is {address}")


def _port_finding(port: int) -> Finding:
    with socket.socket() as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            one.bind(("", port))
            one.listen()
        except (OSError, OverflowError) as error:
            words = (
                f"port {port}, by which processes find each other, cannot be listened on ({error})"
            )
            return Finding(
                "network", "bad", words, "end what uses it, or choose another with --port"
            )
    return Finding("network", "good", f"port {port} is free for process 0 to listen on")


def _reach_finding(coordinator: str) -> Finding:
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdecimal():
        fix = "write it as HOST:PORT, for example node-0:8476"
        return Finding("network", "bad", f"--coordinator {coordinator} is no address", fix)
    try:
        socket.create_connection((host, int(port)), timeout=_CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        words = f"{coordinator} is not reached from here ({error})"
        fix = "process 0 has to run there already; open the port between the machines (firewall, security group)"
        return Finding("network", "bad", words, fix)
    return Finding("network", "good", f"{coordinator} is reached")


def check_cache(options: Options) -> list[Finding]:
    """Where compiled programs are kept between processes."""
    given = os.environ.get("JAX_COMPILATION_CACHE_DIR")
    if given == "":
        return []  # `environment` says so.
    directory = Path(given) if given else options.existing / ".compile_cache"
    place = next(one for one in (directory, *directory.absolute().parents) if one.is_dir())
    if not os.access(place, os.W_OK):
        words = f"compiled programs cannot be kept in {directory}: every restart compiles again"
        return [
            Finding(
                "compile cache", "warn", words, "set JAX_COMPILATION_CACHE_DIR to a shared folder"
            )
        ]
    files = [file for file in directory.rglob("*") if file.is_file()] if directory.is_dir() else []
    size = bytes_text(sum(file.stat().st_size for file in files))
    return [Finding("compile cache", "good", f"{directory}: {len(files):,} files, {size}")]
