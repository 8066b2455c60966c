import errno
import hashlib
import io
import json
import subprocess
import sys
from pathlib import Path

import pytest

from deploy.errors import DeviceError
from deploy.install import environment as module
from deploy.install.environment import READY, Wanted, interpreter, is_ready, make_environment
from deploy.install.process import HostGoneError
from tests.fake_device import script

NOTHING = Wanted(system_site_packages=False, requirements=[], wheels={})
NUMPY = Wanted(system_site_packages=False, requirements=["numpy"], wheels={})
ENSURE_PIP = "-Im ensurepip --upgrade --default-pip"
# Plays the interpreter of the device: its `-m venv FOLDER` makes an environment whose Python plays pip.
INTERPRETER = """\
#!/bin/sh
for folder; do :; done
echo "$*" >> "{log}"
{venv}
mkdir -p "$folder/bin"
cat > "$folder/bin/python" << 'END'
#!/bin/sh
echo "$*" >> "{log}"
[ $# -eq 2 ] && exit 0
if [ "$2" = ensurepip ]; then
    {ensurepip}
    exit 0
fi
{pip}
END
chmod +x "$folder/bin/python"
"""


@pytest.fixture
def device(root, tmp_path, monkeypatch):
    """Let another program make environments; return what it was called with."""

    def play(*, venv="", ensurepip="true", pip="true"):
        text = INTERPRETER.format(log=tmp_path / "log", venv=venv, ensurepip=ensurepip, pip=pip)
        monkeypatch.setattr(module.sys, "executable", str(script(tmp_path / "python", text)))
        return lambda: (tmp_path / "log").read_text().splitlines()

    return play


def test_an_environment_is_made_once(root, device, said):
    calls = device()
    key = make_environment(root, NUMPY)
    assert key == NUMPY.key
    folder = root.environments / key
    assert json.loads((folder / READY).read_text()) == {"requirements": ["numpy"], "wheels": []}
    pip = "-m pip install --disable-pip-version-check --no-input numpy"
    assert calls() == [f"-m venv --without-pip {folder}", ENSURE_PIP, pip]
    assert said[1:] == ["pip installs what applies of numpy"]
    assert is_ready(root, NUMPY)
    assert make_environment(root, NUMPY) == key
    assert calls()[3:] == ["-c import sys"] * 2


def test_the_systems_packages_are_let_in_where_that_is_asked(root, device):
    calls = device()
    key = make_environment(root, Wanted(system_site_packages=True, requirements=[], wheels={}))
    assert calls() == [f"-m venv --without-pip --system-site-packages {root.environments / key}", ENSURE_PIP]


def test_pip_looks_nowhere_but_among_the_wheels_that_were_sent(root, device, tmp_path):
    content = b"a wheel"
    sha256 = hashlib.sha256(content).hexdigest()
    root.store.lacking([])
    root.store.receive(sha256, len(content), io.BytesIO(content))
    calls = device(pip=f"ls {root.environments}/.*.wheels >> {tmp_path}/log")
    make_environment(root, Wanted(system_site_packages=False, requirements=["numpy"], wheels={"numpy-2.whl": sha256}))
    assert " --no-index --find-links " in calls()[2]
    assert calls()[3:] == ["numpy-2.whl"]
    assert not list(root.environments.glob(".*"))


def test_whatever_decides_of_it_is_in_the_key():
    one = Wanted(system_site_packages=False, requirements=["a"], wheels={"a.whl": "1"})
    others = [
        Wanted(system_site_packages=True, requirements=["a"], wheels={"a.whl": "1"}),
        Wanted(system_site_packages=False, requirements=["b"], wheels={"a.whl": "1"}),
        Wanted(system_site_packages=False, requirements=["a"], wheels={"a.whl": "2"}),
    ]
    assert len({each.key for each in (one, *others)}) == 4
    assert one.key == Wanted(system_site_packages=False, requirements=("a",), wheels={"a.whl": "1"}).key


