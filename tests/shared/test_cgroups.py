"""The limits of control groups, read from file trees as kernels and containers show them."""

import os

import pytest

from layermesh.shared.cgroups import Mount, groups_below, memory_limits, processor_limit, read_membership, read_mounts
from layermesh.shared.processor_count import affine_processors, num_processors

V2 = "31 23 0:28 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate"
V1_MEMORY = "35 31 0:32 / /sys/fs/cgroup/memory rw,relatime shared:9 - cgroup cgroup rw,memory"
V1_CPU = "32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct"
HYBRID = "41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw"
OTHERS = (
    "23 1 254:0 / / rw,relatime - ext4 /dev/root rw\n40 31 0:37 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd\n"
)
HUGE = str((1 << 63) - 4096)  # no limit, in version 1
G = 10**9


def tree(folder, mounts, membership, files):
    """What /proc/self says, and the files below /sys/fs/cgroup."""
    proc = folder / "proc/self"
    proc.mkdir(parents=True)
    (proc / "mountinfo").write_text(OTHERS + "\n".join(mounts) + "\n")
    (proc / "cgroup").write_text(membership)
    for name, text in files.items():
        path = folder / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")
    return folder


def v2(group, files):
    return [V2], f"0::{group}\n", files


def v1(group, files):
    named = f"9:name=systemd:/\n4:memory:{group}\n1:cpu,cpuacct:{group}\n"
    return [V1_MEMORY, V1_CPU], named, files


