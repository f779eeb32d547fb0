"""A writer that dies leaves what was committed and nothing half done, and frees the folder."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from probe.errors import RunFolderInUse
from probe.sample import Sample
from probe.storage.commits import Commits
from probe.storage.store import Array, RunStore, hold

_DIES = """
import os, sys
import numpy as np
from probe.storage.store import Array, RunStore
from probe.sample import Sample
store = RunStore(sys.argv[1])
for unit in ("whole", "half"):
    writer = store.begin_unit(unit, sample=Sample("s", (1, 2)))
    for layer in range(3):
        writer.write_layer(layer, {"entropy": Array(("head", "query"), np.full((4, 2**18), layer, np.float32))})
        if unit == "half" and layer == 1:
            os._exit(9)
    writer.commit()
"""


def test_a_killed_writer_leaves_no_half_unit_and_the_next_one_makes_the_same_bytes(tmp_path: Path) -> None:
    run, undisturbed = tmp_path / "run", tmp_path / "undisturbed"
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    died = subprocess.run([sys.executable, "-c", _DIES, str(run)], env=environment, check=False)
    assert died.returncode == 9
    assert (run / "trace.zarr" / "half" / "entropy").exists()
    (run / "trace.zarr" / "Not ours").mkdir()
    assert list(RunStore(run).committed()) == ["whole"]
    for folder, units in ((run, ["half"]), (undisturbed, ["whole", "half"])):
        with RunStore(folder) as store:
            for unit in units:
                writer = store.begin_unit(unit, sample=Sample("s", (1, 2)))
                for layer in range(3):
                    values = np.full((4, 2**18), layer, np.float32)
                    writer.write_layer(layer, {"entropy": Array(("head", "query"), values)})
                writer.commit()
    assert (run / "trace.zarr" / "Not ours").is_dir()
    (run / "trace.zarr" / "Not ours").rmdir()
    assert contents(run) == contents(undisturbed)


def test_what_a_kill_left_beside_the_units_is_cleared_away(tmp_path: Path, sample: Sample) -> None:
    units = tmp_path / "trace.zarr"
    units.mkdir()
    (units / ".zarr.json.4711.writing").write_bytes(b'{"zarr_for')
    (units / "mine.txt").write_text("keep")
    with RunStore(tmp_path) as store:
        store.begin_unit("u", sample=sample).commit()
    assert sorted(path.name for path in units.iterdir()) == ["mine.txt", "u", "zarr.json"]


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != ".lock"
    }


@pytest.mark.parametrize("recorded", [True, False])
def test_an_interrupt_while_the_record_is_written_leaves_the_unit_whole_or_absent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recorded: bool
) -> None:
    append = Commits.append

    def interrupted(commits: Commits, record: Mapping[str, Any]) -> None:
        if recorded:
            append(commits, record)
        raise KeyboardInterrupt

    with RunStore(tmp_path) as store:
        writer = store.begin_unit("u", sample=Sample("s", (1,)))
        monkeypatch.setattr(store._commits, "append", lambda record: interrupted(store._commits, record))
        writer._committed = store._commits.append
        with pytest.raises(KeyboardInterrupt):
            writer.commit()
    with RunStore(tmp_path) as store:
        if recorded:
            assert store.trace("u").verify() == []
        else:
            store.begin_unit("u", sample=Sample("s", (1,))).commit()


_HOLDS = """
import sys
from probe.storage.store import hold
with hold(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_held_folder_names_its_holder_and_is_free_when_that_is_killed(tmp_path: Path, sample: Sample) -> None:
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen(
        [sys.executable, "-c", _HOLDS, str(tmp_path)], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(RunFolderInUse, match=f"process {other.pid} on "), hold(tmp_path):
            pass
        with pytest.raises(RunFolderInUse, match=f"process {other.pid} on "):
            RunStore(tmp_path).begin_unit("u", sample=sample)
        assert RunStore(tmp_path).committed() == {}
        other.kill()
        other.wait()
        with hold(tmp_path), hold(tmp_path), RunStore(tmp_path) as store:
            store.begin_unit("u", sample=sample).commit()
