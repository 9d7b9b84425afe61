"""Does a model fit a device, and how fast would it be: memory from widths, time from the roofline.

Every figure is an estimate, and `docs/devices.md` has the formulas. The memory of the CPU back ends was compared with
measurements (`scripts/measure_memory.py`); that of TensorRT and of CUDA was not: we have had neither.
"""

from dataclasses import asdict, dataclass, replace
from typing import Any

from tvau_edge.devices.errors import TvauError
from tvau_edge.devices.profile import Profile
from tvau_edge.devices.workload import (
    FLOAT32,
    GGUF_BITS,
    Tower,
    Workload,
    activation_traffic,
    float_operations,
    prefill_operations,
    product_operations,
)


@dataclass(frozen=True, slots=True)
class Engine:
    """What a back end takes beside the weights, measured with scripts/measure_memory.py unless it says otherwise.

    Attributes:
        libraries: bytes of the back end itself.
        floats: how often weights in float lie in memory.
        integers: how often INT8 weights do.
        activations: how often the least that activations need.
    """

    libraries: int
    floats: float
    integers: float
    activations: float


ENGINES = {
    "onnxruntime": Engine(25_000_000, 1.0, 1.6, 1.0),
    "openvino": Engine(84_000_000, 1.6, 1.6, 4.0),
    "tensorrt": Engine(450_000_000, 1.0, 1.0, 1.0),  # not measured: CUDA's context and both libraries
}
PROCESS = 97_000_000  # the interpreter with all that `tvau run` imports
LLAMA = 12_000_000  # llama.cpp's libraries
TOKEN = 120  # bytes of one token of the vocabulary
SMALL = 5_000_000  # stacks and what is too small to count
UBATCH = 512  # tokens that llama.cpp evaluates in one go
REFERENCES = 20  # pictures that an H.264 decoder may hold
WORKSPACE = 1 << 30  # bytes that TensorRT's builder may use besides, where there is room

# The share of a peak that is reached, by what runs: stated, not fitted to each device.
COMPUTE = {"gpu": 0.35, "cpu": 0.35}
BANDWIDTH = {"gpu": 0.5, "cpu": 0.5}
_STEPS_DOWN = ("f16", "q8_0", "q6_k", "q5_k_m", "q4_k_m")


@dataclass(frozen=True, slots=True)
class Setup:
    """How a device would run a model.

    Attributes:
        backend: of vision and RAE.
        precision: of the vision graph.
        gguf: type of the language model; None without one.
        cameras: watched at once.
        temporal_patches: T' of a dialogue.
        picture: pixels of a camera's picture.
    """

    backend: str
    precision: str
    gguf: str | None
    cameras: int
    temporal_patches: int
    picture: int = 1920 * 1080


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes of each part.

    Attributes:
        system: kernel and services.
        process: interpreter and libraries.
        vision: weights of the vision graph and of the RAE.
        activations: of the vision graph.
        language: weights of the language model.
        cache: keys and values.
        scratch: what llama.cpp computes in.
        decoder: pictures of the video decoders.
        evidence: windows of merged tokens.
        engine_build: peak while TensorRT builds the engine, nothing else loaded; 0 for other back ends.
    """

    system: int
    process: int
    vision: int
    activations: int
    language: int
    cache: int
    scratch: int
    decoder: int
    evidence: int
    engine_build: int

    @property
    def own(self) -> int:
        """Bytes of our process: all but the system's, and building, which comes before."""
        parts = (self.process, self.vision, self.activations, self.language, self.cache, self.scratch)
        return sum(parts) + self.decoder + self.evidence

    @property
    def running(self) -> int:
        """Bytes that are in use while it runs."""
        return self.system + self.own


@dataclass(frozen=True, slots=True)
class Speed:
    """Seconds of each part.

    Attributes:
        patch: one temporal patch through the vision graph.
        prefill: a clip and its questions, until the first answer begins.
        token: one token of an answer.
        dialogue: prefill and all answers at their longest.
    """

    patch: float
    prefill: float
    token: float
    dialogue: float

    @property
    def patches_per_second(self) -> float:
        """Temporal patches that can be encoded per second, all cameras together."""
        return 1 / self.patch


