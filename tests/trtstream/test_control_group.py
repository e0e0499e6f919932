"""The limits of control groups, from folders laid out as Linux lays them out."""

from __future__ import annotations

from pathlib import Path

import pytest

from trtstream.control_group import cpu_limit, free_memory, memory_limit


@pytest.fixture
def own(tmp_path: Path) -> Path:
    return tmp_path / "own"


@pytest.mark.parametrize(
    ("cpu_max", "limit"), [("max 100000\n", None), ("250000 100000\n", 2.5), ("50000 100000\n", 0.5)]
)
def test_version_2(cpu_max: str, limit: float | None, tmp_path: Path, own: Path) -> None:
    own.write_text("0::/\n")
    (tmp_path / "cpu.max").write_text(cpu_max)
    assert cpu_limit(tmp_path, own) == limit
    assert memory_limit(tmp_path, own) is None
    (tmp_path / "memory.max").write_text("8000\n")
    (tmp_path / "memory.current").write_text("5000\n")
    (tmp_path / "memory.stat").write_text("anon 2500\ninactive_file 2000\n")
    assert (memory_limit(tmp_path, own), free_memory(tmp_path, own)) == (8000, 5000)


def test_version_1(tmp_path: Path, own: Path) -> None:
    own.write_text("7:memory:/a\n3:cpu,cpuacct:/a/b\n1:name=systemd:/\n")
    for folder, quota in (("cpu/a/b", "-1"), ("cpu/a", "150000"), ("cpu", "400000"), ("memory/a", ""), ("memory", "")):
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        if quota:
            (tmp_path / folder / "cpu.cfs_quota_us").write_text(quota)
            (tmp_path / folder / "cpu.cfs_period_us").write_text("100000\n")
    assert cpu_limit(tmp_path, own) == 1.5  # that of the group around this one
    for folder, limit in (("memory/a", 9000), ("memory", 0x7FFFFFFFFFFFF000)):
        (tmp_path / folder / "memory.limit_in_bytes").write_text(f"{limit}\n")
        (tmp_path / folder / "memory.usage_in_bytes").write_text("6000\n")
        (tmp_path / folder / "memory.stat").write_text("cache 1\ntotal_inactive_file 500\n")
    assert (memory_limit(tmp_path, own), free_memory(tmp_path, own)) == (9000, 3500)


def test_a_container_that_sees_its_group_as_the_root(tmp_path: Path, own: Path) -> None:
    own.write_text("0::/docker/0123\n")
    (tmp_path / "cpu.max").write_text("200000 100000\n")
    assert cpu_limit(tmp_path, own) == 2


def test_no_control_groups(tmp_path: Path, own: Path) -> None:
    assert (cpu_limit(tmp_path, own), memory_limit(tmp_path, own), free_memory(tmp_path, own)) == (None, None, None)
