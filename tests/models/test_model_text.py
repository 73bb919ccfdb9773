"""What texts may look like: masks of every kind, padding on every side, ids, positions, the pooled token."""

import pytest
import torch
from oracle import EOS, LONGEST, PAD, TEXT, assert_close, assert_same, pair, texts

ALT = "AltCLIPTextModel"
CLIP = ("CLIPTextModel", "CLIPTextModelWithProjection")


def check(found, kept=None, **inputs):
    """Equal to transformers: packed, with every hidden state, with attentions (padded), and pooled alone."""
    with torch.no_grad():
        for options in (
            {},
            {"output_hidden_states": True},
            {"output_hidden_states": True, "output_attentions": True},
        ):
            ours, theirs = found.ours(**inputs, **options), found.theirs(**inputs, **options)
            assert_same(ours, theirs, kept)
        tower = getattr(found.ours, "text_model", found.ours)
        expected = theirs.pooler_output if "pooler_output" in theirs else None
        if expected is not None:
            assert_close(tower.pooled(**inputs), expected, "pooled alone")


@pytest.mark.parametrize("side", ["right", "left", "both"])
@pytest.mark.parametrize("name", TEXT)
def test_padding_on_each_side(name, side):
    words = texts((7, 4, 11, 2), longest=13, side=side)
    kept = words["attention_mask"].clone()
    if name == ALT:
        kept[:, 0] = 1  # the pooled token, which is computed even where it is padding
    check(pair(name), kept, **words)


@pytest.mark.parametrize("name", TEXT)
def test_without_padding(name):
    words = texts((5, 5, 5))
    check(pair(name), **words)
    check(pair(name), input_ids=words["input_ids"])


@pytest.mark.parametrize("name", TEXT)
def test_no_mask_looks_at_padding_too(name):
    check(pair(name), input_ids=texts()["input_ids"])


@pytest.mark.parametrize("name", TEXT)
def test_the_longest_text_and_the_shortest(name):
    words = texts((LONGEST, 1, 2))
    check(pair(name), words["attention_mask"], **words)
    check(pair(name), input_ids=torch.tensor([[EOS]]))


@pytest.mark.parametrize("dtype", [torch.bool, torch.int32, torch.uint8, torch.float32, torch.float64])
@pytest.mark.parametrize("name", TEXT)
def test_masks_of_any_dtype(name, dtype):
    words = texts()
    mask = words["attention_mask"].to(dtype)
    check(pair(name), words["attention_mask"], input_ids=words["input_ids"], attention_mask=mask)


@pytest.mark.parametrize("name", TEXT)
def test_ids_of_32_bits(name):
    words = texts()
    check(
        pair(name),
        words["attention_mask"],
        input_ids=words["input_ids"].int(),
        attention_mask=words["attention_mask"],
    )


@pytest.mark.parametrize("name", TEXT)
def test_mask_with_holes(name):
    words = texts((9, 9, 9))
    mask = torch.ones(3, 9, dtype=torch.int64)
    mask[0, 3:5], mask[1, 1], mask[2, 2:7:2] = 0, 0, 0
    check(pair(name), mask, input_ids=words["input_ids"], attention_mask=mask)


@pytest.mark.parametrize("name", TEXT)
def test_mask_and_padding_ids_disagree(name):
    """The mask says which tokens are seen, the ids which positions XLM-R gives them."""
    words = texts((9, 6, 4), longest=9)
    mask = torch.ones(3, 9, dtype=torch.int64)
    mask[0, 7:] = 0  # real ids that are masked
    mask[1, 8:] = 0  # two padding ids that are seen
    words["input_ids"][2, 2] = PAD  # padding in the middle, seen
    kept = mask.clone()
    if name != ALT:
        kept[0, 8] = 1  # the end-of-text token is pooled, although it is masked
    check(pair(name), kept, input_ids=words["input_ids"], attention_mask=mask)


