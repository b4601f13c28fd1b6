"""A Qwen3 model of half a megabyte, to be served by a real vLLM: python tests/tiny_qwen3.py FOLDER

Its weights are random, but for what makes it a chat model that thinks: it writes Chinese letters, ends its thinking
after some dozens of them, and its reply after some hundreds. What it writes means nothing.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

END, END_OF_THINKING = "<|im_end|>", "</think>"
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
THINKING_TEMPLATE = TEMPLATE.replace("assistant\n", "assistant\n<think>\n")
"""As that of Qwen3-4B-Thinking-2507, it opens the thinking, so that a reply has the closing mark alone."""
SYSTEM_PROMPT = Path(__file__).parent.parent / "rewriter" / "system_prompt.txt"

# Logits. Two coordinates of the last hidden state hardly vary: one is the same for all tokens, so its weights act as a
# bias; the other marks a full stop. The common level makes the repetition penalty, a factor, weigh enough that the
# thinking ends once.
LEVEL, SPREAD, NEVER = 20.0, 0.5, -20.0
FULL_STOP, ENDS_THINKING, ENDS_REPLY = 1.2, 4.5, 1.6
STRONG = 8.0


def byte_tokenizer(letters: str = "", template: str = TEMPLATE) -> PreTrainedTokenizerFast:
    """Qwen's marks, a token for each byte, and one for each of `letters`."""
    vocabulary = {byte: index for index, byte in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    splitter = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    merges = []
    for letter in dict.fromkeys(letters):
        whole = splitter.pre_tokenize_str(letter)[0][0]
        for cut in range(1, len(whole)):
            merge = (whole[:cut], whole[cut])
            if whole[: cut + 1] not in vocabulary:
                vocabulary[whole[: cut + 1]] = len(vocabulary)
                merges.append(merge)
    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|endoftext|>", "<|im_start|>", END])
    tokenizer.add_tokens([AddedToken("<think>", special=False), AddedToken(END_OF_THINKING, special=False)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<|endoftext|>", eos_token=END, chat_template=template
    )


def write_chat_model(folder: Path) -> None:
    """Write the model to `folder`, in the layout of the Hub."""
    letters = "".join(
        letter for letter in dict.fromkeys(SYSTEM_PROMPT.read_text(encoding="utf-8")) if "\u4e00" <= letter <= "\u9fff"
    )
    tokenizer = byte_tokenizer(letters + "，。", THINKING_TEMPLATE)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
        max_position_embeddings=32768,
        tie_word_embeddings=False,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
        pad_token_id=tokenizer.pad_token_id,
        dtype="float32",
        initializer_range=0.15,  # more than usual, so that a reply depends on its prompt
    )
    torch.manual_seed(0)
    model = Qwen3ForCausalLM(config)
    with torch.no_grad():
        _shape(model, tokenizer, letters + "，。")
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)


def _shape(model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, letters: str) -> None:
    width, tokens = model.config.hidden_size, model.config.vocab_size
    stop, ends = tokenizer.encode("。")[0], [tokenizer.convert_tokens_to_ids(END_OF_THINKING), tokenizer.eos_token_id]
    bias = torch.full((tokens,), NEVER)
    bias[[tokenizer.encode(letter)[0] for letter in letters]] = LEVEL
    bias[stop] += FULL_STOP
    after_stop = torch.zeros(tokens)
    after_stop[ends] = LEVEL - NEVER + torch.tensor([ENDS_THINKING, ENDS_REPLY])
    embedding, head = model.model.embed_tokens.weight, model.lm_head.weight
    for layer in model.model.layers:  # the layers leave the two coordinates alone
        layer.self_attn.o_proj.weight[:2] = 0
        layer.mlp.down_proj.weight[:2] = 0
    embedding.normal_()
    embedding[:, 0], embedding[:, 1] = STRONG, 0.0
    embedding[stop, 1] = STRONG
    normed = STRONG / ((2 * STRONG**2 + width - 2) / width) ** 0.5
    head.normal_(std=SPREAD / width**0.5)
    head[:, 0], head[:, 1] = bias / normed, after_stop / normed


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python tests/tiny_qwen3.py FOLDER")
    write_chat_model(Path(sys.argv[1]))
