"""One /metrics for all replicas."""

from __future__ import annotations

from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from localwhisper_server.cluster.exposition import Collected
from localwhisper_server.operations.metrics import Metrics


def test_each_family_once_with_the_samples_of_all() -> None:
    """A counter of three replicas has three samples, told apart by their replica; histograms keep their buckets."""
    own, others = CollectorRegistry(), {}
    face = Metrics(own)
    face.answered("POST", "/v1/audio/transcriptions", 200, 0.5)
    for name, chunks in (("engine#1", 3), ("engine#2", 4)):
        replica = Metrics(CollectorRegistry())
        replica.of_model("base").decoded(chunks, 8, 10.0, 1.0)
        others[name] = replica.exposition("")[0]
    collected = Collected(own)
    collected.replace(others)
    text, content_type = collected.exposition("text/plain")
    assert content_type.startswith("text/plain")
    families = {family.name: family for family in text_string_to_metric_families(text.decode())}
    assert text.decode().count("# TYPE localwhisper_chunks_total") == 1
    chunks_of = {
        sample.labels["replica"]: sample.value
        for sample in families["localwhisper_chunks"].samples
        if sample.name.endswith("_total")
    }
    assert chunks_of == {"engine#1": 3.0, "engine#2": 4.0}
    assert [sample.value for sample in families["localwhisper_requests"].samples] == [1.0]
    buckets = [sample for sample in families["localwhisper_batch_fill"].samples if sample.name.endswith("_bucket")]
    assert {sample.labels["replica"] for sample in buckets} == {"engine#1", "engine#2"}
    collected.replace({})
    assert b"engine#1" not in collected.exposition("")[0]
