"""Bytes that training and sampling need on one GPU or a CPU, term by term: calculated, not measured.

The activations of a layer are what autograd keeps of it, counted in transformers' Llama, Qwen2 and Qwen3 and held by a
test that counts them again. What no formula here knows is left to a reserve: the allocator's gaps, the workspaces of
products, buffers of NCCL and of vLLM, gradients of activations on their way.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

import torch

from equipoise.models.architectures import ParameterCount, Shape
from equipoise.statistics.walk import tile_width

Phase = Literal["always", "learning", "sampling"]

FLOAT32, HALF = 4, 2
OPTIMIZER_STATES = {"adamw_torch": 8, "adamw_torch_fused": 8, "adamw_8bit": 2, "adamw_bnb_8bit": 2,
                    "paged_adamw_8bit": 2, "sgd": 0}  # fmt: skip
"""Bytes per trained parameter held in float32 (those of 8 bits: in any type)."""

ZERO2_BUCKETS = 2 * 500_000_000
"""Elements of DeepSpeed's two gradient buckets, at its default size."""
ZERO3_LIVE, ZERO3_BUCKET, ZERO3_GROUP = 1_000_000_000, 500_000_000, 1_000_000_000
"""Elements that ZeRO-3 keeps gathered, of its gradient bucket, and that it steps at a time: DeepSpeed's defaults."""


@dataclass(frozen=True)
class Term:
    """One term of the memory of a GPU.

    Attributes:
        name: what it is.
        num_bytes: on one GPU.
        formula: how it was calculated.
        phase: "learning" and "sampling" follow each other; "always" is there in both.
    """

    name: str
    num_bytes: int
    formula: str
    phase: Phase = "always"


LIBRARIES = Term(
    "libraries", int(0.66 * 2**30), "allowance: Python, torch, transformers, TRL as loaded, measured before the model"
)
"""Of a process on a CPU. A figure of one installation (docs/recipes.md), not a formula."""


@dataclass(frozen=True)
class Sharding:
    """How parameters, gradients and optimizer state are spread.

    Attributes:
        kind: "none" (one process, or DDP), "fsdp2", "zero2" or "zero3".
        processes: GPUs they are spread over.
    """

    kind: Literal["none", "fsdp2", "zero2", "zero3"]
    processes: int


