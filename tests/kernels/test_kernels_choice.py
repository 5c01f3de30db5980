"""How implementations are chosen: by name, by measurement, and always with a reason."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import jax
import pytest
from jax.sharding import Mesh

from jaxscale.errors import UserError
from jaxscale.kernels.registry import Implementation, choose, key_of, recording
from jaxscale.kernels.target import Target, asked_for, target_of
from jaxscale.kernels.tuning import Entry, bucket, read, write

V5P = Target("tpu", "TPU v5")
CPU = Target("cpu", "cpu")


@dataclass(frozen=True)
class Scaling:
    """A call of a made-up op."""

    rows: int
    dtype: str = "bfloat16"
    layout: str = "plain"

    @property
    def sizes(self) -> Mapping[str, int]:
        return {"r": self.rows}


def _needs_tpu(target: Target, call: Scaling) -> str | None:
    if target.platform != "tpu":
        return f"it needs a TPU, and this is {target.platform}"
    return f"{call.rows} rows are not a multiple of 8" if call.rows % 8 else None


def _serves_all(_target: Target, _call: Scaling) -> str | None:
    return None


KERNEL = Implementation[Scaling]("pallas_tpu", _needs_tpu)
IMPLEMENTATIONS = (KERNEL, Implementation[Scaling]("xla", _serves_all))


def _entry(seconds: float, *, rows: int = 1000, target: Target = V5P) -> Entry:
    key = key_of("scaling", KERNEL, target, Scaling(rows))
    return Entry(
        **vars(key), config={"tile": 256}, seconds=seconds, baseline_seconds=1.0, date="2026-01-02"
    )


def test_auto_does_not_take_a_kernel_that_was_not_measured() -> None:
    choice = choose("scaling", IMPLEMENTATIONS, V5P, Scaling(1024))
    assert choice.name == "xla"
    assert "not measured on TPU v5" in choice.declined["pallas_tpu"]


@pytest.mark.parametrize(("seconds", "taken"), [(0.97, True), (0.985, False), (1.2, False)])
def test_auto_takes_a_kernel_that_wins_by_two_percent(seconds: float, taken: object) -> None:
    choice = choose("scaling", IMPLEMENTATIONS, V5P, Scaling(1024), table=[_entry(seconds)])
    assert (choice.name == "pallas_tpu") == taken
    assert choice.config == ({"tile": 256} if taken else {})
    said = choice.why if taken else choice.declined["pallas_tpu"]
    assert f"{1 / seconds:.2f}x the baseline" in said


@pytest.mark.parametrize(
    ("target", "call", "kept"),
    [
        (V5P, Scaling(520), True),  # 520 and 1000 both round up to 1024.
        (V5P, Scaling(1032), False),
        (V5P, Scaling(1024, dtype="float32"), False),
        (V5P, Scaling(1024, layout="transposed"), False),
        (Target("tpu", "TPU v6 lite"), Scaling(1024), False),
    ],
)
def test_a_measurement_stands_for_its_bucket_only(
    target: Target, call: Scaling, kept: object
) -> None:
    choice = choose("scaling", IMPLEMENTATIONS, target, call, table=[_entry(0.5)])
    assert (choice.name == "pallas_tpu") == kept


def test_a_measurement_with_another_jaxlib_is_named_and_not_used() -> None:
    old = replace(_entry(0.5), jaxlib="0.1.0")
    choice = choose("scaling", IMPLEMENTATIONS, V5P, Scaling(1024), table=[old])
    assert choice.name == "xla"
    assert "jaxlib 0.1.0" in choice.declined["pallas_tpu"]


@pytest.mark.parametrize("wanted", ["pallas", "pallas_tpu"])
def test_what_is_asked_for_runs_or_says_why_not(wanted: str) -> None:
    choice = choose("scaling", IMPLEMENTATIONS, V5P, Scaling(1024), wanted, [_entry(1.5)])
    assert choice.name == "pallas_tpu"
    assert choice.config == {"tile": 256}  # The best that is known, even where XLA is faster.
    with pytest.raises(UserError, match=r"r=1001 cannot run.*1001 rows are not a multiple of 8"):
        choose("scaling", IMPLEMENTATIONS, V5P, Scaling(1001), wanted)
    with pytest.raises(UserError, match="needs a TPU, and this is cpu"):
        choose("scaling", IMPLEMENTATIONS, CPU, Scaling(1024), wanted)


def test_an_unknown_name_is_answered_with_those_there_are() -> None:
    with pytest.raises(UserError, match=r"'cuda'.*auto, pallas, pallas_tpu, xla"):
        choose("scaling", IMPLEMENTATIONS, V5P, Scaling(8), "cuda")


def test_choices_are_recorded_where_someone_asked_for_them() -> None:
    with recording() as choices:
        choose("scaling", IMPLEMENTATIONS, V5P, Scaling(1024))
    choose("scaling", IMPLEMENTATIONS, V5P, Scaling(8))
    assert [(c.op, c.name, c.call) for c in choices] == [
        ("scaling", "xla", "plain bfloat16 r=1024")
    ]


def test_targets_are_those_of_devices_and_meshes() -> None:
    devices = jax.devices()
    assert target_of() == target_of(devices) == target_of(Mesh(devices, ("data",))) == CPU


def test_only_a_cpu_interprets_and_only_when_asked() -> None:
    target, wanted = asked_for(CPU, "interpret_tpu")
    assert (target.platform, target.interpreted, wanted) == ("tpu", True, "pallas")
    assert asked_for(CPU, "pallas") == (CPU, "pallas")
    with pytest.raises(UserError, match="runs on CPU, and this is TPU v5"):
        asked_for(V5P, "interpret_tpu")


def test_buckets_are_the_next_power_of_two() -> None:
    assert bucket({"m": 1, "k": 4096, "n": 4097}) == "m1_k4096_n8192"


def test_tables_are_read_as_they_were_written(tmp_path: Path) -> None:
    entry = _entry(0.5)
    other = _entry(0.5, target=Target("gpu", "NVIDIA H100 80GB HBM3"))
    written = write(tmp_path, [entry, other])
    assert [path.name for path in written] == ["tpu_v5.json", "nvidia_h100_80gb_hbm3.json"]
    assert sorted(read(tmp_path), key=lambda e: e.device_kind) == [other, entry]
    write(tmp_path, [replace(entry, seconds=0.4)])
    assert [e.seconds for e in read(tmp_path) if e.device_kind == "TPU v5"] == [0.4]


def test_a_file_that_is_no_table_is_named(tmp_path: Path) -> None:
    (tmp_path / "tpu_v5.json").write_text('[{"speed": 3}]')
    with pytest.raises(UserError, match=r"tpu_v5.json is not a tuning table"):
        read(tmp_path)