MEMORY = {
    "own group": (v2("/a.service", {"a.service/memory.max": 2 * G, "a.service/memory.current": G}), (2 * G, G)),
    "systemd slice around it": (
        v2(
            "/user.slice/run.scope",
            {"user.slice/run.scope/memory.max": "max", "user.slice/memory.max": 3 * G, "user.slice/memory.current": G},
        ),
        (3 * G, 2 * G),
    ),
    "the tightest of several": (
        v2(
            "/a/b/c",
            {
                "a/memory.max": 5 * G,
                "a/memory.current": 4 * G,
                "a/b/memory.max": 4 * G,
                "a/b/memory.current": G,
                "a/b/c/memory.max": "max",
            },
        ),
        (5 * G, G),
    ),
    "the root of a namespace": (v2("/", {"memory.max": 2 * G, "memory.current": G}), (2 * G, G)),
    "beyond the root of a namespace": (v2("/../other", {"memory.max": 2 * G, "memory.current": 0}), (2 * G, 2 * G)),
    "a container that is told its group's name on the host": (
        v2("/docker/1f0a", {"memory.max": 2 * G, "memory.current": G}),
        (2 * G, G),
    ),
    "a container without a namespace": (
        (
            ["31 23 0:28 /docker/1f0a /sys/fs/cgroup ro - cgroup2 cgroup2 rw"],
            "0::/docker/1f0a/init\n",
            {"init/memory.max": "max", "memory.max": G, "memory.current": 0},
        ),
        (G, G),
    ),
    "files that are cached make room": (
        v2(
            "/a",
            {"a/memory.max": 2 * G, "a/memory.current": 2 * G, "a/memory.stat": f"anon 5\ninactive_file {G}\nactive_file 7"},
        ),
        (2 * G, G + 7),
    ),
    "slowed down before it is killed": (
        v2("/a", {"a/memory.max": 4 * G, "a/memory.high": 2 * G, "a/memory.current": G}),
        (2 * G, G),
    ),
    "over its limit already": (v2("/a", {"a/memory.max": G, "a/memory.current": 2 * G}), (G, 0)),
    "its use cannot be read": (v2("/a", {"a/memory.max": G}), (G, G)),
    "a folder with a space": (
        (["31 23 0:28 / /sys/fs/cgroup/my\\040groups rw - cgroup2 cgroup2 rw"], "0::/a b\n", {"my groups/a b/memory.max": G}),
        (G, G),
    ),
    "version 1": (v1("/job", {"memory/job/memory.limit_in_bytes": 2 * G, "memory/job/memory.usage_in_bytes": G}), (2 * G, G)),
    "slurm": (
        v1(
            "/slurm/uid_1000/job_7/step_0/task_0",
            {
                "memory/slurm/uid_1000/job_7/memory.limit_in_bytes": 2 * G,
                "memory/slurm/uid_1000/job_7/memory.usage_in_bytes": G,
                "memory/slurm/uid_1000/job_7/step_0/memory.limit_in_bytes": HUGE,
                "memory/slurm/uid_1000/job_7/step_0/task_0/memory.limit_in_bytes": HUGE,
                "memory/memory.limit_in_bytes": HUGE,
            },
        ),
        (2 * G, G),
    ),
    "with swap": (
        v1(
            "/job",
            {
                "memory/job/memory.limit_in_bytes": 2 * G,
                "memory/job/memory.usage_in_bytes": 0,
                "memory/job/memory.memsw.limit_in_bytes": 2 * G,
                "memory/job/memory.memsw.usage_in_bytes": G,
            },
        ),
        (2 * G, G),
    ),
    "of an ancestor outside of the container": (
        v1(
            "/",
            {
                "memory/memory.limit_in_bytes": HUGE,
                "memory/memory.usage_in_bytes": G,
                "memory/memory.stat": f"cache 9\ninactive_file 3\nhierarchical_memory_limit {3 * G}\n"
                "total_inactive_file 5\ntotal_active_file 6",
            },
        ),
        (3 * G, 2 * G + 11),
    ),
    "an ancestor that does not count its children": (
        v1(
            "/a/b",
            {
                "memory/a/memory.use_hierarchy": 0,
                "memory/a/memory.limit_in_bytes": G,
                "memory/a/memory.usage_in_bytes": 0,
                "memory/a/b/memory.limit_in_bytes": 2 * G,
                "memory/a/b/memory.usage_in_bytes": 0,
            },
        ),
        (2 * G, 2 * G),
    ),
    "hybrid": (
        (
            [V1_MEMORY, HYBRID],
            "4:memory:/job\n0::/init.scope\n",
            {
                "memory/job/memory.limit_in_bytes": G,
                "memory/job/memory.usage_in_bytes": 0,
                "unified/init.scope/cgroup.procs": 1,
            },
        ),
        (G, G),
    ),
}
NO_LIMIT = {
    "max everywhere": v2(
        "/a/b", {"a/memory.max": "max", "a/b/memory.max": "max", "a/b/memory.high": "max", "a/b/memory.current": 5}
    ),
    "version 1": v1("/a", {"memory/a/memory.limit_in_bytes": HUGE, "memory/memory.limit_in_bytes": HUGE}),
    "another's group": v2("/a", {"b/memory.max": G, "b/memory.current": 0}),
    "a group that is gone": v2("/gone", {}),
    "nonsense": v2("/a", {"a/memory.max": "a lot", "a/memory.current": "-3"}),
    "no groups": ([], "", {}),
    "a hierarchy without memory": ([V1_CPU], "1:cpu,cpuacct:/a\n4:memory:/a\n", {"cpu,cpuacct/a/memory.limit_in_bytes": G}),
}


@pytest.mark.parametrize(("state", "expected"), MEMORY.values(), ids=MEMORY)
def test_the_tightest_limit_on_memory_is_found_wherever_it_stands(tmp_path, state, expected):
    tightest = min(memory_limits(tree(tmp_path, *state)), key=lambda limit: limit.free_bytes)
    assert (tightest.num_bytes, tightest.free_bytes) == expected
    assert "memory." in tightest.name


@pytest.mark.parametrize("state", NO_LIMIT.values(), ids=NO_LIMIT)
def test_where_nothing_limits_memory_there_is_no_limit(tmp_path, state):
    assert memory_limits(tree(tmp_path, *state)) == []


def test_a_system_without_proc_has_no_limits(tmp_path):
    assert memory_limits(tmp_path) == []
    assert processor_limit(tmp_path) is None


