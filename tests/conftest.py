"""What all tests share: a Hugging Face Hub on loopback, the only one that any test can reach.

huggingface_hub reads its environment when it is imported: the variables are set before the first test module.
"""

import gc
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import pytest

from support.forked import Forks
from support.forked import forks as forks_of
from support.hub_server import LoopbackHub

_HF_VARIABLES = ("HF_", "HUGGING_FACE_", "HUGGINGFACE_", "TRANSFORMERS_OFFLINE", "RCLIP_METRIC_ALWAYS_VERIFY")

_server = pytest.StashKey[LoopbackHub]()
_home = pytest.StashKey[str]()
_own_environment = pytest.StashKey[dict[str, str]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--no-mkldnn",
        action="store_true",
        help="compute without oneDNN in the tests' own processes, as torch does where it was built without it",
    )
    parser.addoption(
        "--fuzz-seconds",
        type=float,
        default=6.0,
        help="how long each test of tests/robustness tries damaged input, at least (default: %(default)s)",
    )


def pytest_configure(config: pytest.Config) -> None:
    if "huggingface_hub.constants" in sys.modules:
        raise pytest.UsageError("huggingface_hub was imported before it could be pointed to the loopback Hub")
    config.stash[_own_environment] = dict(os.environ)
    config.stash[_server] = LoopbackHub()
    config.stash[_home] = tempfile.mkdtemp(prefix="rclip-metric-tests-")
    for name in [name for name in os.environ if name.startswith(_HF_VARIABLES)]:
        del os.environ[name]
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    os.environ["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // workers))  # as long as torch is not imported
    # huggingface_hub's uploads use what its own HTTP client deprecates.
    config.addinivalue_line("filterwarnings", "ignore:Use 'content=<...>':DeprecationWarning")
    os.environ |= {
        "HF_ENDPOINT": config.stash[_server].url,
        "HF_HOME": config.stash[_home],
        "RCLIP_METRIC_CACHE": os.path.join(config.stash[_home], "notes"),
        "HF_HUB_DISABLE_XET": "1",  # the loopback Hub has no Xet store
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "OMP_WAIT_POLICY": "PASSIVE",  # threads that wait leave the cores to others, on a machine that is shared
        "NO_PROXY": "127.0.0.1",
        "no_proxy": "127.0.0.1",
    }
    if config.getoption("--no-mkldnn"):
        import torch  # not before the environment is set

        torch.backends.mkldnn.enabled = False  # type: ignore[assignment]


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Import all tests without looking for garbage, which would take a third as long again."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()  # what was imported stays: else every search of the tests would visit 700,000 objects
        gc.enable()


def pytest_unconfigure(config: pytest.Config) -> None:
    if _server not in config.stash:
        return
    config.stash[_server].close()
    shutil.rmtree(config.stash[_home], ignore_errors=True)
    before: dict[str, str] = config.stash[_own_environment]
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture
def hub(request: pytest.FixtureRequest) -> Iterator[LoopbackHub]:
    """The loopback Hub without repositories; every huggingface_hub call of the tests goes to it."""
    server = request.config.stash[_server]
    server.reset()
    yield server
    server.reset()


@pytest.fixture
def outside_environment(request: pytest.FixtureRequest) -> dict[str, str]:
    """The environment that pytest was started in, for a subprocess that needs the user's own Hub cache."""
    return request.config.stash[_own_environment]


@pytest.fixture(scope="session")
def photos() -> Path:
    """The development photographs, for tests that are marked ``photos``: beside the repository, or in RCLIP_PHOTOS."""
    folder = Path(os.environ.get("RCLIP_PHOTOS", Path(__file__).resolve().parents[2] / "shared" / "photos"))
    if not folder.is_dir():
        pytest.skip(f"needs the photographs, and there is no {folder}: set RCLIP_PHOTOS")
    return folder


@pytest.fixture
def fuzz_seconds(request: pytest.FixtureRequest) -> float:
    """How long a test of damaged input goes on."""
    return float(request.config.getoption("--fuzz-seconds"))


@pytest.fixture(scope="session")
def forks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forks]:
    """Commands in processes of their own that need not import anything: `forks.run(["score", a, b])`."""
    with forks_of(tmp_path_factory.mktemp("forks")) as found:
        yield found


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Runs a command in this process: its exit code, and what it wrote to stdout and stderr."""
    from rclip_metric.cli.main import main

    def command(*words: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main([str(word) for word in words])
        told = capsys.readouterr()
        assert "Traceback" not in told.err
        return code, told.out, told.err

    return command
