import json
from hashlib import sha256
from pathlib import Path

import pytest
from checkpoint_helpers import targets

from jaxscale.checkpoint.integrity import EarlySums, find_problems, write_checksums
from jaxscale.checkpoint.layout import CHECKSUMS_FILE
from jaxscale.errors import UserError


@pytest.fixture
def two(open_checkpoints, small):
    """Steps 1 and 2, complete."""
    checkpointer = open_checkpoints()
    checkpointer.save(1, small, {"at": 1}, blocking=True)
    checkpointer.save(2, small, {"at": 2}, blocking=True)
    return checkpointer


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def truncate(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


DAMAGES = {"flip": flip_a_bit, "truncate": truncate, "delete": Path.unlink}
REASONS = {"flip": "content changed", "truncate": "was saved with", "delete": "missing"}


def files_of(checkpoint: Path) -> list[str]:
    return sorted(
        p.relative_to(checkpoint).as_posix() for p in checkpoint.rglob("*") if p.is_file()
    )


def test_a_good_checkpoint_has_no_problems_and_every_file_is_summed(two, tmp_path):
    assert two.verify(2) == []
    checkpoint = tmp_path / "checkpoints" / "2"
    summed = json.loads((checkpoint / "checksums.json").read_text())["files"]
    assert sorted([*summed, "checksums.json"]) == files_of(checkpoint)


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_to_any_file_is_reported_by_its_name(two, tmp_path, damage):
    checkpoint = tmp_path / "checkpoints" / "2"
    for name in files_of(checkpoint):
        original = (checkpoint / name).read_bytes()
        DAMAGES[damage](checkpoint / name)
        problems = two.verify(2)
        assert [problem.file for problem in problems] == [name]
        # A cut or broken sum file no longer parses, which is said in its own words.
        if name != "checksums.json":
            assert REASONS[damage] in problems[0].reason
        (checkpoint / name).write_bytes(original)
    assert two.verify(2) == []


def test_restore_falls_back_to_the_newest_good_one_and_says_so(two, small, tmp_path):
    damaged = tmp_path / "checkpoints" / "2" / "metadata.json"
    flip_a_bit(damaged)
    heard: list[str] = []
    restored = two.restore(targets(small), warn=heard.append)
    assert (restored.step, restored.metadata) == (1, {"at": 1})
    assert len(heard) == 1
    assert str(damaged.parent) in heard[0]
    assert "metadata.json: content changed" in heard[0]
    assert two.steps() == [1, 2]


def test_without_a_callback_the_fallback_is_a_python_warning(two, tmp_path):
    (tmp_path / "checkpoints" / "2" / "checksums.json").unlink()
    with pytest.warns(UserWarning, match="checksums.json: missing"):
        assert two.latest_good() == 1


def test_a_damaged_step_that_was_asked_for_is_an_error(two, small, tmp_path):
    flip_a_bit(tmp_path / "checkpoints" / "2" / "metadata.json")
    with pytest.raises(UserError, match=r"(?s)is damaged.*metadata.json: content changed"):
        two.restore(targets(small), step=2)


def test_when_all_are_damaged_nothing_is_restored(two, small, tmp_path):
    for step in ("1", "2"):
        flip_a_bit(tmp_path / "checkpoints" / step / "metadata.json")
    heard: list[str] = []
    with pytest.raises(UserError, match=r"every checkpoint in .* is damaged: \[1, 2\]"):
        two.restore(targets(small), warn=heard.append)
    assert len(heard) == 2


def test_verification_can_be_skipped(two, small, tmp_path):
    (tmp_path / "checkpoints" / "2" / "checksums.json").unlink()
    assert two.restore(targets(small), integrity="skip").step == 2
    assert two.restore(targets(small), step=2, integrity="skip").step == 2


def test_a_damaged_step_is_replaced_when_training_reaches_it_again(two, small, tmp_path):
    flip_a_bit(tmp_path / "checkpoints" / "2" / "metadata.json")
    two.save(2, small, {"at": "again"}, blocking=True)
    assert two.restore(targets(small)).metadata == {"at": "again"}


def test_a_newer_format_is_refused_with_the_fix(two, tmp_path):
    path = tmp_path / "checkpoints" / "2" / "metadata.json"
    path.write_text(path.read_text().replace('"format": 1', '"format": 2'))
    with pytest.raises(UserError, match="has format 2; this version reads up to 1"):
        two.read_metadata(2)


def test_sums_taken_while_files_are_written_are_of_what_is_there_in_the_end(tmp_path):
    for name in ("kept", "appended", "replaced"):
        (tmp_path / name).write_bytes(b"early")
    (tmp_path / "late.__lock").write_bytes(b"half")
    sums = EarlySums(tmp_path)
    sums.start()
    with (tmp_path / "appended").open("ab") as file:
        file.write(b" and late")
    (tmp_path / "new").write_bytes(b"newer")
    (tmp_path / "new").replace(tmp_path / "replaced")
    (tmp_path / "late.__lock").replace(tmp_path / "late")
    sums.start()
    write_checksums(tmp_path, sums.of)
    sums.stop()
    assert find_problems(tmp_path) == []
    flip_a_bit(tmp_path / "kept")
    assert [problem.file for problem in find_problems(tmp_path)] == ["kept"]


def test_checkpoints_with_sha256_of_earlier_versions_are_checked_by_it(tmp_path):
    contents = {"a": b"one", "b/c": b"two"}
    (tmp_path / "b").mkdir()
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    table = {
        name: {"bytes": len(content), "sha256": sha256(content).hexdigest()}
        for name, content in contents.items()
    }
    own = sha256(json.dumps(table, sort_keys=True).encode()).hexdigest()
    document = {"algorithm": "sha256", "files": table, "self": own}
    (tmp_path / CHECKSUMS_FILE).write_text(json.dumps(document))
    assert find_problems(tmp_path) == []
    flip_a_bit(tmp_path / "b" / "c")
    (problem,) = find_problems(tmp_path)
    assert str(problem).startswith("b/c: content changed: sha256 ")
    (tmp_path / CHECKSUMS_FILE).write_text(json.dumps(document | {"algorithm": "md6"}))
    (problem,) = find_problems(tmp_path)
    assert "has md6 sums, which this jaxscale does not know" in str(problem)
