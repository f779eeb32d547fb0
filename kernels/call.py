"""What a hook sees when attention happens once: the tensors and how they are masked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from jaxtyping import Bool, Float, Int
from torch import Tensor

from probe.kernels.score_change import ScoreChange


@dataclass(frozen=True, eq=False)
class Call:
    """One attention layer applied to one sample's queries: a whole prompt, a chunk of one, or a decoded token.

    Padding is never in here: a backend slices it off, so that position 0 is the first real token. Query i stands at
    position `query_start + i`, key j at `key_start + j`. A query sees a key iff, with distance = query position minus
    key position, `distance >= 0` where `causal` and `distance < window` where there is a window (and, in a
    bidirectional layer with a window, `distance > -window`), both stand in the same document where documents are
    packed, and the key is not hidden from all. In cross-attention queries and keys stand on different axes: no
    distance means anything there.
    """

    layer: int
    """Index of the attention layer, from 0."""
    query: Float[Tensor, "head query channel"]
    """Queries after rotation, in the model's dtype, on its device."""
    key: Float[Tensor, "kv_head key channel"]
    """Every key that these queries may see, cached ones included, after rotation. Never repeated to fit the heads."""
    value: Float[Tensor, "kv_head key value_channel"]
    """Values of the same keys; their width may differ from the keys'."""
    scale: float
    """Factor on query · key before softcap and softmax."""
    query_start: int = 0
    """Position of the first query."""
    key_start: int = 0
    """Position of the first key (above 0 where a sliding cache dropped the ones before)."""
    causal: bool = True
    """Whether keys after the query are hidden."""
    window: int | None = None
    """Number of positions that a query sees, its own included; None for all."""
    softcap: float | None = None
    """Logits become softcap · tanh(logit / softcap) where set (Gemma 2)."""
    sink_logit: Float[Tensor, "head"] | None = None
    """A learned logit per head that takes its share of the normaliser and carries no value (gpt-oss)."""
    phase: Literal["prefill", "decode"] = "prefill"
    """`decode` from the prompt's last token on: the queries whose logits produce answer tokens."""
    tokens: Int[Tensor, "key"] | None = None
    """Token ids at the keys' positions, where the caller knows them (match_mass needs them)."""
    alibi_slope: Float[Tensor, "head"] | None = None
    """Slope per head of a bias −slope · |distance| on the scaled logits (Press et al. 2022). A model that adds
    slope · key position instead differs by a constant in each row: its probabilities are the same."""
    distance_bias: Float[Tensor, "head distance"] | None = None
    """What each head adds to the scaled logit by query position minus key position (T5's relative bias), for
    consecutive distances from `distance_bias_start` on; distances beyond either end take the end's."""
    distance_bias_start: int = 0
    """Distance of the first entry of `distance_bias`; below 0 where keys after the query have a bias."""
    part: Literal["self", "encoder", "cross"] = "self"
    """`self`: a model's only stack of layers, or a decoder's own attention. `encoder`: the encoder's own, where there
    is a decoder too. `cross`: the decoder's over the encoder's positions, on which the keys stand."""
    document: Int[Tensor, "key"] | None = None
    """Index of the packed document that each key belongs to, in contiguous runs; the queries' own positions must be
    among the keys', or `query_document` be given."""
    query_document: Int[Tensor, "query"] | None = None
    """Index of the packed document that each query belongs to, where the keys are a stretch of the sequence that need
    not hold the queries' own positions."""
    key_visible: Bool[Tensor, "key"] | None = None
    """False for keys that are hidden from every query, such as padding inside a cache."""
    log_sum_exp: Float[Tensor, "head query"] | None = None
    """log Σ_j exp(s_ij) over the visible keys in float32, where the attention operator handed it over with its output;
    a learned sink's share is not in it. With it a scan reads the scores once rather than twice."""
    logit_direction: Float[Tensor, "head query value_channel"] | None = None
    """What a unit of each head's output adds to the right answer's logit over a distractor's at each query, the norms'
    scales left aside (see `span_logit`); None where nobody asked."""
    rotary_pairs: Int[Tensor, "rope_pair 2"] | None = None
    """The channels of a head that turn together, in the order of the model's rotary frequencies, for statistics that
    need it; None where the layer does not turn, or nobody asked."""

    changes: tuple[ScoreChange, ...] = ()
    """What interventions make of the logits, one after the other, before the mask; empty in a model left alone."""

    @property
    def num_heads(self) -> int:
        """Number of query heads."""
        return self.query.shape[0]

    @property
    def num_kv_heads(self) -> int:
        """Number of key-value heads."""
        return self.key.shape[0]

    @property
    def num_queries(self) -> int:
        """Number of queries in this call."""
        return self.query.shape[1]

    @property
    def num_keys(self) -> int:
        """Number of keys in this call."""
        return self.key.shape[1]
