"""What holds for any input: batching, order and padding change nothing, lengths are 1, threads are apart."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import EOS, JOINT, LONGEST, PAD, TEXT, assert_close, assert_same, inputs_for, pair, pixels, texts

LENGTHS = st.lists(st.integers(1, LONGEST), min_size=1, max_size=6)
SEEDS = st.integers(0, 2**32 - 1)
QUICK = settings(deadline=None, max_examples=25, derandomize=True)


@pytest.mark.parametrize("name", JOINT)
@given(lengths=LENGTHS, seed=SEEDS, data=st.data())
@QUICK
def test_batching_order_and_padding_of_texts(name, lengths, seed, data):
    model = pair(name).ours
    words = texts(tuple(lengths), seed=seed)
    wide = texts(tuple(lengths), longest=data.draw(st.integers(max(lengths), LONGEST)), seed=seed)
    order = torch.tensor(data.draw(st.permutations(range(len(lengths)))))
    with torch.no_grad():
        whole = model.get_text_features(**words)
        shuffled = model.get_text_features(**{key: value[order] for key, value in words.items()})
        padded = model.get_text_features(
            input_ids=torch.nn.functional.pad(
                words["input_ids"], (0, wide["input_ids"].shape[1] - max(lengths)), value=PAD
            ),
            attention_mask=wide["attention_mask"],
        )
        alone = [
            model.get_text_features(words["input_ids"][i : i + 1, :n], words["attention_mask"][i : i + 1, :n])
            for i, n in enumerate(lengths)
        ]
    assert_close(shuffled, whole[order], "shuffled")
    assert_close(padded, whole, "padded")
    assert_close(torch.cat(alone), whole, "alone")


@pytest.mark.parametrize("name", JOINT)
@given(batch=st.integers(1, 7), seed=SEEDS, data=st.data())
@QUICK
def test_batching_and_order_of_images(name, batch, seed, data):
    model = pair(name).ours
    images = pixels(model, batch, seed)
    order = torch.tensor(data.draw(st.permutations(range(batch))))
    with torch.no_grad():
        whole = model.get_image_features(images)
        assert_close(model.get_image_features(images[order]), whole[order], "shuffled")
        alone = torch.cat([model.get_image_features(image[None]) for image in images])
    assert_close(alone, whole, "alone")


@pytest.mark.parametrize("name", JOINT)
@given(lengths=LENGTHS, batch=st.integers(1, 4), seed=SEEDS)
@QUICK
def test_embeddings_have_length_one_and_logits_their_angle(name, lengths, batch, seed):
    model = pair(name).ours
    with torch.no_grad():
        output = model(**texts(tuple(lengths), seed=seed), pixel_values=pixels(model, batch, seed))
        for embeds in (output.text_embeds, output.image_embeds):
            assert_close(embeds.norm(dim=-1), torch.ones(len(embeds)), "length")
        cosine = output.text_embeds @ output.image_embeds.T
        assert cosine.abs().max() <= 1 + 1e-6
        assert_close(output.logits_per_text, cosine * model.logit_scale.exp(), "logits_per_text")
        assert torch.equal(output.logits_per_image, output.logits_per_text.T)


def any_mask(draw, batch, length, first):
    """[batch, length] of zeros and ones, no row of zeros; `first` is always seen where it is given."""
    bits = draw(st.lists(st.booleans(), min_size=batch * length, max_size=batch * length))
    mask = torch.tensor(bits).view(batch, length).long()
    if first:
        mask[:, 0] = 1
    mask[mask.sum(1) == 0] = 1
    return mask


@pytest.mark.parametrize("case", ["odd", "eos2"])
@pytest.mark.parametrize("name", TEXT)
@given(batch=st.integers(1, 4), length=st.integers(1, LONGEST), data=st.data())
@QUICK
def test_any_ids_under_any_mask_are_those_of_transformers(name, case, batch, length, data):
    found, alt = pair(name, case), name == "AltCLIPTextModel"
    ids = data.draw(st.lists(st.integers(0, EOS), min_size=batch * length, max_size=batch * length))
    ids = torch.tensor(ids).view(batch, length)
    if alt:
        ids[(ids == PAD).all(1)] = 5
    mask = any_mask(data.draw, batch, length, first=not alt)
    kept, place = mask.clone(), torch.arange(length)
    if alt:
        kept[:, 0] = 1
    else:  # the pooled token is computed, hidden or not
        rule = ids == (ids.amax(1, keepdim=True) if case == "eos2" else EOS)
        kept[torch.arange(batch), torch.where(rule.any(1), torch.where(rule, place, length).amin(1), 0)] = 1
    with torch.no_grad():
        theirs = found.theirs(input_ids=ids, attention_mask=mask, output_hidden_states=True)
        assert_same(found.ours(ids, mask, output_hidden_states=True), theirs, kept)
        late = found.ours(ids, mask)
        assert_close(
            late[0 if not alt and "text_embeds" in late else 1],
            theirs[0 if "text_embeds" in theirs else 1],
            "pooled",
        )
        pooled = getattr(found.ours, "text_model", found.ours).pooled(ids, mask)
        if "pooler_output" in theirs:
            assert_close(pooled, theirs.pooler_output, "pooled alone")


@pytest.mark.parametrize("name", TEXT[1:])
def test_a_pooled_token_that_may_look_at_nothing_is_finite(name):
    """The end-of-text token is masked, and all before it: transformers looks at every token, ours at none."""
    ids, mask = torch.tensor([[0, EOS, 5, 6]]), torch.tensor([[0, 0, 1, 1]])
    with torch.no_grad():
        for options in ({}, {"output_attentions": True}):
            assert all(x.isfinite().all() for x in pair(name).ours(ids, mask, **options).to_tuple()[:2])


@pytest.mark.parametrize("name", JOINT)
def test_what_is_masked_has_no_influence(name):
    model, words = pair(name).ours, texts((7, 4, 11), longest=13)
    other = words["input_ids"].clone()
    hidden = words["attention_mask"] == 0
    other[hidden] = torch.randint(3, EOS, (int(hidden.sum()),))
    with torch.no_grad():
        a = model.get_text_features(**words)
        b = model.get_text_features(other, words["attention_mask"])
    assert torch.equal(a, b)


@pytest.mark.parametrize("name", JOINT)
def test_inputs_are_left_as_they_were(name):
    model = pair(name).ours
    inputs = inputs_for(model, side="both")
    before = {key: value.clone() for key, value in inputs.items()}
    with torch.no_grad():
        model(**inputs, return_loss=True, output_hidden_states=True, output_attentions=True).to_tuple()
        model.get_image_features(inputs["pixel_values"])
    assert all(torch.equal(inputs[key], value) for key, value in before.items())


@pytest.mark.parametrize("name", JOINT)
def test_the_same_call_gives_the_same_bits(name):
    model, inputs = pair(name).ours, inputs_for(pair(name).ours)
    with torch.no_grad():
        first = torch.utils._pytree.tree_leaves(model(**inputs, output_hidden_states=True))
        again = torch.utils._pytree.tree_leaves(model(**inputs, output_hidden_states=True))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@pytest.mark.parametrize("name", JOINT)
def test_eight_threads_on_one_model(name):
    """Different inputs and options at once; each result is that of a call alone."""
    model = pair(name).ours
    jobs = [
        ({**texts((1 + i, 9, 4), seed=i), "pixel_values": pixels(model, 2 + i % 3, seed=i)},
         {"output_hidden_states": i % 2 == 0, "output_attentions": i % 3 == 0})
        for i in range(8)
    ]  # fmt: skip

    def run(job):
        inputs, options = job
        with torch.no_grad():
            return torch.utils._pytree.tree_leaves(model(**inputs, **options).to_tuple())

    alone = list(map(run, jobs))
    with ThreadPoolExecutor(8) as pool:
        for _ in range(5):
            for found, expected in zip(pool.map(run, jobs), alone, strict=True):
                assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_threads_that_read_one_output_at_once():
    model = pair("AltCLIPModel").ours
    with torch.no_grad():
        expected = model(**inputs_for(model)).to_tuple()
        for _ in range(10):
            output = model(**inputs_for(model))
            with ThreadPoolExecutor(8) as pool:
                for found in pool.map(lambda _, output=output: output.to_tuple(), range(8)):
                    assert all(
                        torch.equal(a, b)
                        for a, b in zip(*map(torch.utils._pytree.tree_leaves, (found, expected)), strict=True)
                    )
