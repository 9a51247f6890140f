"""What a codec does to a model's next tokens: agreement with an uncompressed control, for a real small model.

The KV cache of a text is dumped through ``Compress|Posix`` and loaded back, block by block, and the model goes on from
it, along the same text. At each token, the most likely next one is compared with that of a run that goes on from the
cache as it was. A row says how often both agree, and how far their probabilities are apart (Kullback-Leibler
divergence, nats a token).

Needs torch and transformers, and a directory with a causal language model that transformers can load; with ``--gguf``
its weights are read from a GGUF file there::

    pip install ucm-async torch transformers gguf accelerate
    python examples/next_token_agreement.py MODEL_DIRECTORY [--gguf model.gguf] [--text FILE]
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache

import ucm_async as ucm

BLOCK_TOKENS = 16
CODECS = (
    "huffman",
    "fp8_e4m3+huffman",
    "int8+huffman",
    "int4:group_tokens=16,group_channels=32",
    "int4+huffman",
)


def main() -> None:
    """Measure every codec, and print a table or JSON."""
    args = arguments()
    model, tokenizer = load_model(args.model, args.gguf)
    text = args.text.read_text() if args.text else Path(__file__).with_name("frontend.py").read_text() + str(__doc__)
    tokens = tokenizer(text, return_tensors="pt").input_ids[:, : args.context + args.follow]
    context = (tokens.shape[1] - args.follow) // BLOCK_TOKENS * BLOCK_TOKENS
    if context < BLOCK_TOKENS:
        raise SystemExit(f"the text has {tokens.shape[1]} tokens, must have {args.follow + BLOCK_TOKENS} at least")
    tokens = tokens[:, : context + args.follow]
    with torch.no_grad():
        cache = model(tokens[:, :context], use_cache=True).past_key_values
        layers = [(layer.keys.clone(), layer.values.clone()) for layer in cache.layers]
        control = go_on(model, layers, tokens, context)
        told = [
            {"codec": codec} | compare(control, go_on(model, restored, tokens, context)) | {"ratio": ratio}
            for codec in args.codec or CODECS
            for restored, ratio in [through_store(layers, codec)]
        ]
    about = {"context": context, "tokens_compared": args.follow}
    if args.json:
        print(json.dumps(about | {"codecs": told}, indent=2))
        return
    print(f"{context} tokens of context, {args.follow} next tokens compared")
    for one in told:
        print(
            f"{one['codec']:42} ratio {one['ratio']:.3f}  same next token {one['agreement']:.4f}  "
            f"divergence {one['divergence']:.2e}"
        )


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="directory of the model")
    parser.add_argument("--gguf", help="file in it that has the weights")
    parser.add_argument("--text", type=Path, help="default: this example and its neighbour")
    parser.add_argument("--codec", action="append", help="may be given several times")
    parser.add_argument("--context", type=int, default=1024, help="tokens whose KV is stored (default: %(default)s)")
    parser.add_argument("--follow", type=int, default=256, help="next tokens compared (default: %(default)s)")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


def load_model(directory: Path, gguf: str | None) -> tuple[Any, Any]:
    """Load model and tokenizer, in bfloat16."""
    keys: dict[str, Any] = {"local_files_only": True} | ({"gguf_file": gguf} if gguf else {})
    tokenizer = AutoTokenizer.from_pretrained(directory, **keys)
    if gguf:
        from transformers import GgufConfig  # noqa: PLC0415  (only newer versions have it, and only GGUF needs it)

        keys["quantization_config"] = GgufConfig(dequantize=True)
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.bfloat16, **keys)
    return model.eval(), tokenizer


def go_on(model: Any, layers: list[tuple[torch.Tensor, torch.Tensor]], tokens: torch.Tensor, context: int) -> Any:
    """Return log probabilities of each next token, after the cache `layers` of the first `context` tokens."""
    cache = DynamicCache()
    for number, (keys, values) in enumerate(layers):
        cache.update(keys.clone(), values.clone(), number)
    logits = model(tokens[:, context:], past_key_values=cache, use_cache=True).logits[0]
    return torch.log_softmax(logits.float(), dim=-1)


def compare(control: torch.Tensor, other: torch.Tensor) -> dict[str, float]:
    """Return how often the most likely token is the same, and the mean divergence of `other` from `control`."""
    same = (control.argmax(dim=-1) == other.argmax(dim=-1)).float().mean()
    divergence = (control.exp() * (control - other)).sum(dim=-1).mean()
    return {"agreement": float(same), "divergence": float(divergence)}


def through_store(
    layers: list[tuple[torch.Tensor, torch.Tensor]], codec: str
) -> tuple[list[tuple[torch.Tensor, torch.Tensor]], float]:
    """Dump a cache through ``Compress|Posix``, load it again, and tell the ratio of what was stored."""
    blocks = to_blocks(layers)
    back = np.empty_like(blocks)
    _, heads, _, channels = layers[0][0].shape
    layout = {
        "compress_parts": "kv",  # keys and values of a layer, then those of the next one
        "compress_tokens": BLOCK_TOKENS,
        "compress_channels": channels,
        "compress_part_bytes": BLOCK_TOKENS * heads * channels * 2,
    }

    async def there_and_back(directory: str) -> float:
        keys = {"storage_backends": [directory], "block_size": blocks.shape[1], "compress_codec": codec}
        ids = ucm.block_ids(range(len(blocks)))
        async with ucm.open_store("Compress|Posix", **keys, **layout) as store:
            (await store.dump(ids, None, blocks)).raise_for_failures()
            (await store.load(ids, None, back)).raise_for_failures()
            return float(store.statistics().pipeline["Compress"]["stage"]["ratio"])

    with tempfile.TemporaryDirectory() as directory:
        ratio = ucm.run(there_and_back(directory))
    return from_blocks(back, layers), ratio


def to_blocks(layers: list[tuple[torch.Tensor, torch.Tensor]]) -> Any:
    """Return blocks of 16 tokens: uint8, shape (blocks, bytes); in each, layer by layer, keys and then values."""
    parts = [half[0].view(torch.uint16).numpy() for layer in layers for half in layer]
    heads, tokens, channels = parts[0].shape
    cut = [one.reshape(heads, tokens // BLOCK_TOKENS, BLOCK_TOKENS, channels).swapaxes(0, 1) for one in parts]
    stacked = np.ascontiguousarray(np.stack(cut, axis=1))
    return stacked.reshape(len(stacked), -1).view(np.uint8)


def from_blocks(blocks: Any, like: list[tuple[torch.Tensor, torch.Tensor]]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Undo `to_blocks`."""
    _, heads, tokens, channels = like[0][0].shape
    parts = blocks.view(np.uint16).reshape(-1, 2 * len(like), heads, BLOCK_TOKENS, channels)
    halves = [
        torch.from_numpy(np.ascontiguousarray(parts[:, i].swapaxes(0, 1)).reshape(1, heads, tokens, channels)).view(
            torch.bfloat16
        )
        for i in range(2 * len(like))
    ]
    return list(zip(halves[0::2], halves[1::2], strict=True))


if __name__ == "__main__":
    main()