def four_dimensional(mask, causal):
    """[B, 1, S, S] bool of a [B, S] mask."""
    seen = mask.bool()[:, None, None, :].expand(-1, 1, mask.shape[1], -1)
    return seen.tril() if causal else seen.contiguous()


@pytest.mark.parametrize("kind", ["bool", "additive"])
@pytest.mark.parametrize("name", TEXT)
def test_masks_of_four_dimensions(name, kind):
    """transformers adds such a mask to the scores as it is; a bool one is that of sdpa."""
    words, found = texts((7, 4, 11)), pair(name)
    seen = four_dimensional(words["attention_mask"], name != ALT)
    seen[:, :, 3, 1] = False  # which no two-dimensional mask can say
    additive = torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)
    ours = seen if kind == "bool" else additive
    options = {"output_hidden_states": True}
    with torch.no_grad():
        for more in ({}, {"output_attentions": True}):
            theirs = found.theirs(input_ids=words["input_ids"], attention_mask=additive, **options, **more)
            assert_same(found.ours(input_ids=words["input_ids"], attention_mask=ours, **options, **more), theirs)


@pytest.mark.parametrize("name", TEXT)
def test_masks_of_four_dimensions_broadcast(name):
    words, found = texts((7, 4, 11)), pair(name)
    heads = found.ours.config.num_attention_heads
    seen = four_dimensional(words["attention_mask"], name != ALT)[1:2]
    with torch.no_grad():
        whole = found.ours(input_ids=words["input_ids"], attention_mask=seen.expand(3, heads, -1, -1))
        one = found.ours(input_ids=words["input_ids"], attention_mask=seen)
        minus_infinity = torch.zeros(seen.shape).masked_fill(~seen, -torch.inf)
        infinite = found.ours(input_ids=words["input_ids"], attention_mask=minus_infinity)
    for name_, value in whole.items():
        assert_close(one[name_], value, name_)
        assert_close(infinite[name_], value, name_)


@pytest.mark.parametrize("name", TEXT)
def test_explicit_positions(name):
    words = texts()
    shape = words["input_ids"].shape
    for positions in (
        torch.randint(0, 11, shape),
        torch.arange(shape[1])[None].flip(1),
        torch.zeros(shape).int(),
    ):
        if positions.dtype == torch.int32 and name == ALT:
            positions = positions.long()  # transformers gathers token types with them, which takes int64 only
        check(pair(name), words["attention_mask"], **words, position_ids=positions)


def test_token_types():
    words, found = texts(), pair(ALT, "types")
    check(found, words["attention_mask"], **words, token_type_ids=torch.randint(0, 3, words["input_ids"].shape))
    check(found, words["attention_mask"], **words, token_type_ids=torch.full((1, 11), 2).expand(3, 11))
    check(found, words["attention_mask"], **words)


def test_positions_of_one_row_serve_all():
    words, found = texts(), pair(ALT, "types")
    row = {"position_ids": torch.arange(2, 13)[None], "token_type_ids": torch.ones(1, 11, dtype=torch.int64)}
    spread = {key: value.expand(3, 11) for key, value in row.items()}
    with torch.no_grad():
        assert_same(found.ours(**words, **row), found.theirs(**words, **spread), words["attention_mask"])


@pytest.mark.parametrize("mask", [None, "padded"])
def test_embeddings_instead_of_ids(mask):
    """Their positions are counted from the first place, padding or not."""
    found, words = pair(ALT), texts((7, 4, 11))
    given = torch.randn(3, 11, 80)
    if mask is None:
        check(found, inputs_embeds=given)
    else:
        check(found, words["attention_mask"], inputs_embeds=given, attention_mask=words["attention_mask"])
    positions, types = torch.randint(0, 11, (3, 11)), torch.zeros(3, 11, dtype=torch.int64)
    check(found, inputs_embeds=given, position_ids=positions, token_type_ids=types)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_embeddings_are_cast_to_the_dtype_of_the_weights(dtype):
    found, given = pair(ALT), torch.randn(3, 11, 80).to(dtype)
    with torch.no_grad():
        assert_same(found.ours(inputs_embeds=given), found.theirs(inputs_embeds=given.float()))


