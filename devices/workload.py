"""What a model needs, from its widths alone: parameters, operations and bytes of each part.

An operation is a multiplication or an addition. N is the number of patches of a temporal patch, M = N / 4 that of
merged tokens, w the tower's width, D the language model's. The letters stand in docs/devices.md as well.
"""

from dataclasses import dataclass, replace

FLOAT32 = 4  # bytes
_PIXELS = 2 * 3 * 14 * 14  # numbers of two frames in one patch
_MERGED = 4  # patches that become one token
# Bits for each weight of a GGUF type, scales included; the k-quants' are llama.cpp's averages over a whole model.
GGUF_BITS = {
    "f32": 32.0,
    "f16": 16.0,
    "bf16": 16.0,
    "q8_0": 8.5,
    "q6_k": 6.5625,
    "q5_k_m": 5.69,
    "q4_k_m": 4.85,
}
KV_BYTES = 2  # of a number in the KV cache, f16


@dataclass(frozen=True, slots=True)
class Tower:
    """Widths of the vision tower with AHD.

    Attributes:
        blocks: of the tower.
        width: w.
        heads: of the attention.
        mlp: inner width of the SwiGLU.
        out: D, width of the merged tokens.
        full_attention: blocks that attend over the whole grid; the others attend inside windows.
        window: patches in a whole window.
        taps: that AHD reads.
        heatmap_hidden: inner width of AHD's MLPs.
    """

    blocks: int
    width: int
    heads: int
    mlp: int
    out: int
    full_attention: int
    window: int
    taps: int
    heatmap_hidden: int

    @property
    def block_weights(self) -> int:
        """Weights of the four products of a block: qkv, proj, gate and up, down."""
        return 4 * self.width**2 + 3 * self.width * self.mlp

    @property
    def merger_weights(self) -> int:
        """Weights of the merger's two products."""
        wide = _MERGED * self.width
        return wide * wide + wide * self.out

    @property
    def product_weights(self) -> int:
        """Weights that INT8 quantizes: blocks and merger."""
        return self.blocks * self.block_weights + self.merger_weights

    @property
    def heatmap_weights(self) -> int:
        """Weights of AHD."""
        return self.taps * self.heatmap_hidden * (self.width + self.out)

    @property
    def other_weights(self) -> int:
        """What stays in float: patch embedding, AHD, biases and norms."""
        biases = self.blocks * (7 * self.width + 2 * self.mlp) + 5 * self.width + self.out
        biases += self.taps * (self.heatmap_hidden + self.out + 1)
        return _PIXELS * self.width + self.heatmap_weights + biases

    @property
    def parameters(self) -> int:
        """All weights."""
        return self.product_weights + self.other_weights


@dataclass(frozen=True, slots=True)
class Decoder:
    """Widths of the language model."""

    layers: int
    width: int
    heads: int
    kv_heads: int
    mlp: int
    vocabulary: int
    tied: bool

    @property
    def kv_width(self) -> int:
        """Width of the keys, and of the values."""
        return self.width // self.heads * self.kv_heads

    @property
    def layer_weights(self) -> int:
        """Weights of a layer: q, o, k, v, and the SwiGLU; biases and norms."""
        products = 2 * self.width**2 + 2 * self.width * self.kv_width + 3 * self.width * self.mlp
        return products + 3 * self.width + 2 * self.kv_width

    @property
    def parameters(self) -> int:
        """All weights; a tied head is the embedding."""
        embeddings = self.vocabulary * self.width * (1 if self.tied else 2)
        return self.layers * self.layer_weights + embeddings + self.width

    @property
    def read_per_token(self) -> int:
        """Weights that one token of an answer reads: the layers and the head."""
        return self.layers * self.layer_weights + self.vocabulary * self.width

    @property
    def kv_bytes(self) -> int:
        """Bytes of the KV cache for each token."""
        return 2 * self.layers * self.kv_width * KV_BYTES


