"""A run on Kubernetes: a JobSet of one indexed job for each slice or group of nodes, and its configuration beside it.

JobSet 0.11 or newer: the rules that tell a preemption from a failure match the messages of failed jobs.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from jaxscale.errors import UserError
from jaxscale.launch import world as names
from jaxscale.launch.k8s_nodes import Nodes
from jaxscale.launch.k8s_volumes import Volume, check_paths, mounts, volumes
from jaxscale.launch.restarts import USER_ERROR
from jaxscale.training.health.attempts import STARTER_VARIABLE
from jaxscale.training.health.exits import PREEMPTED
from jaxscale.training.health.preemption import GRACE_VARIABLE

CONFIG_FOLDER, CONFIG_FILE = "/etc/jaxscale", "run.yaml"
_ROLE, _CONTAINER, _CONFIG = "worker", "train", "config"
_JOB_INDEX = "metadata.annotations['jobset.sigs.k8s.io/job-index']"
# The same in all restarts of a JobSet; another one where it was deleted and applied again.
_JOBSET, _JOBSET_UID = (
    "JAXSCALE_JOBSET_UID",
    "metadata.annotations['jobset.sigs.k8s.io/jobset-uid']",
)
# Asks training to save, and holds Kubernetes back until it has. Where the grace is over first, what comes then is a
# second SIGTERM: training says what is lost and ends with 75, instead of being killed.
STOP_HOOK = "kill -TERM 1; while kill -0 1 2> /dev/null; do sleep 1; done"
# Pods are called NAME-worker-SLICE-NODE-xxxxx, and a name has 63 letters at most.
_LONGEST_NAME = 40
_WORD = re.compile(r"[A-Za-z/-][\w./-]{2,}", re.ASCII)
_NO_WORDS = frozenset(("yes", "off", "true", "false", "null", "---"))
# What says who a process is, who starts it again, and how long it has to save in.
_OWN = frozenset((
    names.COORDINATOR, names.NUM_PROCESSES, names.PROCESS_ID, names.PROCESSES_PER_JOB, names.JOB_INDEX,
    names.COMPLETION_INDEX, GRACE_VARIABLE, STARTER_VARIABLE, _JOBSET,
))  # fmt: skip
_DNS = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")

Tree = dict[str, Any]


@dataclass(frozen=True)
class KubernetesJob:
    """image: has jaxscale on its PATH. config: the whole configuration as YAML. arguments: what follows `train CONFIG`.

    queue: of Kueue. secrets: variable -> (secret, key). grace: seconds that pods have to save in.
    """

    name: str
    image: str
    nodes: Nodes
    config: str
    arguments: Sequence[str]
    namespace: str = "default"
    environment: Mapping[str, str] = field(default_factory=dict)
    secrets: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    volumes: Sequence[Volume] = ()
    queue: str | None = None
    priority_class: str | None = None
    service_account: str | None = None
    node_selector: Mapping[str, str] = field(default_factory=dict)
    grace: int = 120
    max_restarts: int = 10
    port: int = names.DEFAULT_PORT


def check(job: KubernetesJob) -> None:
    """Raises UserError for names that Kubernetes would refuse."""
    given = {"--name": job.name, "--namespace": job.namespace, "--queue": job.queue or "a"}
    for flag, name in given.items():
        if not _DNS.fullmatch(name) or len(name) > _LONGEST_NAME:
            raise UserError(
                f"{flag} {name!r}: lower-case letters, digits and dashes, a letter first, {_LONGEST_NAME} at most"
            )
    if not job.image or re.search(r"\s", job.image):
        raise UserError(f"--image {job.image!r} is no image")
    check_paths(job.volumes, [CONFIG_FOLDER])
    _check_variables(job)


def _check_variables(job: KubernetesJob) -> None:
    for name in (*job.environment, *job.secrets):
        if name in _OWN:
            raise UserError(
                f"{name} is the launcher's to set: who a process is follows from --on, and how long it has from --grace"
            )
    for name in job.environment.keys() & job.secrets.keys():
        raise UserError(f"{name} is given by --env and by --secret; leave one out")


def manifest(job: KubernetesJob) -> str:
    """Both objects as YAML, for `kubectl apply`. Raises UserError as `check`."""
    check(job)
    objects = (config_map(job), job_set(job))
    return "---\n".join(
        yaml.dump(one, Dumper=_Plain, sort_keys=False, width=1000) for one in objects
    )


class _Plain(yaml.SafeDumper):
    """Text of several lines as it is; nothing by reference."""

    def ignore_aliases(self, _data: Any) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    """Quoted but for plain words: kubectl's YAML reads `1e3` and `y` as a number and a truth, Python's does not."""
    plain = _WORD.fullmatch(text) and text.lower() not in _NO_WORDS
    style = None if plain else "|" if "\n" in text else "'"
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Plain.add_representer(str, _text)


def config_map(job: KubernetesJob) -> Tree:
    """The configuration, the same for every pod."""
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": _config_name(job), "namespace": job.namespace},
        "data": {CONFIG_FILE: job.config},
    }


def job_set(job: KubernetesJob) -> Tree:
    """The JobSet, which also makes the headless service by which pods find each other."""
    metadata: Tree = {"name": job.name, "namespace": job.namespace}
    if job.queue is not None:
        metadata["labels"] = {"kueue.x-k8s.io/queue-name": job.queue}
    if job.nodes.annotations:
        metadata["annotations"] = dict(job.nodes.annotations)
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": metadata,
        "spec": {
            "network": _network(job),
            "successPolicy": {"operator": "All", "targetReplicatedJobs": [_ROLE]},
            "failurePolicy": _failure_policy(job),
            "replicatedJobs": [
                {"name": _ROLE, "replicas": job.nodes.groups, "template": {"spec": job_spec(job)}}
            ],
        },
    }


def _network(job: KubernetesJob) -> Tree:
    """JobSet makes the headless service `subdomain`, and removes it with the set; one of our own would stay behind.

    Pods meet before any is ready, so their names have to be known by then.
    """
    return {"enableDNSHostnames": True, "subdomain": job.name, "publishNotReadyAddresses": True}


def job_spec(job: KubernetesJob) -> Tree:
    """One indexed job: the nodes of a slice. Any pod that fails fails all of it, and says with which status."""
    return {
        "completionMode": "Indexed",
        "completions": job.nodes.per_group,
        "parallelism": job.nodes.per_group,
        "backoffLimit": 0,
        "podFailurePolicy": {
            "rules": [
                {
                    "action": "FailJob",
                    "onExitCodes": {
                        "containerName": _CONTAINER,
                        "operator": "In",
                        "values": [USER_ERROR, PREEMPTED],
                    },
                },
                {
                    "action": "FailJob",
                    "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}],
                },
            ]
        },
        "template": {"metadata": _pod_metadata(job), "spec": pod_spec(job)},
    }


def pod_spec(job: KubernetesJob) -> Tree:
    """A pod: one process, with all devices of its node."""
    nodes = job.nodes
    spec: Tree = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": job.grace,
        "serviceAccountName": job.service_account,
        "priorityClassName": job.priority_class,
        "nodeSelector": {**nodes.selector, **job.node_selector},
        "tolerations": [dict(one) for one in nodes.tolerations],
        "containers": [_container(job)],
        "volumes": [_config_volume(job), *volumes(job.volumes, shared_memory=nodes.shared_memory)],
    }
    return {name: value for name, value in spec.items() if value}


def _pod_metadata(job: KubernetesJob) -> Tree:
    labels = {"app.kubernetes.io/name": "jaxscale", "app.kubernetes.io/instance": job.name}
    annotations = {key: value for one in job.volumes for key, value in one.annotations.items()}
    return {"labels": labels, **({"annotations": annotations} if annotations else {})}


def _container(job: KubernetesJob) -> Tree:
    config = {"name": _CONFIG, "mountPath": CONFIG_FOLDER, "readOnly": True}
    command = ("jaxscale", "train", *job.arguments, "--", f"{CONFIG_FOLDER}/{CONFIG_FILE}")
    return {
        "name": _CONTAINER,
        "image": job.image,
        "command": [_kept(word) for word in command],
        "env": _variables(job),
        "ports": [{"containerPort": job.port, "name": "coordinator"}],
        "resources": {"requests": dict(job.nodes.resources), "limits": dict(job.nodes.resources)},
        "volumeMounts": [config, *mounts(job.volumes, shared_memory=job.nodes.shared_memory)],
        "lifecycle": {"preStop": {"exec": {"command": ["/bin/sh", "-c", STOP_HOOK]}}},
    }


def _variables(job: KubernetesJob) -> list[Tree]:
    """Who a pod is: the numbers here, its own index from Kubernetes (JOB_COMPLETION_INDEX) and from JobSet.

    JobSet does not look at steps: the run counts the failures of one JobSet itself (`training.health.attempts`).
    """
    fixed = {
        names.COORDINATOR: f"{job.name}-{_ROLE}-0-0.{job.name}:{job.port}",
        names.NUM_PROCESSES: str(job.nodes.groups * job.nodes.per_group),
        names.PROCESSES_PER_JOB: str(job.nodes.per_group),
        "PYTHONUNBUFFERED": "1",
        GRACE_VARIABLE: str(job.grace),
        **job.nodes.environment,
        **job.environment,
    }
    secrets = [
        {"name": name, "valueFrom": {"secretKeyRef": {"name": secret, "key": key}}}
        for name, (secret, key) in job.secrets.items()
    ]
    plain = [{"name": name, "value": _kept(value)} for name, value in fixed.items()]
    # Kubernetes puts in what was named before.
    starter = {"name": STARTER_VARIABLE, "value": f"JobSet {job.name} $({_JOBSET})"}
    said = (_of_pod(names.JOB_INDEX, _JOB_INDEX), _of_pod(_JOBSET, _JOBSET_UID))
    return [*plain, *said, starter, *secrets]


def _of_pod(name: str, path: str) -> Tree:
    """A variable that the pod's metadata give."""
    return {"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}}


def _kept(text: str) -> str:
    """`$(NAME)` in a command or a value would be replaced by Kubernetes, and `$$` by a single one."""
    return text.replace("$", "$$")


def _failure_policy(job: KubernetesJob) -> Tree:
    """A mistake ends the run; a preemption or a drained node restarts it and does not count; anything else counts."""
    reason = ["PodFailurePolicy"]
    return {
        "maxRestarts": job.max_restarts,
        "rules": [
            {
                "name": "mistake",
                "action": "FailJobSet",
                "onJobFailureReasons": reason,
                "onJobFailureMessagePatterns": [f"exit code {USER_ERROR} "],
            },
            {
                "name": "preempted",
                "action": "RestartJobSetAndIgnoreMaxRestarts",
                "onJobFailureReasons": reason,
                "onJobFailureMessagePatterns": [
                    f"exit code {PREEMPTED} ",
                    "condition DisruptionTarget",
                ],
            },
        ],
    }


def _config_volume(job: KubernetesJob) -> Tree:
    return {"name": _CONFIG, "configMap": {"name": _config_name(job)}}


def _config_name(job: KubernetesJob) -> str:
    return f"{job.name}-config"
