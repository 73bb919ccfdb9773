"""Files of a folder and of the hub's cache; nothing leads out of them."""

import os

import pytest

from altclip_fast.hub import read_json, resolve_file


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "model" / "text").mkdir(parents=True)
    (tmp_path / "model" / "config.json").write_text("{}")
    (tmp_path / "model" / "text" / "vocab.json").write_text("{}")
    (tmp_path / "secret.json").write_text("{}")
    return tmp_path / "model"


@pytest.fixture
def cache(tmp_path):
    """The hub's cache, with one repository: `config.json` is a link to a blob."""
    repository = tmp_path / "hub" / "models--some--clip"
    snapshot = repository / "snapshots" / "0123abc"
    for part in (snapshot, repository / "blobs", repository / "refs"):
        part.mkdir(parents=True)
    (repository / "refs" / "main").write_text("0123abc")
    (repository / "blobs" / "f00d").write_text('{"a": 1}')
    (snapshot / "config.json").symlink_to("../../blobs/f00d")
    return tmp_path / "hub"


def test_folder(folder):
    assert resolve_file(folder, "config.json") == folder / "config.json"
    assert resolve_file(str(folder), "text/vocab.json") == folder / "text" / "vocab.json"
    assert resolve_file(folder, "vocab.json") is None
    assert resolve_file(folder, "text") is None


@pytest.mark.parametrize("name", ["../secret.json", "text/../../secret.json", "/etc/hosts", "", ".", "a\\b", "c:x"])
def test_no_way_out_by_name(folder, name):
    with pytest.raises(ValueError, match=r"filename=.*: a relative path inside the folder is needed"):
        resolve_file(folder, name)


def test_no_way_out_by_link(folder):
    (folder / "link.json").symlink_to("../secret.json")
    with pytest.raises(OSError, match=r"link\.json leads out of its folder, to .*secret\.json; it is not read"):
        resolve_file(folder, "link.json")
    (folder / "inner.json").symlink_to("text/vocab.json")
    assert resolve_file(folder, "inner.json") == folder / "inner.json"


def test_neither_folder_nor_hub_id(folder):
    for source in (folder / "none", "./none", "a/b/c", "a..b", "a b", ""):
        with pytest.raises(FileNotFoundError, match=r"is neither an existing folder nor a hub id"):
            resolve_file(source, "config.json")
    with pytest.raises(NotADirectoryError, match=r"config\.json' is a file; give the folder that holds model\.json"):
        resolve_file(folder / "config.json", "model.json")


def test_cache(cache):
    options = dict(cache_dir=cache, local_files_only=True)
    path = resolve_file("some/clip", "config.json", **options)
    assert read_json(path) == {"a": 1}
    assert resolve_file(path.parent, "config.json") == path  # the snapshot as a folder
    assert resolve_file("some/clip", "model.safetensors", **options) is None
    with pytest.raises(OSError, match=r"'some/other' is no folder here, and config\.json of it is not in the hub's"):
        resolve_file("some/other", "config.json", **options)
    with pytest.raises(OSError, match=r"'some/clip' is no folder here, and config\.json of it"):
        resolve_file("some/clip", "config.json", revision="v2", **options)


class TestHub:
    @pytest.fixture(autouse=True)
    def online(self, monkeypatch):
        import huggingface_hub

        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)

        def install(outcome):
            def download(repo, filename, **options):
                self.asked = (repo, filename, options)
                if isinstance(outcome, Exception):
                    raise outcome
                return os.fspath(outcome)

            monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)

        self.answer = install

    def test_found(self, folder):
        self.answer(folder / "config.json")
        assert resolve_file("some/clip", "config.json", revision="v1", token="t") == folder / "config.json"
        assert self.asked == ("some/clip", "config.json", {"revision": "v1", "cache_dir": None, "token": "t"})

    def test_missing_file(self):
        from huggingface_hub.errors import EntryNotFoundError

        self.answer(EntryNotFoundError("404"))
        assert resolve_file("some/clip", "merges.txt") is None

    def test_other_failures(self):
        from huggingface_hub.errors import LocalEntryNotFoundError

        self.answer(LocalEntryNotFoundError("no connection"))
        with pytest.raises(OSError, match=r"some/clip: the hub cannot be reached, and config\.json is not in its c"):
            resolve_file("some/clip", "config.json")
        self.answer(RuntimeError("401"))
        with pytest.raises(OSError, match=r"some/clip: cannot get config\.json from the hub: 401"):
            resolve_file("some/clip", "config.json")


def test_read_json(tmp_path, monkeypatch):
    path = tmp_path / "x.json"
    path.write_text('{"é": [1]}', encoding="utf-8")
    assert read_json(str(path)) == {"é": [1]}
    with pytest.raises(FileNotFoundError, match=r"none\.json"):
        read_json(tmp_path / "none.json")
    monkeypatch.setattr("altclip_fast.hub._MAX_JSON_BYTES", 5)
    with pytest.raises(ValueError, match=r"x\.json: 11 bytes; a JSON file of at most 5 bytes is read"):
        read_json(path)
