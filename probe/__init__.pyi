from probe.analyses.attention_sinks import attention_sinks as attention_sinks
from probe.analyses.effective_length import effective_length as effective_length
from probe.analyses.head_ablation import head_ablation as head_ablation
from probe.analyses.position_bias import position_bias as position_bias
from probe.analyses.retrieval_heads import retrieval_heads as retrieval_heads
from probe.capture import load as load
from probe.capture import trace as trace
from probe.errors import ProbeError as ProbeError
from probe.finding import Finding as Finding
from probe.finding import Interval as Interval
from probe.hooks.ablate_heads import ablate_heads as ablate_heads
from probe.player import run as run
from probe.sample import Sample as Sample
from probe.sample import Span as Span
from probe.storage.merging import merge as merge
from probe.storage.trace_store import Run as Run
from probe.storage.trace_store import Trace as Trace
from probe.storage.trace_store import open as open
from probe.workloads.needle import needle as needle

__version__: str