@pytest.mark.parametrize(
    ("play", "message"),
    [
        (
            {"pip": "echo ERROR: No matching distribution found for numpy >&2; exit 1"},
            r"pip cannot install numpy \(ERROR: No matching distribution found for numpy\); is all of it in the index",
        ),
        (
            {"ensurepip": "echo '/python: No module named ensurepip' >&2; exit 1"},
            r"cannot make a virtual environment \(/python: No .* ensurepip\); on Debian .* `sudo apt install python3",
        ),
        ({"venv": "echo 'No module named venv' >&2; exit 1"}, "`sudo apt install python3"),
        ({"venv": "echo Killed >&2; exit 137"}, r"cannot make a virtual environment \(Killed\); see to what it names"),
        ({"venv": "exit 3"}, r"\(exit code 3\)"),
    ],
)
def test_a_failure_says_why_and_leaves_nothing(root, device, play, message):
    device(**play)
    before = set(root.environments.iterdir())
    with pytest.raises(DeviceError, match=message):
        make_environment(root, NUMPY)
    assert set(root.environments.iterdir()) == before


def test_a_host_that_goes_leaves_nothing(root, device, host):
    device(pip="sleep 600")
    before = set(root.environments.iterdir())
    host[1].close()
    with pytest.raises(HostGoneError):
        make_environment(root, NUMPY)
    assert set(root.environments.iterdir()) == before


@pytest.mark.parametrize("how", ["gone", "dangling", "broken"])
def test_an_environment_that_does_not_start_any_more_is_made_again(root, device, said, how):
    device()
    folder = root.environments / make_environment(root, NUMPY)
    python = interpreter(folder)
    python.unlink()
    if how == "dangling":  # the system's Python that it was a link to has been replaced
        python.symlink_to(folder / "python3.9")
    elif how == "broken":
        script(python, "#!/bin/sh\nexit 1\n")
    (folder / "old").touch()
    make_environment(root, NUMPY)
    assert "the environment does not start any more: it is made again" in said
    assert python.is_file()
    assert not (folder / "old").exists()


def test_one_that_a_kill_left_half_made_is_made_anew(root, device):
    device()
    (root.environments / NUMPY.key / "bin").mkdir(parents=True)
    (root.environments / NUMPY.key / "bin/half").touch()
    make_environment(root, NUMPY)
    assert not (root.environments / NUMPY.key / "bin/half").exists()


def test_one_whose_removal_was_cut_short_is_not_taken_for_whole(root, device, monkeypatch):
    device()
    folder = root.environments / make_environment(root, NUMPY)
    interpreter(folder).unlink()

    def cut(path, **_):
        raise OSError(errno.EIO, "cut short")

    with monkeypatch.context() as patch:
        patch.setattr("deploy.files.shutil.rmtree", cut)
        with pytest.raises(OSError, match="cut short"):
            make_environment(root, NUMPY)
    assert not is_ready(root, NUMPY)


@pytest.mark.slow
def test_a_real_environment_runs_python(root, tmp_path):
    folder = root.environments / make_environment(root, NOTHING)
    done = subprocess.run(
        [interpreter(folder), "-c", "import sys; print(sys.prefix)"], capture_output=True, text=True, check=True
    )
    assert Path(done.stdout.strip()) == folder
    assert sys.prefix != str(folder)


@pytest.mark.slow
def test_what_the_wheels_lack_is_named(root):
    content = b"no wheel"
    sha256 = hashlib.sha256(content).hexdigest()
    root.store.lacking([])
    root.store.receive(sha256, len(content), io.BytesIO(content))
    wanted = Wanted(
        system_site_packages=False, requirements=["no-such-thing"], wheels={"other-1-py3-none-any.whl": sha256}
    )
    with pytest.raises(
        DeviceError, match=r"Could not find a version .* no-such-thing.*among the wheels that were sent"
    ):
        make_environment(root, wanted)
    assert not (root.environments / wanted.key).exists()
