"""`jaxscale launch k8s`: manifests, held against Kubernetes' schemas and JobSet's, and what they make of a pod."""

import re
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from fake_programs import Fakes
from golden_text import check_golden
from hypothesis import given, settings
from hypothesis import strategies as st
from jobset_schema import JOB_SET
from launch_cases import call, write_config

from jaxscale.config.loading import load_config
from jaxscale.errors import UserError
from jaxscale.launch.k8s import KubernetesJob, config_map, job_set, job_spec, manifest
from jaxscale.launch.k8s_flags import labels, secrets
from jaxscale.launch.k8s_nodes import nodes_of
from jaxscale.launch.k8s_volumes import Volume, parse_volume
from jaxscale.launch.world import find_world
from jaxscale.training.health.attempts import starter

KUBERNETES = "1.31"  # The first where a job's failure policy is stable.
JOB = KubernetesJob(
    name="llama",
    image="registry.example/jaxscale:1",
    nodes=nodes_of("v5p:4x4x4*2", spot=True),
    config="name: llama\ndata: {train: /mnt/training/text}\n",
    arguments=("--run-dir", "/mnt/training/llama"),
    namespace="research",
    environment={"NOTE": "a $(HOME) b"},
    secrets={"WANDB_API_KEY": ("wandb", "key")},
    volumes=(
        Volume("pvc", "training", "/mnt/training"),
        Volume("gcs", "my-bucket", "/gcs"),
        Volume("secret", "keys", "/etc/keys"),
    ),
    queue="team-a",
    priority_class="high",
    service_account="trainer",
)
JOBS = {
    "tpu": JOB,
    "gpu": replace(
        JOB,
        nodes=nodes_of("h100:8x4"),
        node_selector={"cloud.google.com/gke-accelerator": "nvidia-h100-80gb"},
    ),
    "cpu": KubernetesJob("tiny", "i", nodes_of("cpu:8"), "name: tiny\n", ("--run-dir", "/x")),
}


@pytest.mark.parametrize("name", ["tpu", "gpu"])
def test_manifests_are_their_golden_texts(name: str) -> None:
    check_golden(f"k8s_{name}.yaml", manifest(JOBS[name]))


@pytest.mark.parametrize("name", JOBS)
def test_kubernetes_takes_them(name: str) -> None:
    """The job of a JobSet's template as a job of its own, and the configuration; unknown fields are errors."""
    job = JOBS[name]
    standing = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": "x"},
        "spec": job_spec(job),
    }
    kubernetes_validate.validate(standing, KUBERNETES, strict=True)
    pod = job_spec(job)["template"]
    kubernetes_validate.validate(
        {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": pod["spec"]},
        KUBERNETES,
        strict=True,
    )
    kubernetes_validate.validate(config_map(job), KUBERNETES, strict=True)


def test_kubernetes_would_not_take_just_anything() -> None:
    spec = {**job_spec(JOB), "completion": 3}
    wrong = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "x"}, "spec": spec}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, KUBERNETES, strict=True)


@pytest.mark.parametrize("name", JOBS)
def test_jobset_takes_them(name: str) -> None:
    jsonschema.validate(job_set(JOBS[name]), JOB_SET)


@pytest.mark.parametrize("name", JOBS)
def test_the_text_is_the_objects(name: str) -> None:
    """Nothing by reference, which kubectl would take, but a reader not."""
    text = manifest(JOBS[name])
    assert list(yaml.safe_load_all(text)) == [config_map(JOBS[name]), job_set(JOBS[name])]
    assert "&id" not in text


@pytest.mark.parametrize(
    "word", ["1e3", "y", "on", "0o17", "1_000", "0x1f", "12:30", "~", "True", "2026-01-01"]
)
def test_words_that_are_something_else_in_some_yaml_are_quoted(word: str) -> None:
    """kubectl reads YAML by other rules than Python; a number in place of a text is refused."""
    assert f"value: '{word}'" in manifest(replace(JOB, environment={"VALUE": word}))


def container(job: KubernetesJob) -> dict[str, Any]:
    found: dict[str, Any] = job_spec(job)["template"]["spec"]["containers"][0]
    return found


