"The registry: a crash at any byte, and a journal that somebody edited."

import json
from pathlib import Path

import pytest

from arcpoint_ce.engine.registry import Registry


@pytest.fixture
def registry(tmp_path):
    model = tmp_path / "model"
    model.mkdir()
    (model / "forest.npz").write_bytes(b"1234")
    r = Registry(tmp_path / "registry")
    for k in range(3):
        r.add(model, f"hash{k}", dict(mae=10.0 - k), 60.0 * k)
    r.move("v1", "live", 200.0, "first")
    return r


def crashes(registry, act) -> list[dict]:
    "The states that a crash leaves, after every byte that `act` writes."
    path = registry.journal.path
    before = path.read_bytes()
    act()
    after = path.read_bytes()
    assert after.startswith(before) and len(after) > len(before)
    out = []
    for end in range(len(before), len(after) + 1):
        path.write_bytes(after[:end])
        out.append({n: v.state for n, v in Registry(registry.folder).versions().items()})
    return out


def test_a_move_leaves_one_live_model_whenever_it_is_cut_off(registry):
    states = crashes(registry, lambda: registry.move("v2", "live", 300.0, "better"))
    assert all(list(s.values()).count("live") == 1 for s in states)
    assert states[0]["v1"] == "live" and states[-1] == dict(v1="retired", v2="live", v3="candidate")


def test_a_rollback_leaves_one_live_model_whenever_it_is_cut_off(registry):
    registry.move("v2", "live", 300.0, "better")
    states = crashes(registry, lambda: registry.rollback(400.0, "too slow"))
    assert all(list(s.values()).count("live") == 1 for s in states)
    assert states[-1] == dict(v1="live", v2="retired", v3="candidate")
    registry.move("v3", "live", 500.0, "best")
    assert registry.rollback(600.0, "no").name == "v1"  # v2 was rolled back once
    assert "rolled back: no" in registry.get("v3").why


@pytest.mark.parametrize("name", ["../m", "..", "/etc/passwd", "v1/..", "v01", "v-1", "", "v1\n"])
def test_a_name_that_leads_elsewhere_is_refused(registry, name):
    path = registry.journal.path
    path.write_text(path.read_text().replace('"v1"', json.dumps(name)))
    for ask in (registry.versions, registry.live, registry.table, lambda: registry.path_of(name)):
        with pytest.raises(ValueError, match="line 1.*no name of a version"):
            ask()


@pytest.mark.parametrize(
    "line",
    [
        "",
        "{",
        "[]",
        "null",
        "{}",
        '{"schema": 1}',
        '{"schema": 1, "what": "add", "name": "v9"}',
        '{"schema": 1, "what": "move", "name": "v9", "state": "live", "at_s": 1, "why": "x"}',
        '{"schema": 1, "what": "move", "name": "v1", "state": "dead", "at_s": 1, "why": "x"}',
        '{"schema": 1, "what": "move", "name": ["v1"], "state": "live", "at_s": 1, "why": "x"}',
        '{"schema": "new", "what": "move"}',
    ],
)
def test_a_line_that_is_no_event_is_named(registry, line):
    path = registry.journal.path
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(ValueError, match=f"{path.name}, line 5"):
        registry.versions()


def test_the_same_version_is_not_added_twice(registry):
    path = registry.journal.path
    first, *_ = path.read_text().splitlines(keepends=True)
    path.write_text(path.read_text() + first)
    with pytest.raises(ValueError, match="line 5: version 'v1' was added twice"):
        registry.versions()


def test_a_folder_that_is_a_link_is_refused(registry, tmp_path):
    (registry.folder / "v2").rename(tmp_path / "elsewhere")
    (registry.folder / "v2").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="is a link"):
        registry.path_of("v2")


def test_a_journal_of_the_first_version_is_read():
    old = Registry(Path(__file__).parents[1] / "data" / "registry_0_1")
    assert old.live().name == "v1" and old.path_of("v1").is_dir()
