import pytest

from deploy.conditions.limits import container, cpu_limit, limits, memory_limit_mb, stopped, virtual_machine

V2, V1 = "0::/user.slice/job.scope\n", "4:cpu,cpuacct:/docker/abc\n3:memory:/docker/abc\n0::/\n"


@pytest.fixture
def small(machine):
    machine.write("proc/meminfo", "MemTotal:  4194304 kB\n")
    return machine


def test_no_limits(machine):
    assert limits() == {"cpus": None, "memory_mb": None, "stopped": None}
    machine.plant("proc_x86_virtual_machine.txt", under="proc")
    assert (container(), virtual_machine()) == (None, True)


def test_the_tightest_limit_of_this_group_and_those_above_it(small):
    small.write("proc/self/cgroup", V2)
    small.write("sys/fs/cgroup/user.slice/cpu.max", "150000 100000\n")
    small.write("sys/fs/cgroup/user.slice/memory.max", "1073741824\n")
    small.write("sys/fs/cgroup/user.slice/job.scope/cpu.max", "max 100000\n")
    small.write("sys/fs/cgroup/user.slice/job.scope/memory.max", "2147483648\n")
    small.write("sys/fs/cgroup/other.slice/cpu.max", "1000 100000\n")
    assert (cpu_limit(), memory_limit_mb()) == (1.5, 1024)


def test_version_1_in_a_container_that_sees_the_hosts_path(small):
    small.write("proc/self/cgroup", V1)
    small.write("sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us", "50000\n")
    small.write("sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us", "100000\n")
    small.write("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n")
    assert (cpu_limit(), memory_limit_mb()) == (0.5, None)


def test_how_often_the_limits_stopped_us(small):
    small.write("proc/self/cgroup", V2)
    small.write("sys/fs/cgroup/cpu.stat", "usage_usec 5\n")
    small.write("sys/fs/cgroup/user.slice/cpu.stat", "nr_periods 9\nnr_throttled 2\nthrottled_usec 700\n")
    small.write("sys/fs/cgroup/user.slice/job.scope/cpu.stat", "nr_periods 9\nnr_throttled 10\nthrottled_usec 1\n")
    assert stopped() == 12


@pytest.mark.parametrize("text", ["", "max", "0 100000", "100000 0", "-1 100000", "a b", "1 2 3"])
def test_a_limit_of_cpu_time_that_says_nothing(small, text):
    small.write("sys/fs/cgroup/cpu.max", text)
    assert cpu_limit() is None


@pytest.mark.parametrize("path", ["0::/../../etc", "0::", "garbage", "", "0::/gone"])
def test_a_group_that_is_not_there_leaves_the_topmost_one(small, path):
    small.write("proc/self/cgroup", path)
    small.write("sys/fs/cgroup/cpu.max", "200000 100000")
    assert cpu_limit() == 2.0


def test_marks_of_a_container(machine):
    machine.write("proc/1/cgroup", "0::/system.slice/docker-0123.scope\n")
    assert container().endswith("names docker")
    mark = machine.write("dockerenv", "")
    assert container() == f"{mark} is there"
