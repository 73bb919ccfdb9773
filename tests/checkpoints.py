"""Small whole checkpoints, model and processor, in the folders that transformers writes."""

from processing.toy_tokenizers import make_clip, make_sentencepiece, make_xlm_roberta


def perturb(model, spread=0.05):
    """Biases and norms that are not zeros and ones."""
    import torch

    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * spread)
    return model.eval()


def make_altclip_checkpoint(folder):
    """AltCLIP: head_dim 12, three text layers, 30 pixels in patches of 6."""
    import torch
    import transformers as hf
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    torch.manual_seed(1)
    spm = make_sentencepiece(folder.with_name(folder.name + "-sentencepiece"))
    make_xlm_roberta(folder, spm)
    tokenizer = hf.XLMRobertaTokenizer.from_pretrained(folder)
    text = {
        "vocab_size": 1000,
        "hidden_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "intermediate_size": 65,
        "max_position_embeddings": 66,
        "project_dim": 24,
        "initializer_factor": 1.0,
    }
    vision = {
        "hidden_size": 36,
        "intermediate_size": 50,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "image_size": 30,
        "patch_size": 6,
    }
    model = hf.AltCLIPModel(hf.AltCLIPConfig(text_config=text, vision_config=vision, projection_dim=20))
    perturb(model).save_pretrained(folder)
    pixels = CLIPImageProcessorPil(size={"shortest_edge": 30}, crop_size={"height": 30, "width": 30})
    hf.AltCLIPProcessor(pixels, tokenizer).save_pretrained(folder)
    return folder


def make_clip_checkpoint(folder):
    """CLIP: causal text, pooled at the end-of-text token, 32 pixels in patches of 8."""
    import torch
    import transformers as hf
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    torch.manual_seed(2)
    make_clip(folder)
    tokenizer = hf.CLIPTokenizer.from_pretrained(folder)
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": 40,
        "num_hidden_layers": 2,
        "num_attention_heads": 5,
        "intermediate_size": 70,
        "max_position_embeddings": 77,
        "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": tokenizer.bos_token_id,
    }
    vision = {
        "hidden_size": 32,
        "intermediate_size": 44,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": 32,
        "patch_size": 8,
    }
    model = hf.CLIPModel(hf.CLIPConfig(text_config=text, vision_config=vision, projection_dim=20))
    perturb(model).save_pretrained(folder)
    pixels = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    hf.CLIPProcessor(pixels, tokenizer).save_pretrained(folder)
    return folder