def expand(text: str, variables: dict[str, str]) -> str:
    """As Kubernetes reads commands and values: $(NAME) is a variable if there is one, $$ a dollar sign."""
    return re.sub(
        r"\$\$|\$\(([^)]*)\)",
        lambda match: "$" if match[0] == "$$" else variables.get(match[1], match[0]),
        text,
    )


def variables_of(job: KubernetesJob, slice_: int, node: int) -> dict[str, str]:
    """The environment of a pod, as Kubernetes makes it from the manifest."""
    found: dict[str, str] = {"JOB_COMPLETION_INDEX": str(node)}
    for one in container(job)["env"]:
        source = one.get("valueFrom", {})
        if "fieldRef" in source:
            given = {"job-index": str(slice_), "jobset-uid": "5f3a-uid"}
            path = source["fieldRef"]["fieldPath"]
            annotation = re.fullmatch(
                r"metadata\.annotations\['jobset\.sigs\.k8s\.io/(.+)'\]", path
            )
            assert annotation, path
            found[one["name"]] = given[annotation[1]]
        elif "value" in one:
            found[one["name"]] = expand(one["value"], found)
    return found


def test_every_pod_knows_who_it_is() -> None:
    """Two slices of 64 chips, 4 a node: 32 processes, numbered through, at the name that DNS gives the first pod."""
    spec = job_set(JOB)["spec"]
    (role,) = spec["replicatedJobs"]
    first = f"{JOB.name}-{role['name']}-0-0.{spec['network']['subdomain']}"
    seen = []
    for slice_ in range(role["replicas"]):
        for node in range(role["template"]["spec"]["completions"]):
            world = find_world(variables_of(JOB, slice_, node))
            assert world is not None
            assert (world.num_processes, world.coordinator, world.port) == (32, first, 8476)
            seen.append(world.process_id)
    assert seen == list(range(32))


def test_the_run_counts_the_failures_of_one_jobset() -> None:
    """All pods of all its restarts say the same; a JobSet that was deleted and applied again has another number.

    That JobSet annotates its pods so: labelAndAnnotateObject in pkg/controllers/jobset_controller.go, of 0.11 and 0.12.
    """
    names = {starter(variables_of(JOB, slice_, node)) for slice_ in (0, 1) for node in (0, 15)}
    assert names == {"JobSet llama 5f3a-uid"}


def test_the_hook_asks_training_to_save_and_waits_until_it_has(tmp_path: Path) -> None:
    """Its words, said to a process of this machine instead of the container's first."""
    (shell, option, hook) = container(JOB)["lifecycle"]["preStop"]["exec"]["command"]
    saves = (
        "import signal, time\n"
        "def save(*_): time.sleep(1.5); open('saved', 'w').close(); raise SystemExit(75)\n"
        "signal.signal(signal.SIGTERM, save); print('ready', flush=True); time.sleep(60)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", saves], cwd=tmp_path, stdout=subprocess.PIPE, text=True
    ) as training:
        assert training.stdout is not None
        assert training.stdout.readline() == "ready\n"
        # Somebody has to ask how it ended, or it stays: in a container its end is the container's.
        threading.Thread(target=training.wait).start()
        words = re.sub(r"(TERM|-0) 1\b", rf"\1 {training.pid}", hook)
        subprocess.run([shell, option, words], check=True, timeout=30)
        assert (tmp_path / "saved").exists()
    assert training.returncode == 75


def test_pods_have_as_long_as_training_believes_to_have() -> None:
    """The hook's time is part of the grace (Kubernetes, "Pod lifecycle")."""
    job = replace(JOB, grace=300)
    assert job_spec(job)["template"]["spec"]["terminationGracePeriodSeconds"] == 300
    assert {"name": "JAXSCALE_GRACE_SECONDS", "value": "300"} in container(job)["env"]