def test_chunks_of_the_feed_forward():
    words = texts()
    check(pair(ALT, "chunked"), words["attention_mask"], **words)


# Ids of each row; `eos` is the configuration's token, 98, or 2 for the older rule: the largest id.
ENDS = {
    "last": [0, 5, 6, 7, 98],
    "in the middle": [0, 5, 98, 7, 8],
    "several": [0, 98, 6, 98, 98],
    "first": [98, 5, 6, 7, 8],
    "none": [0, 5, 6, 7, 8],
    "not the largest": [0, 97, 6, 50, 5],
    "largest twice": [0, 97, 6, 97, 5],
}


@pytest.mark.parametrize("case", ["odd", "eos2"])
@pytest.mark.parametrize("name", CLIP)
def test_the_pooled_token(name, case):
    found, ids = pair(name, case), torch.tensor(list(ENDS.values()))
    check(found, input_ids=ids)
    for row in ids:
        check(found, input_ids=row[None])
    shuffled = ids[torch.randperm(len(ids))]
    check(found, torch.ones_like(shuffled), input_ids=shuffled, attention_mask=torch.ones_like(shuffled))


@pytest.mark.parametrize("name", CLIP)
def test_an_end_token_that_is_not_the_largest_id(name):
    found = pair(name).copy()
    found.ours.config.eos_token_id = 40
    getattr(found.theirs, "text_model", found.theirs).eos_token_id = 40
    getattr(found.ours, "text_model", found.ours).config.eos_token_id = 40
    check(found, input_ids=torch.tensor([[0, 97, 40, 5, 40], [0, 98, 97, 96, 40], [40, 1, 1, 1, 1]]))


@pytest.mark.parametrize("case", ["odd", "eos2"])
@pytest.mark.parametrize("name", CLIP)
def test_a_mask_that_hides_the_pooled_token(name, case):
    ids = torch.tensor([[0, 5, 6, 7, 98], [0, 9, 98, 8, 7]])
    mask = torch.tensor([[1, 1, 1, 1, 0], [1, 1, 0, 1, 1]])
    kept = torch.ones_like(mask)
    check(pair(name, case), kept, input_ids=ids, attention_mask=mask)


def test_one_hidden_pooled_token_changes_no_other_text():
    found, words = pair("CLIPTextModel"), texts((7, 4, 11))
    hidden = words["attention_mask"].clone()
    hidden[1, 3] = 0
    with torch.no_grad():
        plain = found.ours(**words)
        other = found.ours(words["input_ids"], hidden)
    for row in (0, 2):
        assert_close(other.pooler_output[row], plain.pooler_output[row], f"text {row}")


def test_a_list_of_end_tokens():
    """transformers cannot compare with a list; the first match of any of them counts."""
    found = pair("CLIPTextModel").copy()
    ids = torch.tensor([[0, 5, 40, 7, 98], [0, 98, 40, 7, 8]])
    with torch.no_grad():
        found.ours.config.eos_token_id = 40
        first = found.ours(ids[:1]).pooler_output
        found.ours.config.eos_token_id = EOS
        second = found.ours(ids[1:]).pooler_output
        found.ours.config.eos_token_id = [EOS, 40]
        assert_close(found.ours(ids).pooler_output, torch.cat([first, second]), "pooler_output")


@pytest.mark.parametrize("name", CLIP)
def test_more_leading_dimensions_are_flattened(name):
    ids = texts((5, 5, 5, 5))["input_ids"].view(2, 2, 5)
    check(pair(name), input_ids=ids)


@pytest.mark.parametrize("name", TEXT)
def test_trailing_padding_columns_change_nothing(name):
    words, wide = texts((7, 4, 11)), texts((7, 4, 11), longest=17)
    with torch.no_grad():
        a, b = pair(name).ours(**words), pair(name).ours(**wide)
    for field in a:
        assert_close(b[field][:, :11] if field == "last_hidden_state" else b[field], a[field], field)
