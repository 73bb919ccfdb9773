"""What every test gets: no network, a fixed seed, its share of the cores, and two photos."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"

from pathlib import Path

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when a kernel is defined

NO_GPU = "needs a CUDA device"


def pytest_configure(config):
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    torch.set_num_threads(max(1, torch.get_num_threads() // workers))


def pytest_collection_modifyitems(items):
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason=NO_GPU))


def pytest_terminal_summary(terminalreporter):
    skipped = terminalreporter.stats.get("skipped", [])
    count = sum(isinstance(report.longrepr, tuple) and NO_GPU in report.longrepr[2] for report in skipped)
    if count:
        terminalreporter.write_line(f"{count} gpu tests skipped: {NO_GPU}")


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def photo_paths():
    """china.jpg and flower.jpg, 640 x 427, which come with scikit-learn."""
    from importlib.util import find_spec

    folder = Path(find_spec("sklearn").origin).parent / "datasets" / "images"
    return [folder / "china.jpg", folder / "flower.jpg"]


@pytest.fixture(scope="session")
def photos(photo_paths):
    from PIL import Image

    return [Image.open(path).convert("RGB") for path in photo_paths]


@pytest.fixture(scope="session")
def altclip_folder(tmp_path_factory):
    """A small AltCLIP checkpoint with its processor, written by transformers."""
    from checkpoints import make_altclip_checkpoint

    return make_altclip_checkpoint(tmp_path_factory.mktemp("checkpoints") / "altclip")


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory):
    """A small CLIP checkpoint with its processor, written by transformers."""
    from checkpoints import make_clip_checkpoint

    return make_clip_checkpoint(tmp_path_factory.mktemp("checkpoints") / "clip")


@pytest.fixture(params=["altclip", "clip"])
def folder(request):
    """Each of the two."""
    return request.getfixturevalue(f"{request.param}_folder")