@dataclass(frozen=True, slots=True)
class Clip:
    """How a clip is seen and asked about.

    Attributes:
        width: pixels.
        height: pixels.
        frames_per_second: that the checkpoint sees.
        temporal_patches: T' of a dialogue.
        base_tokens: N_base of the RAE.
        text_tokens: of template and questions.
        answer_tokens: of all answers, at most.
    """

    width: int = 448
    height: int = 252
    frames_per_second: float = 4.0
    temporal_patches: int = 8
    base_tokens: int = 10
    text_tokens: int = 300
    answer_tokens: int = 240

    @property
    def patches(self) -> int:
        """N: patches of a temporal patch."""
        return self.width // 14 * (self.height // 14)

    @property
    def merged(self) -> int:
        """M: merged tokens of a temporal patch."""
        return self.patches // _MERGED

    @property
    def prompt_tokens(self) -> int:
        """Tokens that stand before the first answer: P_V, P_An and the text."""
        steps = self.temporal_patches - 1
        return self.temporal_patches * self.merged + steps * (self.base_tokens + 10) + self.text_tokens

    @property
    def context(self) -> int:
        """Tokens of a whole dialogue."""
        return self.prompt_tokens + self.answer_tokens

    @property
    def patches_per_second(self) -> float:
        """Temporal patches that one camera gives."""
        return self.frames_per_second / 2


@dataclass(frozen=True, slots=True)
class Workload:
    """A model, and how it is used.

    Attributes:
        name: of the model.
        tower: vision.
        decoder: language; None without one.
        clip: geometry.
        vision_bytes: of each vision graph, by precision, where files tell; else it is computed.
        language_bytes: of each GGUF, by its type, where files tell.
        rae_bytes: of the RAE graph.
    """

    name: str
    tower: Tower
    decoder: Decoder | None
    clip: Clip
    vision_bytes: dict[str, int]
    language_bytes: dict[str, int]
    rae_bytes: int = 30_000_000

    def with_clip(self, temporal_patches: int) -> "Workload":
        """The same with a shorter or longer window."""
        return replace(self, clip=replace(self.clip, temporal_patches=temporal_patches))

    def vision_weights(self, precision: str) -> int:
        """Bytes of the vision graph's weights: INT8 products and float for the rest, or float throughout."""
        if precision in self.vision_bytes:
            return self.vision_bytes[precision]
        tower = self.tower
        if precision == "int8":
            return tower.product_weights + tower.other_weights * FLOAT32
        return tower.parameters * FLOAT32

    def language_weights(self, kind: str) -> int:
        """Bytes of the language model at a GGUF type."""
        if kind in self.language_bytes:
            return self.language_bytes[kind]
        return round(self.decoder.parameters * GGUF_BITS[kind] / 8) if self.decoder else 0


SEVEN_B_TOWER = Tower(32, 1280, 16, 3420, 3584, 4, 64, 4, 2048)
THREE_B_TOWER = replace(SEVEN_B_TOWER, out=2048)
MODELS = {
    "7b": Workload("7b", SEVEN_B_TOWER, Decoder(28, 3584, 28, 4, 18944, 152064, False), Clip(), {}, {}),
    "3b": Workload("3b", THREE_B_TOWER, Decoder(36, 2048, 16, 2, 11008, 151936, True), Clip(), {}, {}),
}


def product_operations(tower: Tower, clip: Clip) -> int:
    """Operations of the tower's products for one temporal patch, what INT8 speeds up."""
    blocks = 2 * clip.patches * tower.blocks * tower.block_weights
    return blocks + 2 * clip.merged * tower.merger_weights


def float_operations(tower: Tower, clip: Clip) -> int:
    """Operations that stay in float: patch embedding, attention and AHD."""
    whole = tower.full_attention * clip.patches
    windows = (tower.blocks - tower.full_attention) * min(tower.window, clip.patches)
    attention = 4 * clip.patches * tower.width * (whole + windows)
    return 2 * clip.patches * (_PIXELS * tower.width + tower.heatmap_weights) + attention


def activation_traffic(tower: Tower, clip: Clip) -> int:
    """Bytes of float32 activations that the blocks write and read again, each once."""
    scores = 2 * tower.heads * min(tower.window, clip.patches)
    return 2 * FLOAT32 * clip.patches * tower.blocks * (12 * tower.width + 3 * tower.mlp + scores)


def prefill_operations(decoder: Decoder, tokens: int) -> int:
    """Operations that evaluate a prompt; the head is asked for the last token only."""
    attention = 2 * tokens * tokens * decoder.width * decoder.layers
    return (
        2 * tokens * decoder.layers * decoder.layer_weights
        + attention
        + 2 * decoder.vocabulary * decoder.width
    )
