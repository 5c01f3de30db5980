from jaxscale.checkpoint import layout


def tree(directory):
    return sorted(path.name for path in directory.iterdir())


def test_only_plain_decimal_folders_are_steps(tmp_path):
    for name in ("0", "10", "007", "-1", "1.1.saving", "2.replaced", "3.deleting", "latest", "²"):
        (tmp_path / name).mkdir()
    (tmp_path / "5").write_text("a file")
    assert layout.listed_steps(tmp_path) == [0, 10]
    assert layout.listed_steps(tmp_path / "absent") == []


def test_what_a_killed_save_left_is_cleared_and_other_files_stay(tmp_path):
    for name in ("1", "2.1.saving", "3.deleting", "notes.saving"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "part").write_text("x")
    layout.start_staging(layout.staging(tmp_path, 4, 1))
    assert tree(tmp_path) == ["1", "4.1.saving", "notes.saving"]


def test_a_kill_between_the_two_renames_of_a_replacement_loses_nothing(tmp_path):
    (tmp_path / "5.replaced").mkdir()
    (tmp_path / "5.replaced" / "old").write_text("x")
    layout.start_staging(layout.staging(tmp_path, 6, 1))
    assert layout.listed_steps(tmp_path) == [5]
    assert tree(tmp_path / "5") == ["old"]


def test_a_replaced_checkpoint_that_was_not_yet_deleted_is_cleared(tmp_path):
    for name in ("5", "5.replaced"):
        (tmp_path / name).mkdir()
    (tmp_path / "5" / "new").write_text("x")
    layout.start_staging(layout.staging(tmp_path, 6, 1))
    assert tree(tmp_path) == ["5", "6.1.saving"]
    assert tree(tmp_path / "5") == ["new"]