def test_files_that_may_not_be_read_are_passed_over(tmp_path):
    tree(tmp_path, *v2("/a", {"a/memory.max": G, "memory.max": 2 * G}))
    (tmp_path / "sys/fs/cgroup/a/memory.max").unlink()
    (tmp_path / "sys/fs/cgroup/a/memory.max").mkdir()  # which root cannot read either
    assert [limit.num_bytes for limit in memory_limits(tmp_path)] == [2 * G]


PROCESSORS = {
    "none": (v2("/a", {"a/cpu.max": "max 100000"}), None),
    "own group": (v2("/a", {"a/cpu.max": "150000 100000"}), 1.5),
    "ancestor": (v2("/a/b", {"a/cpu.max": "50000 100000", "a/b/cpu.max": "max 100000"}), 0.5),
    "the tightest": (v2("/a/b", {"a/cpu.max": "400000 100000", "a/b/cpu.max": "100000 50000"}), 2.0),
    "version 1": (v1("/a", {"cpu,cpuacct/a/cpu.cfs_quota_us": 300000, "cpu,cpuacct/a/cpu.cfs_period_us": 100000}), 3.0),
    "version 1, none": (v1("/a", {"cpu,cpuacct/a/cpu.cfs_quota_us": -1, "cpu,cpuacct/a/cpu.cfs_period_us": 100000}), None),
    "version 1, ancestor": (
        v1("/a/b", {"cpu,cpuacct/a/cpu.cfs_quota_us": 200000, "cpu,cpuacct/a/cpu.cfs_period_us": 100000}),
        2.0,
    ),
    "nonsense": (v2("/a", {"a/cpu.max": "100000 0"}), None),
}


@pytest.mark.parametrize(("state", "expected"), PROCESSORS.values(), ids=PROCESSORS)
def test_the_quota_of_processors_is_found_wherever_it_stands(tmp_path, state, expected):
    assert processor_limit(tree(tmp_path, *state)) == expected


@pytest.mark.parametrize(
    ("quota", "num"), [("max", None), ("20000", 1), ("100000", 1), ("100001", 2), ("99999999", None)], ids=str
)
def test_processors_are_as_many_as_the_quota_pays_for_and_no_more_than_there_are(tmp_path, quota, num):
    system = tree(tmp_path, *v2("/a", {"a/cpu.max": f"{quota} 100000"}))
    assert num_processors(system) == min(num or affine_processors(), affine_processors())
    assert affine_processors() == len(os.sched_getaffinity(0))


def test_hierarchies_are_read_from_the_table_of_mounts():
    assert read_mounts(f"{OTHERS}{V2}\n{V1_CPU}\nhalf a line\n1 2 3 - cgroup2 x y\n") == [
        Mount(1, frozenset({"rw", "name=systemd"}), "/", "/sys/fs/cgroup/systemd"),
        Mount(2, frozenset(), "/", "/sys/fs/cgroup"),
        Mount(1, frozenset({"rw", "cpu", "cpuacct"}), "/", "/sys/fs/cgroup/cpu,cpuacct"),
    ]


def test_groups_are_read_by_controller():
    text = "12:cpu,cpuacct:/a:b\n9:name=systemd:/\n0::/user.slice\nnonsense\n"
    assert read_membership(text) == {"cpu": "/a:b", "cpuacct": "/a:b", "name=systemd": "/", "": "/user.slice"}


@pytest.mark.parametrize(
    ("root", "group", "folders"),
    [
        ("/", "/", ["."]),
        ("/", "/a/b", ["a/b", "a", "."]),
        ("/a", "/a/b", ["b", "."]),
        ("/a", "/a", ["."]),
        ("/other", "/a", ["a", "."]),
        ("/", "/../a", ["."]),
        ("/..", "/", ["."]),
    ],
)
def test_a_group_is_found_below_its_mount_and_so_are_its_ancestors(root, group, folders):
    assert [str(each) for each in groups_below(Mount(2, frozenset(), root, "/sys/fs/cgroup"), group)] == folders
