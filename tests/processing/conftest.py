"""Folders of small tokenizers, made once per run."""

import pytest
import transformers
from toy_tokenizers import make_clip, make_sentencepiece, make_xlm_roberta


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """The four kinds of folders that checkpoints come in, by name."""
    root = tmp_path_factory.mktemp("tokenizers")
    paths = {"sentencepiece": make_sentencepiece(root / "sentencepiece"), "clip": make_clip(root / "clip")}
    paths["xlm_roberta"] = make_xlm_roberta(root / "xlm_roberta", paths["sentencepiece"])
    paths["clip_json"] = root / "clip_json"
    transformers.CLIPTokenizer.from_pretrained(paths["clip"]).save_pretrained(paths["clip_json"])
    return paths