def test_pods_find_each_other_before_they_are_ready() -> None:
    """The service is JobSet's: pkg/controllers/jobset_controller.go, createHeadlessSvcIfNecessary, of 0.11 and 0.12."""
    network = job_set(JOB)["spec"]["network"]
    assert network["publishNotReadyAddresses"]
    assert [one["kind"] for one in yaml.safe_load_all(manifest(JOB))] == ["ConfigMap", "JobSet"]


def test_devices_and_nodes() -> None:
    spec = job_spec(JOBS["gpu"])
    assert (spec["completions"], spec["parallelism"]) == (4, 4)
    assert container(JOBS["gpu"])["resources"]["limits"] == {"nvidia.com/gpu": "8"}
    single = nodes_of("v5e:2x4")
    assert (single.groups, single.per_group, single.resources) == (1, 1, {"google.com/tpu": "8"})
    several = nodes_of("v6e:16x16*4")
    assert (several.groups, several.per_group, several.resources) == (
        4,
        64,
        {"google.com/tpu": "4"},
    )
    assert several.selector["cloud.google.com/gke-tpu-topology"] == "16x16"


def applied_rule(job: KubernetesJob, reason: str, message: str) -> str:
    """The action of JobSet: the first rule whose reasons and patterns match; without one it restarts and counts."""
    for rule in job_set(job)["spec"]["failurePolicy"]["rules"]:
        if reason in rule["onJobFailureReasons"] and any(
            re.search(pattern, message) for pattern in rule["onJobFailureMessagePatterns"]
        ):
            return str(rule["action"])
    return "RestartJobSet"


@pytest.mark.parametrize(
    ("message", "action"),
    [
        (
            "Container train for pod a/b failed with exit code 2 matching FailJob rule at index 0",
            "FailJobSet",
        ),
        (
            "Container train for pod a/exit-code-2-x failed with exit code 75 matching FailJob rule at index 0",
            "RestartJobSetAndIgnoreMaxRestarts",
        ),
        (
            "Pod a/b has condition DisruptionTarget matching FailJob rule at index 1",
            "RestartJobSetAndIgnoreMaxRestarts",
        ),
    ],
)
def test_statuses_decide_what_follows(message: str, action: str) -> None:
    """The messages are those of Kubernetes' job controller (pod_failure_policy.go)."""
    assert applied_rule(JOB, "PodFailurePolicy", message) == action


def test_other_failures_restart_and_count() -> None:
    """A status that no rule of the job names fails it for its backoff limit of 0."""
    assert job_spec(JOB)["backoffLimit"] == 0
    assert (
        applied_rule(JOB, "BackoffLimitExceeded", "Job has reached the specified backoff limit")
        == "RestartJobSet"
    )


WORDS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20)
AWKWARD = [
    "\x85",
    "$(HOME)",
    "$$(HOME)",
    "$HOME$",
    "a: b",
    "- x",
    "'\"",
    "#",
    "|\n  x\n",
    "\u2028",
    "null",
    "1e3",
    " x ",
]


@settings(max_examples=60, deadline=None)
@given(word=WORDS | st.sampled_from(AWKWARD))
def test_every_word_arrives_in_the_container(word: str) -> None:
    """Through YAML, and through what Kubernetes does with dollar signs."""
    job = replace(
        JOB, arguments=(word,), environment={"HOME": "x", "VALUE": word}, config=f"{word}\n"
    )
    config, jobs = yaml.safe_load_all(manifest(job))
    spec = jobs["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]["containers"][
        0
    ]
    assert expand(spec["command"][2], {"HOME": "x"}) == word
    (value,) = (one["value"] for one in spec["env"] if one["name"] == "VALUE")
    assert expand(value, {"HOME": "x"}) == word
    assert config["data"]["run.yaml"] == f"{word}\n"


