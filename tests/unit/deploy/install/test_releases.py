import errno
import json
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest

import deploy
from deploy.errors import DeviceError
from deploy.files import sha256_file
from deploy.install import releases as module
from deploy.install.process import HostGoneError, RemoteError
from deploy.install.releases import Wanted, install, releases, roll_back, status, used
from tests.fake_device import SPEC, script
from tests.unit.deploy.install.conftest import KEY


def send(root, bundle: dict[str, bytes], folder: Path) -> dict[str, str]:
    files = {}
    for name, content in bundle.items():
        (folder / "blob").write_bytes(content)
        sha256 = sha256_file(folder / "blob")
        if root.store.lacking([(sha256, len(content))]):
            with (folder / "blob").open("rb") as stream:
                assert root.store.receive(sha256, len(content), stream)
        files[name] = sha256
    return files


@pytest.fixture
def place(root):
    return root.target("t")


@pytest.fixture
def device(root):
    """The folder of the environment's Python, where files make it fail."""
    return root.environments / KEY / "bin"


@pytest.fixture
def wanted(root, tmp_path):
    def of(number=1, *, keep=3, engine_sha256=None):
        bundle = {"bundle.json": json.dumps({"name": f"model {number}", "lineage": {}}).encode()}
        spec = {**SPEC, "variants": {"fp32": {"onnx": "bundle", "precision": "fp32"}}}
        files = send(root, bundle, tmp_path)
        return Wanted(target="t", spec=spec, files=files, environment=KEY, keep=keep, engine_sha256=engine_sha256)

    return of


@pytest.fixture
def measured(place):
    """An engine that was compiled and measured."""
    folder = place / "work/engines/fp32"
    folder.mkdir(parents=True)
    manifest = {"precision": "fp32", "runtime": "onnxruntime", "runtime_version": "1", "onnx_sha256": "1"}
    (folder / "manifest.json").write_text(json.dumps({**manifest, "engine": {"sha256": "3"}}))
    (folder / "model").write_text("measured\n")
    return folder


def commands(device: Path) -> list[str]:
    return [line.partition(" ")[0] for line in (device / "commands").read_text().splitlines()]


def test_the_first_release_is_built_tested_and_serves(root, place, device, wanted, said):
    done = install(root, wanted())
    name = done["release"]
    assert done == {
        "release": name, "line": "fp32 on t: relative error 0", "engine": "built", "new": True, "removed": [],
    }  # fmt: skip
    assert name.startswith("0001-")
    assert (place / "current").readlink() == Path("releases", name)
    assert commands(device) == ["fingerprint", "build", "selftest"]
    release = place / "releases" / name
    assert sorted(each.name for each in release.iterdir()) == [
        "bundle", "engine", "environment", "package", "release.json", "run", "spec.json",
    ]  # fmt: skip
    assert (release / "environment").resolve() == device.parent
    assert (release / "package").resolve() == root.package
    assert said == [f"testing release {name}", f"switching to release {name}"]
    (record,) = status(place)["releases"]
    assert (record["release"], record["model"], record["engine_sha256"]) == (name, "model 1", "2")


def test_releases_are_numbered_and_share_what_they_have_in_common(root, place, device, wanted):
    names = [install(root, wanted(number))["release"] for number in (1, 2)]
    assert [name[:5] for name in names] == ["0001-", "0002-"]
    assert status(place)["current"] == names[1]
    assert commands(device)[3:] == ["selftest"]
    engines = [place / "releases" / name / "engine/model" for name in names]
    assert engines[0].stat().st_ino == engines[1].stat().st_ino


def test_the_same_again_is_only_tested(root, place, device, wanted):
    name = install(root, wanted())["release"]
    done = install(root, wanted(keep=5))
    assert done == {
        "release": name, "line": "fp32 on t: relative error 0", "engine": "as before", "new": False, "removed": [],
    }  # fmt: skip
    assert releases(place) == [name]
    assert commands(device)[3:] == ["selftest"]


