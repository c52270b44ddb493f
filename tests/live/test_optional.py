"What the room needs from outside is loaded where it is used, and named where it is missing."

import subprocess
import sys

import pytest

MODULES = (
    "model_server",
    "fault_proxy",
    "testbed",
    "scrape",
    "upstream",
    "gateway",
    "trials",
    "many_gateways",
)
BLOCKED = """
import sys

class No:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "{package}":
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, No())
"""


def python(code: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)


@pytest.mark.slow
def test_importing_the_room_loads_no_server_and_no_client():
    imports = "\n".join(f"import arcpoint_ce.live.{name}" for name in MODULES)
    done = python(f"{imports}\nimport sys\nprint(*sorted(sys.modules))")
    assert done.returncode == 0, done.stderr
    assert not {"httpx", "uvicorn", "starlette", "fastapi"} & set(done.stdout.split())


@pytest.mark.slow
@pytest.mark.parametrize("package", ["httpx", "uvicorn"])
def test_a_missing_package_is_named_with_its_extra(tmp_path, package):
    fleet = tmp_path / "f.toml"
    fleet.write_text('[[backend]]\nname = "a"\ncapacity = 1\nurl = "http://127.0.0.1:9"\n')
    words = ["gateway", "--fleet", str(fleet), "--port", "0"]
    run = f"from arcpoint_ce.apps.cli import run\nsys.exit(run({words!r}))"
    done = python(BLOCKED.format(package=package) + run)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert repr(package) in done.stderr and "pip install 'arcpoint_ce[" in done.stderr