def model_terms(
    count: ParameterCount, sharding: Sharding, *, saved_bytes: int, optimizer: str, mixed: bool, reference: bool
) -> list[Term]:
    """Weights, gradients and optimizer state.

    Args:
        count: of the parameters.
        sharding: of them.
        saved_bytes: of a parameter as it is loaded.
        optimizer: name of transformers' `optim`.
        mixed: bf16 or fp16 mixed precision.
        reference: a frozen copy of the model is kept (beta is not 0, without an adapter).
    """
    n, t, w = count.total, count.trainable, sharding.processes
    frozen = n - t
    states = OPTIMIZER_STATES.get(optimizer, 8)
    if sharding.kind == "zero2":
        terms = [
            Term("weights", HALF * n, f"2 B x {n:,}, whole on every GPU"),
            Term("gradients", HALF * t // w + HALF * ZERO2_BUCKETS, f"2 B x {t:,} / {w} + 2 buckets of 1 GB"),
            Term("optimizer", (FLOAT32 + states) * t // w, f"(4 B master + {states} B states) x {t:,} / {w}"),
        ]
    elif sharding.kind == "zero3":
        live, group = min(n, ZERO3_LIVE), min(t // w, ZERO3_GROUP)
        terms = [
            Term("weights", HALF * n // w, f"2 B x {n:,} / {w}"),
            Term("gathered weights", HALF * live, f"2 B x {live:,}, gathered at a time at most", "learning"),
            Term("gradients", HALF * t // w + HALF * ZERO3_BUCKET + FLOAT32 * group,
                 f"2 B x {t:,} / {w} + a bucket of 1 GB + 4 B x {group:,} stepped at a time"),
            Term("optimizer", (FLOAT32 + states) * t // w, f"(4 B master + {states} B states) x {t:,} / {w}"),
        ]  # fmt: skip
    elif sharding.kind == "fsdp2":
        trained = FLOAT32 if mixed else saved_bytes  # accelerate keeps what is trained in float32 under mixed precision
        compute = HALF if mixed else saved_bytes
        states = states if states == 2 else states * trained // FLOAT32
        gathered = 2 * count.layer + count.outside
        terms = [
            Term("weights", (trained * t + saved_bytes * frozen) // w,
                 f"({trained} B x {t:,}" + (f" + {saved_bytes} B x {frozen:,}" if frozen else "") + f") / {w}"),
            Term("gathered weights", compute * gathered,
                 f"{compute} B x (2 layers of {count.layer:,} + {count.outside:,} outside of layers)", "learning"),
            Term("gradients", trained * t // w, f"{trained} B x {t:,} / {w}"),
            Term("optimizer", states * t // w, f"{states} B x {t:,} / {w}"),
        ]  # fmt: skip
    else:
        trained = FLOAT32 if frozen else saved_bytes  # peft keeps an adapter in float32
        states = states if states == 2 else states * trained // FLOAT32
        buckets = 2 if w > 1 else 1
        terms = [
            Term("weights", trained * t + saved_bytes * frozen,
                 f"{trained} B x {t:,}" + (f" + {saved_bytes} B x {frozen:,}" if frozen else "")),
            Term("gradients", buckets * trained * t,
                 f"{trained} B x {t:,}" + (", twice: DDP's buckets" if w > 1 else "")),
            Term("optimizer", states * t, f"{states} B x {t:,}"),
        ]  # fmt: skip
    if reference:
        spread = w if sharding.kind in ("fsdp2", "zero3") else 1
        terms.append(Term("reference model", saved_bytes * n // spread, f"{saved_bytes} B x {n:,} / {spread}"))
    return terms


def layer_activation_bytes(shape: Shape, *, residual: int, compute: int) -> int:
    """Bytes that autograd keeps of one decoder layer, per token, attention without a mask or its matrix.

    Args:
        shape: of the model.
        residual: bytes of an element of the residual stream.
        compute: bytes of an operand of the products.
    """
    attention = shape.heads * shape.head_dim
    # Norms work in float32: each keeps its float32 input and its normalised output in the type of the stream.
    norms = 2 * ((FLOAT32 + residual) * shape.hidden + FLOAT32)
    # Under autocast each product casts its own input; in one type they share it.
    inputs = compute * (attention + (5 if compute != residual else 2) * shape.hidden)
    qkv = 3 * compute * attention + FLOAT32 * shape.heads  # keys and values repeated for all heads; logsumexp
    feed_forward = 4 * compute * shape.intermediate
    if shape.normed_heads:
        norms += (shape.heads + shape.kv_heads) * ((FLOAT32 + compute) * shape.head_dim + FLOAT32)
    return norms + inputs + qkv + feed_forward


LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""The linear parts of a decoder layer."""


def adapted_layer_activation_bytes(shape: Shape, adapted: Collection[str], rank: int) -> int:
    """`layer_activation_bytes` of a frozen layer in float32 of which some linear parts have a LoRA adapter.

    A frozen weight needs no input for a gradient of its own: what stays are the inputs of norms, attention and the
    gates, those of the adapters, and what lies between an adapter's two matrices.

    Args:
        shape: of the model.
        adapted: of `LINEAR`.
        rank: of the adapters.
    """
    names = set(adapted)
    norms = 2 * (shape.hidden + 1) + shape.normed_heads * (shape.heads + shape.kv_heads) * (shape.head_dim + 1)
    attention = 4 * shape.heads * shape.head_dim + shape.heads  # queries, keys, values, output; logsumexp
    feed_forward = (3 + ("down_proj" in names)) * shape.intermediate
    inputs = bool(names & set(LINEAR[:3])) + bool(names & set(LINEAR[4:6]))
    return FLOAT32 * (norms + attention + feed_forward + inputs * shape.hidden + rank * len(names))


def activation_terms(
    shape: Shape, *, rows: int, length: int, layer: int, residual: int, compute: int, checkpointing: bool, masked: bool
) -> list[Term]:
    """What the forward pass of one micro-batch leaves for its backward pass.

    Args:
        shape: of the model.
        rows: sequences.
        length: tokens of each, prompt and completion.
        layer: bytes that a decoder layer keeps per token, as above.
        residual: bytes of an element of the residual stream.
        compute: bytes of an operand of the products.
        checkpointing: only the input of each layer is kept, and one layer at a time is formed again.
        masked: attention takes a mask [rows, length, length] (sdpa with padding), kept in each layer.
    """
    tokens = rows * length
    mask = rows * length * length * compute if masked else 0
    suffix = f" + mask {compute} B x {rows} x {length:,}^2" if masked else ""
    size = f"{rows} x {length:,} tokens"
    if not checkpointing:
        total = shape.layers * (tokens * layer + mask)
        formula = f"{shape.layers} layers x ({layer:,} B x {size}{suffix})"
        return [Term("activations", total, formula, "learning")]
    return [
        Term("layer inputs", shape.layers * tokens * residual * shape.hidden,
             f"{shape.layers} layers x {residual} B x {shape.hidden:,} x {size}", "learning"),
        Term("one layer formed again", tokens * layer + mask, f"{layer:,} B x {size}{suffix}", "learning"),
    ]  # fmt: skip


def statistics_term(shape: Shape, *, scored: int, compute: int, device: Literal["cpu", "gpu"] = "gpu") -> Term:
    """What the statistics head keeps and works in.

    Hidden states and eight numbers per token; one tile of logits in float32, with its gradient in the type of the
    products; the gradient in the hidden states in float32. A Hopper GPU needs less: no logits, wider tiles.
    """
    tile = tile_width(scored, shape.vocabulary, torch.device("cuda" if device == "gpu" else "cpu"))
    per_logit = FLOAT32 + (compute if compute < FLOAT32 else 0)
    per_token = (compute + FLOAT32) * shape.hidden + 8 * FLOAT32 + per_logit * tile
    formula = f"({compute + FLOAT32} B x {shape.hidden:,} + 32 B + {per_logit} B x {tile:,}) x {scored:,} tokens"
    return Term("statistics head", per_token * scored, formula, "learning")


def tied_gradient_term(shape: Shape, element: int) -> Term:
    """The gradient that a tied embedding forms of its own, at the end of a backward pass, beside that of the LM head.

    On a GPU it finds the room that the activations have left by then; on a CPU the heap has not given that back.
    """
    num_bytes = element * shape.vocabulary * shape.hidden
    formula = f"{element} B x {shape.vocabulary:,} x {shape.hidden:,}: formed beside the head's, and added"
    return Term("embedding's gradient", num_bytes, formula, "learning")


def full_logits_bytes(shape: Shape, scored: int) -> int:
    """One float32 tensor [tokens, vocabulary], which the statistics head never forms."""
    return FLOAT32 * scored * shape.vocabulary


def kv_cache_bytes(shape: Shape, element: int) -> int:
    """Bytes of the keys and values of one token in all layers."""
    return 2 * shape.layers * shape.kv_heads * shape.head_dim * element
