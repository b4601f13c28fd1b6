"""What `training.backbone` trains: the backbone, its text encoder and the heads that ask them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

from nava_core.models.transformer_nava import NavaTransformer3DModel
from training.caption_head import CaptionHead, Captions
from training.clips import Batch
from training.middle_heads import MiddleHeads

logger = logging.getLogger(__name__)
HEADS, HEADS_FILE = ("middle_heads.", "caption_head."), "heads.safetensors"
# The last linear layers of attention and feed-forward network, in the backbone's layers and in the text encoder's.
RESULTS = ("o", "o_audio", "2", "wo")
# A head that attends in time: its rotary pairs of 1, 0.2, 2 and 4 radians a latent frame, and how much each counts.
IN_TIME = {0: 4.8, 1: 2.0, 4: 3.0, 5: 3.0}


class NanoModel(nn.Module):
    """The backbone, the text encoder that learns with it, and the heads that ask both what the clip is of."""

    def __init__(self, config: dict[str, Any], vocabulary: int):
        super().__init__()
        self.transformer = NavaTransformer3DModel(**config["transformer"])
        text_config = UMT5Config(vocab_size=vocabulary, tie_word_embeddings=False, **config["text_encoder"])
        self.text_encoder = UMT5EncoderModel(text_config)
        self.middle_heads = MiddleHeads(self.transformer)
        self.caption_head = CaptionHead(text_config.d_model)
        self._initialise()

    def _initialise(self) -> None:
        """Gates, heads and null token start at zero, so that each layer begins as the identity."""
        transformer = self.transformer
        for block in transformer.transformer_blocks:
            for name, module in block.named_children():
                if name.startswith("modulation"):
                    nn.init.zeros_(module.modulation)
        for projection in (transformer.time_projection[1], transformer.head.head, transformer.head_audio.head):
            nn.init.normal_(projection.weight, std=1e-3)
            nn.init.zeros_(projection.bias)
        for embedding in (transformer.text_embedding, transformer.time_embedding):
            for layer in (embedding[0], embedding[2]):
                nn.init.normal_(layer.weight, std=layer.in_features**-0.5)
                nn.init.zeros_(layer.bias)

    def load(self, folder: Path, tokenizer: PreTrainedTokenizerFast) -> None:
        """Take the weights of a trained model of the same widths; of another vocabulary, the pieces that both know.

        The rows of new pieces are drawn with the old rows' mean and spread. Layers that the trained model lacks begin
        as the identity, and where it has one set of weights for both streams, each begins with a copy of it.
        """
        transformer = NavaTransformer3DModel.from_pretrained(folder / "transformer", torch_dtype=torch.float32)
        own = self.transformer
        take_layers(own.transformer_blocks, transformer.transformer_blocks, transformer.config.num_layers)
        transformer.transformer_blocks = own.transformer_blocks
        own.load_state_dict(transformer.state_dict())
        trained = UMT5EncoderModel.from_pretrained(folder / "text_encoder", dtype=torch.float32)
        take_layers(self.text_encoder.encoder.block, trained.encoder.block, len(trained.encoder.block))
        trained.encoder.block = self.text_encoder.encoder.block
        old = PreTrainedTokenizerFast.from_pretrained(folder / "tokenizer") if (folder / "tokenizer").exists() else None
        if old is None or old.get_vocab() == tokenizer.get_vocab():
            self.text_encoder.load_state_dict(trained.state_dict())
            return
        rows = trained.shared.weight.detach()
        mean, spread = rows.mean(0), rows.std(0)
        moved = mean + spread * torch.randn(len(tokenizer), rows.shape[1])
        known = old.get_vocab()
        for piece, number in tokenizer.get_vocab().items():
            if piece in known:
                moved[number] = rows[known[piece]]
        logger.info("%d of %d pieces are new", len(set(tokenizer.get_vocab()) - set(known)), len(tokenizer))
        state = trained.state_dict()
        state |= {name: moved for name in ("shared.weight", "encoder.embed_tokens.weight") if name in state}
        self.text_encoder.load_state_dict(state)

    @torch.no_grad()
    def attend_in_time(self, layers: int = 3) -> None:
        """Let the last head of the layers after the middle begin by attending to its own moment, of both streams.

        Its queries and keys become nearly constant before the rotary turn, which then favours what is near in time. To
        find that out is slow: until a head attends to the right moment there is nothing to be read there, and until
        something can be read there is no reason to.
        """
        blocks = self.transformer.transformer_blocks
        for block in blocks[len(blocks) // 2 :][:layers]:
            attention = block.self_attn
            rows = slice(-(attention.q.out_features // attention.heads), None)
            own = ("q", "k") if block.streams == 1 else ("q", "k", "q_audio", "k_audio")
            for layer in map(attention.get_submodule, own):
                spread = layer.weight.square().sum(1).mean().sqrt()  # of its results, of an input with spread 1
                layer.weight[rows] *= 0.3
                layer.bias[rows] = 0.0
                for pair, strength in IN_TIME.items():
                    layer.bias[rows][2 * pair] = strength * spread

    def load_heads(self, path: Path) -> bool:
        """Take the heads in the file `path`, which a shipped model is without; whether all of today's were there."""
        missing, _ = self.load_state_dict(load_file(path), strict=False)
        return not any(name.startswith(HEADS) for name in missing)

    def caption_loss(self, captions: Captions) -> Tensor:
        """Cross entropy of what the captions say and where, read from their states alone."""
        states = self.text_encoder(captions.ids, attention_mask=captions.mask).last_hidden_state
        return self.caption_head.loss(states, captions)

    def text_states(self, batch: Batch, dropped: Tensor) -> Tensor:
        """Text states with zeros for padding and for whole texts that are dropped, as the pipeline pads them.

        Of sound alone they are given: the encoder learns beside pictures, and its gradient is a third of such a step.
        """
        with torch.set_grad_enabled(batch.video is not None):
            states = self.text_encoder(batch.ids, attention_mask=batch.mask).last_hidden_state
        return states * (batch.mask * ~dropped[:, None])[..., None]


@torch.no_grad()
def take_layers(layers: Sequence[nn.Module], trained: Sequence[nn.Module], first: int) -> None:
    """Give `layers` the weights of the `trained` ones; let those that are more, after the `first`, add nothing to what
    passes them. The sound's own weights, where a trained layer has none, are those that both streams share there.
    """
    more = len(layers) - len(trained)
    for number, layer in enumerate(layers):
        if first <= number < first + more:
            for name, parameter in layer.named_parameters():
                if name.split(".")[-2] in RESULTS:
                    nn.init.zeros_(parameter)
            continue
        weights = trained[number if number < first else number - more].state_dict()
        shared = {name: name.replace("_audio", "") for name in layer.state_dict() if name not in weights}
        layer.load_state_dict(weights | {name: weights[source] for name, source in shared.items()})
