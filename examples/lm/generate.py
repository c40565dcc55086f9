"""Text from the model, byte by byte."""

from __future__ import annotations

import torch

from .model import KVCache, LanguageModel


@torch.inference_mode()
def generate(model: LanguageModel, prompt: bytes, length: int, temperature: float = 0.7, seed: int = 0) -> bytes:
    """`length` bytes that continue `prompt`; temperature 0 takes the likeliest byte each time.

    Keys and values are cached, so each byte costs one token's work. The same seed gives the same text.
    """
    if not prompt:
        raise ValueError("the prompt is empty; give at least one byte")
    training = model.training
    model.eval()
    generator = torch.Generator().manual_seed(seed)
    device = next(model.parameters()).device
    # What lies further back than one context was never seen in training.
    tokens = torch.tensor([list(prompt[-model.config.context :])], device=device)
    cache: KVCache = []
    start, result = 0, bytearray()
    for _ in range(length):
        logits = model(tokens, cache, start)[0, -1].cpu()
        start += tokens.shape[1]
        if temperature > 0:
            choice = int(torch.multinomial((logits / temperature).softmax(-1), 1, generator=generator))
        else:
            choice = int(logits.argmax())
        result.append(choice)
        tokens = torch.tensor([[choice]], device=device)
    model.train(training)
    return bytes(result)
