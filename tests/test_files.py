import pytest

from nnunet_glims.files import read_json, write_json


def test_a_crash_while_writing_leaves_the_old_file_alone(tmp_path, monkeypatch):
    path = tmp_path / "state.json"
    write_json(path, {"old": 1})
    with pytest.raises(TypeError):
        write_json(path, {"new": object()})
    monkeypatch.setattr("nnunet_glims.files.os.replace", lambda *_: (_ for _ in ()).throw(OSError("killed")))
    with pytest.raises(OSError, match="killed"):
        write_json(path, {"new": 2})
    assert read_json(path) == {"old": 1}
    assert [entry.name for entry in tmp_path.iterdir()] == ["state.json"]