@dataclass(frozen=True, slots=True)
class Fit:
    """The answer for one device.

    Attributes:
        device: name of the profile.
        model: name.
        setup: that was asked for.
        memory: of it.
        available: bytes of the device.
        speed: of it.
        needed_rate: temporal patches per second that the cameras give.
        advice: what to change, best first; empty when all is well.
        instead: the nearest setup that fits, None when this one does or none does.
    """

    device: str
    model: str
    setup: Setup
    memory: Memory
    available: int
    speed: Speed
    needed_rate: float
    advice: tuple[str, ...]
    instead: Setup | None

    @property
    def fits(self) -> bool:
        """Whether memory suffices to run; building the engine may use swap."""
        return self.memory.running <= self.available

    @property
    def tight(self) -> bool:
        """Whether less than a tenth of the memory is left."""
        return self.memory.running > 0.9 * self.available

    @property
    def keeps_up(self) -> bool:
        """Whether vision is as fast as the cameras."""
        return self.speed.patches_per_second >= self.needed_rate

    def as_json(self) -> dict[str, Any]:
        """All of it, for a report."""
        totals = {"running": self.memory.running}
        facts = {"fits": self.fits, "tight": self.tight, "keeps_up": self.keeps_up}
        rate = {"patches_per_second": self.speed.patches_per_second}
        return {
            **asdict(self),
            "memory": asdict(self.memory) | totals,
            "speed": asdict(self.speed) | rate,
            **facts,
        }


def activations(tower: Tower, workload: Workload, batch: int) -> int:
    """Bytes of float32 activations that live at the worst moment of the vision graph.

    Held throughout: the stream x and the taps so far. On top comes the largest of three moments: a full attention
    block (queries, keys, values; scores and their softmax), an MLP (norm, gate, up, their product), AHD on one tap.
    """
    clip = workload.clip
    n, w = clip.patches, tower.width
    attention = 4 * n * w + 2 * tower.heads * n * n
    mlp = n * w + 3 * n * tower.mlp
    heatmap = n * (2 * tower.heatmap_hidden + 2 * tower.out)
    held = (2 + tower.taps) * n * w
    return batch * FLOAT32 * (held + max(attention, mlp, heatmap))


def memory(device: Profile, workload: Workload, setup: Setup) -> Memory:
    """Bytes of each part of a setup on a device."""
    clip, decoder = replace(workload.clip, temporal_patches=setup.temporal_patches), workload.decoder
    engine, weights = ENGINES[setup.backend], workload.vision_weights(setup.precision)
    integers = workload.tower.product_weights if setup.precision == "int8" else 0
    window = clip.temporal_patches * clip.merged * workload.tower.out * FLOAT32
    language = cache = scratch = llama = 0
    if setup.gguf is not None and decoder is not None:
        language = workload.language_weights(setup.gguf)
        cache = decoder.kv_bytes * clip.context
        rows = min(UBATCH, clip.context)
        scratch = FLOAT32 * rows * (5 * decoder.width + 4 * decoder.mlp) + 2 * window
        if device.compute.on == "gpu":
            scratch = max(
                scratch, FLOAT32 * rows * decoder.vocabulary
            )  # logits of a whole batch are reserved
        llama = LLAMA + TOKEN * decoder.vocabulary
    build = 0
    if setup.backend == "tensorrt":
        build = device.memory.system + PROCESS + engine.libraries + 3 * weights + WORKSPACE // 2
    return Memory(
        system=device.memory.system,
        process=PROCESS + engine.libraries + llama + SMALL,
        vision=round((weights - integers + workload.rae_bytes) * engine.floats + integers * engine.integers),
        activations=_activations(workload, setup),
        language=language,
        cache=cache,
        scratch=scratch,
        decoder=setup.cameras * REFERENCES * setup.picture * 3 // 2,
        evidence=setup.cameras * window,
        engine_build=build,
    )


def _activations(workload: Workload, setup: Setup) -> int:
    least = activations(workload.tower, workload, setup.cameras)
    if setup.backend == "onnxruntime":
        return 1 << max(20, (least - 1).bit_length())  # its arena grows by doubling
    return round(least * ENGINES[setup.backend].activations)


def speed(device: Profile, workload: Workload, setup: Setup) -> Speed:
    """Seconds of each part: the larger of operations over reached peak and bytes over reached bandwidth."""
    tower, compute = workload.tower, device.compute
    clip = replace(workload.clip, temporal_patches=setup.temporal_patches)
    share, bandwidth = COMPUTE[compute.on], device.memory.bandwidth * BANDWIDTH[compute.on]
    # What stays in float runs as TF32 on tensor cores, at half the rate of FP16.
    plain = (compute.fp16 / 2 if compute.on == "gpu" else compute.fp32) * share
    fast = compute.int8 * (compute.int8_share or share) if setup.precision == "int8" else plain
    computed = product_operations(tower, clip) / fast + float_operations(tower, clip) / plain
    moved = (workload.vision_weights(setup.precision) + activation_traffic(tower, clip)) / bandwidth
    patch = max(computed, moved)
    decoder = workload.decoder
    if setup.gguf is None or decoder is None:
        return Speed(patch, 0.0, 0.0, 0.0)
    # llama.cpp computes products of quantized weights in int8 on a CPU, in FP16 on a GPU.
    rate = compute.fp16 * share if compute.on == "gpu" else compute.int8 * (compute.int8_share or share)
    weights = workload.language_weights(setup.gguf)
    rows = max(1, round(clip.prompt_tokens / UBATCH + 0.5))
    prefill = max(prefill_operations(decoder, clip.prompt_tokens) / rate, rows * weights / bandwidth)
    read = weights * decoder.read_per_token / decoder.parameters + decoder.kv_bytes * clip.context
    token = max(read / bandwidth, 2 * decoder.read_per_token / rate)
    return Speed(patch, prefill, token, prefill + clip.answer_tokens * token)