def test_the_command_hands_the_manifest_to_kubectl(tmp_path: Path, fakes: Fakes) -> None:
    config = write_config(tmp_path)
    given_words = (
        config,
        "training.steps=7",
        "--image",
        "x/y:1",
        "--on",
        "h100:8x2",
        "--volume",
        "pvc:c:/mnt/a b",
    )
    answer = call("launch", "k8s", *given_words)
    assert answer.status == 0, answer
    (kubectl,) = fakes.calls()
    text = call("launch", "k8s", *given_words, "--dry-run").out
    assert kubectl == ["kubectl", "apply", "-f", "-", text]
    settings_, jobs = yaml.safe_load_all(text)
    sent = tmp_path / "sent.yaml"
    sent.write_text(settings_["data"]["run.yaml"])
    assert load_config(sent) == load_config(config, ["training.steps=7"])
    spec = jobs["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    assert spec["containers"][0]["command"][2:4] == ["--run-dir", "/mnt/a b/tiny"]


VOLUME = ("--volume", "pvc:c:/mnt")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--on", "v5p:4x4x5", *VOLUME), "v5p"),
        (("--on", "nothing:3", *VOLUME), "unknown chip 'nothing'"),
        (("--on", "v5e:2x2*2", *VOLUME), "slices of one node cannot be joined on GKE"),
        (("--on", "cpu:8"), "is on no --volume that pods share"),
        (
            ("--on", "cpu:8", *VOLUME, "--run-dir", "/elsewhere/x"),
            "volumes that can be written: /mnt",
        ),
        (
            ("--on", "cpu:8", "--volume", "secret:s:/mnt", "--run-dir", "/mnt/x"),
            "is on no --volume that pods share",
        ),
        (("--on", "cpu:8", "--volume", "disk:c:/mnt"), "write KIND:NAME:/PATH"),
        (("--on", "cpu:8", "--volume", "pvc:c:mnt"), "write KIND:NAME:/PATH"),
        (("--on", "cpu:8", *VOLUME, "--name", "Big_Run"), "lower-case letters, digits and dashes"),
        (("--on", "cpu:8", *VOLUME, "--name", "a" * 41), "40 at most"),
        (("--on", "cpu:8", *VOLUME, "--secret", "A=b"), "write VARIABLE=SECRET:KEY"),
        (("--on", "cpu:8", *VOLUME, "--volume", "gcs:b:/mnt/"), "mounted there already"),
        (("--on", "h100:8x2", *VOLUME, "--volume", "pvc:c:/dev/shm"), "mounted there already"),
        (("--on", "cpu:8", *VOLUME, "--volume", "secret:s:/etc/jaxscale"), "mounted there already"),
        (("--on", "cpu:8", "--volume", "pvc:My_Claim:/mnt"), "'My_Claim' is no name of Kubernetes"),
        (("--on", "cpu:8", *VOLUME, "--env", "JAXSCALE_NUM_PROCESSES=3"), "the launcher's to set"),
        (("--on", "cpu:8", *VOLUME, "--env", "JAXSCALE_STARTER=me"), "the launcher's to set"),
        (
            ("--on", "cpu:8", *VOLUME, "--env", "A=1", "--secret", "A=s:k"),
            "given by --env and by --secret",
        ),
        (("--on", "cpu:8", *VOLUME, "--node-selector", "x"), "write LABEL=VALUE"),
    ],
)
def test_mistakes(tmp_path: Path, arguments: tuple[str, ...], words: str) -> None:
    answer = call("launch", "k8s", write_config(tmp_path), "--image", "x", *arguments, "--dry-run")
    assert answer.status == 2, answer
    assert words in answer.err


def test_a_refusal_of_the_cluster_is_no_traceback(tmp_path: Path, fakes: Fakes) -> None:
    (fakes.folder / "bin/kubectl").write_text(
        "#!/bin/sh\ncat > /dev/null\necho 'no such kind' >&2\nexit 1\n"
    )
    answer = call("launch", "k8s", write_config(tmp_path), "--image", "x", "--on", "cpu:8", *VOLUME)
    assert answer.status == 1
    assert answer.err == "error: kubectl ended with status 1; nothing was started\n"


def test_pairs() -> None:
    assert secrets(["A=b:c.d"]) == {"A": ("b", "c.d")}
    assert labels(["a.b/c=d"]) == {"a.b/c": "d"}
    assert parse_volume("gcs:bucket:/gcs/x") == Volume("gcs", "bucket", "/gcs/x")
    with pytest.raises(UserError):
        parse_volume("pvc:/mnt")