def test_the_newest_one_is_taken_up_again_after_a_rollback(root, place, wanted):
    names = [install(root, wanted(number))["release"] for number in (1, 2)]
    roll_back(root, "t", to=None)
    done = install(root, wanted(2))
    assert (done["release"], done["engine"], done["new"]) == (names[1], "as before", True)
    assert status(place)["current"] == names[1]
    assert releases(place) == names


def test_no_engine_but_the_one_that_was_measured_is_taken(root, place, wanted, measured):
    first = install(root, wanted(engine_sha256="3"))
    assert first["engine"] == "compiled before"
    (measured / "manifest.json").write_text((measured / "manifest.json").read_text().replace('"3"', '"4"'))
    second = install(root, wanted(engine_sha256="4"))  # built and measured again
    assert (second["engine"], second["new"]) == ("compiled before", True)
    assert second["release"] != first["release"]
    (measured / "manifest.json").write_text("{")
    third = install(root, wanted(engine_sha256="5"))
    assert third["engine"] == "built anew: the one that was measured is not there"
    assert install(root, wanted(engine_sha256="5"))["new"] is False


def test_an_old_release_that_cannot_be_removed_is_no_failure(root, place, wanted, said, monkeypatch):
    def fail(path):
        raise OSError(errno.EROFS, "read-only", str(path))

    first = install(root, wanted(1, keep=1))["release"]
    monkeypatch.setattr(module, "remove_folder", fail)
    done = install(root, wanted(2, keep=1))
    assert (done["new"], done["removed"]) == (True, [])
    assert status(place)["current"] == done["release"]
    assert any(line.startswith(f"warning: release {first} cannot be removed") for line in said)


@pytest.mark.parametrize("how", ["engine", "record"])
def test_the_same_again_is_made_anew_where_it_has_been_spoilt(root, place, device, wanted, said, how):
    name = install(root, wanted())["release"]
    if how == "engine":
        (device / "refuse").write_text("spoilt\n")
        (place / "releases" / name / "engine/model").write_text("spoilt\n")
    else:
        (place / "releases" / name / "release.json").write_text("{")
    done = install(root, wanted())
    assert (done["release"], done["new"]) == (name.replace("0001", "0002"), True)
    assert status(place)["current"] == done["release"]
    assert any("it fails its test" in line and line.endswith("making another") for line in said)


def test_the_engine_that_was_measured_is_taken(root, place, device, wanted, measured):
    done = install(root, wanted())
    assert done["engine"] == "compiled before"
    assert commands(device) == ["selftest"]
    assert (place / "current/engine/model").stat().st_ino == (measured / "model").stat().st_ino


def test_an_engine_that_fails_its_test_is_not_taken(root, place, device, wanted, measured, said):
    (device / "refuse").write_text("measured\n")
    assert install(root, wanted())["engine"] == "built"
    assert "it is not taken: engine 'fp32': other answers" in said
    assert (place / "current/engine/model").read_text() == "built\n"


def test_a_release_that_fails_its_test_never_serves(root, place, device, wanted):
    name = install(root, wanted(1))["release"]
    (device / "refuse").write_text("built\n")
    with pytest.raises(RemoteError, match=r"release 0002-\w{12}: engine 'fp32': other answers") as caught:
        install(root, wanted(2))
    assert caught.value.code == 7
    assert status(place)["current"] == name
    assert [each.name for each in (place / "releases").iterdir()] == [name]


@pytest.mark.parametrize(
    ("file", "words", "error", "message"),
    [
        ("break", "error: no memory\n", RemoteError, "^no memory$"),
        (
            "skip",
            '{"skipped": {"fp32": "no bf16 here"}}',
            DeviceError,
            "variant 'fp32' cannot run on this device: no bf16 here; deploy another",
        ),
    ],
)
def test_an_engine_that_cannot_be_built_leaves_nothing(root, place, device, wanted, file, words, error, message):
    (device / file).write_text(words)
    with pytest.raises(error, match=message):
        install(root, wanted())
    assert list((place / "releases").iterdir()) == []
    assert status(place) == {"current": None, "releases": []}


