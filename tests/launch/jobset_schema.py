"""The fields of a JobSet that the manifests use, from its API reference (jobset.x-k8s.io/v1alpha2), and no others.

The template of a job is Kubernetes' own, and is checked by its schemas instead.
"""

_TEXT = {"type": "string"}
_NAME = {"type": "string", "pattern": r"^[a-z]([-a-z0-9]*[a-z0-9])?$", "maxLength": 63}
_WORDS = {"type": "object", "additionalProperties": _TEXT}
_LIST = {"type": "array", "items": _TEXT, "uniqueItems": True}
_ACTIONS = [
    "FailJobSet", "RestartJobSet", "RestartJobSetAndIgnoreMaxRestarts", "RestartJob",
    "RestartJobAndIgnoreMaxRestarts",
]  # fmt: skip
# The reasons for which Kubernetes' Job controller calls a job failed (JobReason in batch/v1).
_REASONS = [
    "BackoffLimitExceeded", "DeadlineExceeded", "FailedIndexes", "MaxFailedIndexesExceeded", "PodFailurePolicy",
]  # fmt: skip


def _closed(required: list[str], **properties: object) -> dict[str, object]:
    return {
        "type": "object",
        "required": required,
        "additionalProperties": False,
        "properties": properties,
    }


_RULE = _closed(
    ["name", "action"],
    name={"type": "string", "pattern": "^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$"},
    action={"enum": _ACTIONS},
    onJobFailureReasons={"type": "array", "items": {"enum": _REASONS}, "uniqueItems": True},
    onJobFailureMessagePatterns=_LIST,
    targetReplicatedJobs=_LIST,
)
_REPLICATED = _closed(
    ["name", "template"],
    name=_NAME,
    replicas={"type": "integer", "minimum": 0},
    template=_closed(["spec"], metadata={"type": "object"}, spec={"type": "object"}),
)
_SPEC = _closed(
    ["replicatedJobs"],
    replicatedJobs={"type": "array", "items": _REPLICATED, "minItems": 1},
    network=_closed(
        [],
        enableDNSHostnames={"type": "boolean"},
        subdomain=_NAME,
        publishNotReadyAddresses={"type": "boolean"},
    ),
    successPolicy=_closed(
        ["operator"], operator={"enum": ["All", "Any"]}, targetReplicatedJobs=_LIST
    ),
    failurePolicy=_closed(
        [],
        maxRestarts={"type": "integer", "minimum": 0},
        rules={"type": "array", "items": _RULE, "maxItems": 20},
    ),
)
JOB_SET = _closed(
    ["apiVersion", "kind", "metadata", "spec"],
    apiVersion={"const": "jobset.x-k8s.io/v1alpha2"},
    kind={"const": "JobSet"},
    metadata=_closed(["name"], name=_NAME, namespace=_NAME, labels=_WORDS, annotations=_WORDS),
    spec=_SPEC,
)