def preferred(device: Profile, workload: Workload, cameras: int = 1, gguf: str | None = None) -> Setup:
    """The setup that the device's profile prefers; `gguf` overrides its type, "none" leaves the language model out.

    Raises:
        TvauError: the GGUF type is not known.
    """
    kind = (gguf or device.prefer.gguf).lower()
    if kind not in {*GGUF_BITS, "none"}:
        raise TvauError(f"unknown GGUF type {kind!r}; known: {', '.join(GGUF_BITS)}, none")
    language = None if kind == "none" or workload.decoder is None else kind
    prefer = device.prefer
    return Setup(prefer.vision, prefer.precisions[0], language, cameras, workload.clip.temporal_patches)


def fit(device: Profile, workload: Workload, setup: Setup) -> Fit:
    """Say whether a setup fits a device, how fast it is, and what to change."""
    needs, fast = memory(device, workload, setup), speed(device, workload, setup)
    rate = workload.clip.patches_per_second * setup.cameras
    answer = Fit(
        device.name, workload.name, setup, needs, device.memory.bytes, fast, rate, advice=(), instead=None
    )
    advice: list[str] = []
    instead = None
    if not answer.fits:
        instead = next((s for s in smaller(setup) if fits(device, workload, s)), None)
        short = needs.running - device.memory.bytes
        advice.append(f"{short / 1e9:.1f} GB short: {_difference(setup, instead)}")
    elif answer.tight:
        left = device.memory.bytes - needs.running
        advice.append(f"only {left / 1e9:.1f} GB are left: run no desktop and no other service beside it")
    if needs.engine_build > device.memory.bytes:
        missing = needs.engine_build - device.memory.bytes
        advice.append(
            f"building the engine takes {missing / 1e9:.1f} GB more than there is, which swap can carry"
        )
    if not answer.keeps_up:
        reached = fast.patches_per_second / workload.clip.patches_per_second
        change = f"{int(reached)} cameras" if reached >= 1 else "fewer frames per second, or a smaller input"
        reaches = f"vision reaches {fast.patches_per_second:.1f} temporal patches/s"
        advice.append(f"{reaches} of {rate:g} that the cameras give: {change}")
    return replace(answer, advice=tuple(advice), instead=instead)


def fits(device: Profile, workload: Workload, setup: Setup) -> bool:
    """Whether a setup's memory suffices."""
    return memory(device, workload, setup).running <= device.memory.bytes


def smaller(setup: Setup) -> list[Setup]:
    """Setups that need less, smallest change first: a smaller GGUF, a shorter window, no language model."""
    kinds = _STEPS_DOWN[_STEPS_DOWN.index(setup.gguf) + 1 :] if setup.gguf in _STEPS_DOWN else ()
    steps = [replace(setup, gguf=kind) for kind in kinds]
    least = steps[-1] if steps else setup
    if setup.gguf is not None:
        steps += [replace(least, temporal_patches=n) for n in (6, 4) if n < setup.temporal_patches]
        steps.append(replace(setup, gguf=None))
    last = steps[-1] if steps else setup
    if setup.cameras > 1:
        steps.append(replace(last, cameras=1))
    return steps


def _difference(asked: Setup, instead: Setup | None) -> str:
    if instead is None:
        return "nothing that we can change makes it fit; a smaller model does, or a device with more memory"
    if instead.gguf is None and asked.gguf is not None:
        change = "without the language model it fits; verdicts then go without text. A smaller model may fit with it"
    else:
        parts = [f"GGUF {instead.gguf}"] if instead.gguf != asked.gguf else []
        if instead.temporal_patches != asked.temporal_patches:
            parts.append(f"a window of {instead.temporal_patches} temporal patches")
        change = " and ".join(parts) + " fits" if parts else "one camera fits"
    if instead.cameras != asked.cameras:
        change += f", with {instead.cameras} camera"
    return change