def test_a_host_that_goes_leaves_the_earlier_release(root, place, wanted, host):
    name = install(root, wanted(1))["release"]
    other = wanted(2)
    host[1].close()
    with pytest.raises(HostGoneError):
        install(root, other)
    assert status(place)["current"] == name
    assert [each.name for each in (place / "releases").iterdir()] == [name]


def test_as_many_releases_stay_as_are_to_be_kept(root, place, wanted):
    names = [install(root, wanted(number, keep=2))["release"] for number in (1, 2)]
    done = install(root, wanted(3, keep=2))
    assert done["removed"] == names[:1]
    assert releases(place) == [names[1], done["release"]]
    assert install(root, wanted(4, keep=1))["removed"] == [names[1], done["release"]]
    assert len(releases(place)) == 1


def test_a_removal_that_is_cut_short_leaves_no_half_release(root, place, wanted, monkeypatch):
    install(root, wanted(1, keep=1))

    def cut(path, **_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("deploy.files.shutil.rmtree", cut)
        with pytest.raises(KeyboardInterrupt):
            install(root, wanted(2, keep=1))
    found = status(place)
    assert [each["release"] for each in found["releases"]] == [found["current"]]
    install(root, wanted(3, keep=3))
    assert not list((place / "releases").glob(".*"))


def test_what_killed_runs_left_is_removed(root, place, wanted):
    (place / "releases/.0001-000000000000.new-999999999/bundle").mkdir(parents=True)
    (place / ".current.new-999999999").symlink_to("releases/none")
    name = install(root, wanted())["release"]
    assert [each.name for each in (place / "releases").iterdir()] == [name]
    assert sorted(each.name for each in place.iterdir()) == ["current", "releases"]


@pytest.fixture
def three(root, wanted):
    return [install(root, wanted(number))["release"] for number in (1, 2, 3)]


def test_an_earlier_release_serves_again(root, place, three, said):
    for to, expected in ((None, 1), ("1", 0), ("0001", 0), ("3", 2), (three[0], 0), (three[1], 1)):
        before = status(place)["current"]
        said.clear()
        done = roll_back(root, "t", to=to)
        assert done == {"release": three[expected], "before": before, "line": "fp32 on t: relative error 0"}
        assert status(place)["current"] == three[expected]
        assert said == [f"testing release {three[expected]}", f"switching to release {three[expected]}"]


def test_one_goes_back_step_by_step_and_forth_by_name(root, place, three):
    roll_back(root, "t", to=None)
    roll_back(root, "t", to=None)
    assert status(place)["current"] == three[0]
    with pytest.raises(DeviceError, match=f"no earlier release is kept; there are .*, and {three[0]} serves"):
        roll_back(root, "t", to=None)
    roll_back(root, "t", to=three[2])
    assert status(place)["current"] == three[2]


def test_the_ten_thousandth_release_is_later_than_the_one_before(place, root, wanted):
    name = install(root, wanted(1))["release"]
    old = place / "releases" / name.replace("0001", "9999")
    (place / "releases" / name).rename(old)
    (place / "current").unlink()
    (place / "current").symlink_to(Path("releases", old.name))
    done = install(root, wanted(2))
    assert done["release"].startswith("10000-")
    assert roll_back(root, "t", to=None)["release"] == old.name


def test_an_unknown_release_is_refused(root, place, three):
    for to in ("4", "0", "", "0001-", "../1", "current"):
        message = f"target 't': no release {to!r} is kept; there are {', '.join(three)}, and {three[2]} serves"
        with pytest.raises(DeviceError, match=message):
            roll_back(root, "t", to=to)
    assert status(place)["current"] == three[2]


def test_a_target_without_releases_has_none_to_go_back_to(root):
    with pytest.raises(DeviceError, match="no earlier release is kept; there are none, and none serves"):
        roll_back(root, "t", to=None)


def test_an_earlier_release_that_fails_its_test_does_not_serve(root, place, three, device):
    (place / "releases" / three[0] / "engine/model").unlink()  # a link that the releases share
    (place / "releases" / three[0] / "engine/model").write_text("bad\n")
    (device / "refuse").write_text("bad\n")
    with pytest.raises(RemoteError, match=f"release {three[0]}: engine 'fp32': other answers"):
        roll_back(root, "t", to="1")
    assert status(place)["current"] == three[2]


def test_a_release_without_a_sound_record_is_named(root, place, three):
    record = place / "releases" / three[0] / "release.json"
    for content in ("{", '{"schema": 2}', '{"schema": 1}', None):
        record.unlink() if content is None else record.write_text(content)
        found = status(place)
        assert found["current"] == three[2]
        assert set(found["releases"][0]) == {"release", "error"}
        assert str(record) in found["releases"][0]["error"]
        with pytest.raises(DeviceError, match=f"{record}: .*; remove {record.parent}, and deploy again"):
            roll_back(root, "t", to="1")
        assert used(root) == ({KEY}, {root.package.name})


def test_what_serves_is_never_missing_while_it_is_switched(root, place, three):
    found, ended = set(), threading.Event()

    def look():
        while not ended.is_set():
            found.add((place / "current/release.json").is_file())

    looking = threading.Thread(target=look)
    looking.start()
    for number in range(100):
        module._switch(replace(root, say=lambda line: None), place, three[number % 3])
    ended.set()
    looking.join()
    assert found == {True}


def test_environments_of_work_and_releases_are_in_use(root, place, wanted):
    install(root, wanted())
    work = root.target("other") / "work"
    work.mkdir(parents=True)
    (work / "environment").write_text("f" * 16 + "\n")
    assert used(root) == ({KEY, "f" * 16}, {root.package.name})


def test_the_folder_can_be_moved(root, place, wanted, tmp_path):
    install(root, wanted())
    root.folder.rename(tmp_path / "elsewhere")
    moved = tmp_path / "elsewhere"
    assert (moved / "targets/t/current/environment/bin/python").is_file()
    assert (moved / "targets/t/current/package").is_dir()


@pytest.mark.parametrize("start", ["absolute", "relative", "link"])
def test_run_runs_the_release_that_it_belongs_to(root, place, wanted, device, start):
    name = install(root, wanted())["release"]
    script(device / "python", "#!/bin/sh\nshift 2\nprintf '%s\\n' \"$@\"\n")
    (place.parent / "student").symlink_to(place / "current/run")
    command = {"absolute": place / "current/run", "relative": "current/run", "link": place.parent / "student"}[start]
    done = subprocess.run([command, "a b.png"], cwd=place, capture_output=True, text=True, check=True)
    release = place.resolve() / "releases" / name
    assert done.stdout.splitlines() == [
        f"{release}/package", "run", "--bundle", f"{release}/bundle", "--engine", f"{release}/engine", "a b.png",
    ]  # fmt: skip


@pytest.mark.slow
def test_a_real_engine_is_built_upgraded_and_used(root, pristine, tmp_path, said):
    package = root.folder / "packages/real"
    package.symlink_to(Path(deploy.__file__).parent.parent)
    real = replace(root, package=package)
    script(root.environments / KEY / "bin/python", f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')

    def wanted(variant):
        folder = pristine / "onnx" / variant
        files = send(real, {file.name: file.read_bytes() for file in folder.iterdir()}, tmp_path)
        spec = {**SPEC, "variants": {variant: {"onnx": "bundle", "precision": variant}}}
        return Wanted(target="t", spec=spec, files=files, environment=KEY, keep=3, engine_sha256=None)

    names = []
    for variant in ("fp32", "int8"):
        done = install(real, wanted(variant))
        assert done["engine"] == "built"
        assert done["line"].startswith(f"{variant} on t: relative error ")
        names.append(done["release"])
    image = next((pristine / "data/images").rglob("*.png"))
    current = root.target("t") / "current"
    answered = subprocess.run([current / "run", image], capture_output=True, text=True, check=True)
    assert answered.stdout
    (root.target("t") / "releases" / names[0] / "engine/model.onnx").unlink(missing_ok=True)
    for file in (root.target("t") / "releases" / names[0] / "engine").iterdir():
        if file.name != "manifest.json":
            file.unlink()
    with pytest.raises(RemoteError, match=f"release {names[0]}: "):
        roll_back(real, "t", to="1")
    assert current.readlink().name == names[1]
