"""The Triton kernels: one finds the normaliser of each row, one streams the scores past every statistic.

A program takes `HEADS` query heads of one key-value head, which share its keys, times `QUERIES` queries; row r of its
tiles is query r mod QUERIES of head r div QUERIES. It walks over tiles of `KEYS` keys in three stretches: those that
not all of its queries see yet, those that all see (no mask is computed), and those that not all see any more.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from probe.kernels.epilogue import Rows, Tile, add_up
from probe.kernels.triton_language import jit, tl


class Features(NamedTuple):
    """What a call's attention has, known when the kernel is compiled."""

    GROUP: Any
    """Query heads of a key-value head."""
    CHANNELS: Any
    """Width of a head."""
    WIDTH: Any
    """The largest power of two in it, at least 16."""
    REST: Any
    """A power of two that holds what is left, at least 16; 0 where nothing is."""
    SOFTCAP: Any
    """Whether logits are capped."""
    ALIBI: Any
    """Whether distance lowers them."""
    BIAS: Any
    """Whether each distance has a bias of its own."""
    HIDDEN: Any
    """Whether some keys are hidden from all queries."""
    LEADING: Any
    """Whether some queries do not see the first keys, or these do not begin a tile."""
    WIDEN: Any
    """Whether queries and keys are made float32 first: Triton's interpreter multiplies the bits of bfloat16."""


@jit
def normalise(
    p_query, p_key, p_first, p_stop, p_slope, p_bias, p_visible, p_maximum, p_log_excess, scale, softcap,
    first_distance, num_distances, query_offset, num_queries, num_heads, key_offset, num_keys,
    query_head_stride, query_stride, query_channel_stride, key_head_stride, key_stride, key_channel_stride,
    FEATURES: tl.constexpr, SHAPE: tl.constexpr,
):  # fmt: skip
    """Write max_j s_ij and log Σ_j exp(s_ij − max), [head, query]; −1e30 and −inf for a query that sees nothing."""
    rows = _rows(query_offset, num_queries, num_heads, key_offset, num_keys, SHAPE)
    biases = (p_slope, p_bias, first_distance, num_distances)
    queries = _queries(p_query, biases, rows, query_head_stride, query_stride, query_channel_stride, FEATURES, SHAPE)
    p_key += (rows.head // FEATURES.GROUP).to(tl.int64) * key_head_stride
    keys = (p_key, key_stride, key_channel_stride, p_visible, scale, softcap)
    first, stop, cuts = _cuts(p_first, p_stop, rows, SHAPE)
    maximum = tl.full([SHAPE.HEADS * SHAPE.QUERIES], -1e30, tl.float32)
    total = tl.zeros([SHAPE.HEADS * SHAPE.QUERIES], tl.float32)
    lost = tl.zeros([SHAPE.HEADS * SHAPE.QUERIES], tl.float32)
    for stretch in tl.static_range(3):
        if stretch > 0 or FEATURES.LEADING:
            for start in range(cuts[stretch], cuts[stretch + 1], SHAPE.KEYS):
                b_score, visible = _scores(queries, keys, rows, first, stop, start, stretch != 1, FEATURES, SHAPE)
                if stretch != 1 or FEATURES.HIDDEN:
                    b_score = tl.where(visible, b_score, -1e30)
                higher = tl.maximum(maximum, tl.max(b_score, 1))
                b_power = tl.exp(b_score - higher[:, None])
                if stretch != 1 or FEATURES.HIDDEN:
                    # Until something is visible the maximum is the mask's own value.
                    b_power = tl.where(visible, b_power, 0.0)
                shrink = tl.exp(maximum - higher)
                total, lost = add_up((total * shrink, lost * shrink), tl.sum(b_power, 1))
                maximum = higher
    tl.store(p_maximum + rows.offset, maximum, mask=rows.inside)
    log_excess = tl.where(total == 0.0, float("-inf"), tl.log(tl.where(total == 0.0, 1.0, total)))
    tl.store(p_log_excess + rows.offset, log_excess, mask=rows.inside)


@jit
def scan(
    p_query, p_key, p_first, p_stop, p_slope, p_bias, p_visible, p_shift, p_log_excess, memories, scale, softcap,
    first_distance, num_distances, query_offset, num_queries, num_heads, key_offset, num_keys,
    query_head_stride, query_stride, query_channel_stride, key_head_stride, key_stride, key_channel_stride,
    FEATURES: tl.constexpr, SHAPE: tl.constexpr,
    STARTS: tl.constexpr, UPDATES: tl.constexpr, FINISHES: tl.constexpr, CONSTANTS: tl.constexpr, VERSION: tl.constexpr,
):  # fmt: skip
    """Stream the scores once, with the normaliser known, past the epilogues of the statistics."""
    rows = _rows(query_offset, num_queries, num_heads, key_offset, num_keys, SHAPE)
    biases = (p_slope, p_bias, first_distance, num_distances)
    queries = _queries(p_query, biases, rows, query_head_stride, query_stride, query_channel_stride, FEATURES, SHAPE)
    p_key += (rows.head // FEATURES.GROUP).to(tl.int64) * key_head_stride
    keys = (p_key, key_stride, key_channel_stride, p_visible, scale, softcap)
    first, stop, cuts = _cuts(p_first, p_stop, rows, SHAPE)
    # A row that is no query of the call gets a normaliser under which it gives nothing to anything.
    shift = tl.load(p_shift + rows.offset, mask=rows.inside, other=1e30)
    log_excess = tl.load(p_log_excess + rows.offset, mask=rows.inside, other=0.0)
    rows = Rows(
        rows.offset, rows.inside, rows.index, rows.query, shift + log_excess, rows.head, rows.block, num_heads,
        rows.query_start, query_offset, num_queries, key_offset, num_keys,
    )  # fmt: skip
    states = ()
    for i in tl.static_range(len(STARTS)):
        states = states + (STARTS[i](SHAPE, CONSTANTS[i]),)  # noqa: RUF005 (Triton unpacks no tuples)
    for stretch in tl.static_range(3):
        if stretch > 0 or FEATURES.LEADING:
            for start in range(cuts[stretch], cuts[stretch + 1], SHAPE.KEYS):
                b_score, visible = _scores(queries, keys, rows, first, stop, start, stretch != 1, FEATURES, SHAPE)
                b_log = (b_score - shift[:, None]) - log_excess[:, None]
                if stretch != 1 or FEATURES.HIDDEN:
                    b_log = tl.where(visible, b_log, -1e30)
                b_probability = tl.exp(b_log)
                by_head = tl.reshape(b_probability, [SHAPE.HEADS, SHAPE.QUERIES, SHAPE.KEYS])
                tile = Tile(
                    b_probability, b_log, tl.sum(b_probability, 1), tl.sum(by_head, 1), tl.max(b_log, 1),
                    start + tl.arange(0, SHAPE.KEYS), start, rows,
                )  # fmt: skip
                updated = ()
                for i in tl.static_range(len(UPDATES)):
                    state = UPDATES[i](states[i], tile, memories[i], SHAPE, CONSTANTS[i])
                    updated = updated + (state,)  # noqa: RUF005
                states = updated
    for i in tl.static_range(len(FINISHES)):
        FINISHES[i](states[i], rows, memories[i], SHAPE, CONSTANTS[i])


@jit
def _rows(query_offset, num_queries, num_heads, key_offset, num_keys, SHAPE):
    """Return this program's rows. The last blocks of queries see the most keys, and begin first."""
    row = tl.arange(0, SHAPE.HEADS * SHAPE.QUERIES)
    block = tl.num_programs(0) - 1 - tl.program_id(0)
    head = tl.program_id(1) * SHAPE.HEADS
    start = (query_offset // SHAPE.QUERIES + block) * SHAPE.QUERIES
    query = start + row % SHAPE.QUERIES
    index = query - query_offset
    inside = (index >= 0) & (index < num_queries)
    offset = (head + row // SHAPE.QUERIES).to(tl.int64) * num_queries + index
    # log Z is put in once it is known.
    return Rows(
        offset, inside, index, query, index, head, block, num_heads, start, query_offset, num_queries, key_offset,
        num_keys,
    )  # fmt: skip


@jit
def _queries(p_query, biases, rows, head_stride, stride, channel_stride, FEATURES, SHAPE):
    """Return the rows' queries, in two pieces where a head is not a power of two wide, and their biases: the ALiBi
    slopes, where those by distance begin, and the first and last of the distances."""
    head = rows.head + tl.arange(0, SHAPE.HEADS * SHAPE.QUERIES) // SHAPE.QUERIES
    place = p_query + head.to(tl.int64) * head_stride + rows.index.to(tl.int64) * stride
    channel = tl.arange(0, FEATURES.WIDTH).to(tl.int64)
    there = rows.inside[:, None] & (channel < FEATURES.CHANNELS)[None, :]
    b_query = tl.load(place[:, None] + channel[None, :] * channel_stride, mask=there, other=0.0)
    b_rest = b_query
    if FEATURES.REST > 0:
        rest = FEATURES.WIDTH + tl.arange(0, FEATURES.REST).to(tl.int64)
        there = rows.inside[:, None] & (rest < FEATURES.CHANNELS)[None, :]
        b_rest = tl.load(place[:, None] + rest[None, :] * channel_stride, mask=there, other=0.0)
    if FEATURES.WIDEN:
        b_query = b_query.to(tl.float32)
        b_rest = b_rest.to(tl.float32)
    b_slope = tl.zeros([SHAPE.HEADS * SHAPE.QUERIES], tl.float32)
    if FEATURES.ALIBI:
        b_slope = tl.load(biases[0] + head)
    p_bias = biases[1] + head * biases[3]
    return b_query, b_rest, b_slope, p_bias, biases[2], biases[3]


@jit
def _cuts(p_first, p_stop, rows, SHAPE):
    """Return each row's first visible key and the one after its last, and where the stretches begin and end."""
    first = tl.load(p_first + rows.index, mask=rows.inside, other=0)
    stop = tl.load(p_stop + rows.index, mask=rows.inside, other=0)
    low = tl.maximum(rows.query_start - rows.query_offset, 0)
    high = tl.minimum(rows.query_start + SHAPE.QUERIES - rows.query_offset, rows.num_queries) - 1
    begin = tl.load(p_first + low) // SHAPE.KEYS * SHAPE.KEYS
    end = tl.load(p_stop + high)
    all_from = tl.minimum(tl.cdiv(tl.load(p_first + high), SHAPE.KEYS), tl.cdiv(end, SHAPE.KEYS)) * SHAPE.KEYS
    all_to = tl.maximum(all_from, tl.load(p_stop + low) // SHAPE.KEYS * SHAPE.KEYS)
    return first, stop, (begin, all_from, all_to, end)


@jit
def _scores(queries, keys, rows, first, stop, start, EDGE, FEATURES, SHAPE):
    """Return a tile's logits, scaled, capped and biased, and which of them the mask leaves, both [row, key]."""
    b_query, b_rest, b_slope, p_bias, first_distance, num_distances = queries
    p_key, stride, channel_stride, p_visible, scale, softcap = keys
    key = start + tl.arange(0, SHAPE.KEYS)
    index = key - rows.key_offset
    place = p_key + index.to(tl.int64) * stride
    there = (index >= 0) & (index < rows.num_keys)
    visible = (key[None, :] >= first[:, None]) & (key[None, :] < stop[:, None])
    b_key = _keys(place, there, channel_stride, 0, FEATURES.WIDTH, EDGE, FEATURES)
    b_score = tl.dot(b_query, b_key, input_precision="ieee")
    if FEATURES.REST > 0:
        b_key = _keys(place, there, channel_stride, FEATURES.WIDTH, FEATURES.REST, EDGE, FEATURES)
        b_score = tl.dot(b_rest, b_key, b_score, input_precision="ieee")
    b_score = b_score * scale
    if FEATURES.SOFTCAP:
        # tanh y = 1 − 2 / (exp 2y + 1) overflows on neither side, but near 0 it keeps too few digits.
        b_share = b_score / softcap
        b_square = b_share * b_share
        b_series = b_square * (2.0 / 15.0 + b_square * (-17.0 / 315.0 + b_square * (62.0 / 2835.0)))
        b_series = b_share + b_share * (b_square * (-1.0 / 3.0 + b_series))
        b_far = 1.0 - 2.0 / (tl.exp(2.0 * b_share) + 1.0)
        b_score = softcap * tl.where(tl.abs(b_share) < 0.3, b_series, b_far)
    if FEATURES.ALIBI:
        b_score = b_score - b_slope[:, None] * tl.abs(rows.query[:, None] - key[None, :]).to(tl.float32)
    if FEATURES.BIAS:
        entry = rows.query[:, None] - key[None, :] - first_distance
        entry = tl.minimum(tl.maximum(entry, 0), num_distances - 1)
        b_score = b_score + tl.load(p_bias[:, None] + entry)
    if FEATURES.HIDDEN:
        visible = visible & (tl.load(p_visible + index, mask=there, other=0) != 0)[None, :]
    return b_score, visible


@jit
def _keys(place, there, channel_stride, FIRST, WIDTH, EDGE, FEATURES):
    """Return some channels of a tile's keys, [channel, key]. What is known to be there is loaded without a mask."""
    channel = FIRST + tl.arange(0, WIDTH).to(tl.int64)
    pointers = place[None, :] + channel[:, None] * channel_stride
    if EDGE:
        b_key = tl.load(pointers, mask=(channel < FEATURES.CHANNELS)[:, None] & there[None, :], other=0.0)
    elif FIRST + WIDTH > FEATURES.CHANNELS:
        b_key = tl.load(pointers, mask=(channel < FEATURES.CHANNELS)[:, None], other=0.0)
    else:
        b_key = tl.load(pointers)
    if FEATURES.WIDEN:
        b_key = b_key.to(tl.float32)
    return b_key
