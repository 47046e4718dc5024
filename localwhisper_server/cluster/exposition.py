"""The metrics of all replicas in one exposition, each sample with the replica that it is from. No Ray."""

from collections.abc import Iterable, Iterator, Mapping

from prometheus_client import CollectorRegistry, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.parser import text_string_to_metric_families

LABEL = "replica"
FACE = "this"


class Collected:
    """The numbers of `registry`, and the last ones of the other replicas."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        self._others: dict[str, list[Metric]] = {}

    def replace(self, texts: Mapping[str, bytes]) -> None:
        """Take each replica's text, by the replica's name, for those of all others."""
        self._others = {
            name: list(text_string_to_metric_families(text.decode("utf-8"))) for name, text in texts.items()
        }

    def collect(self) -> Iterator[Metric]:
        """Yield each family once, with the samples of all replicas."""
        families: dict[str, Metric] = {}
        for name, metrics in [(FACE, self._registry.collect()), *self._others.items()]:
            _add(families, name, metrics)
        yield from (family for family in families.values() if family.samples)

    def exposition(self, accept: str) -> tuple[bytes, str]:
        """Return all numbers as text, and its content type, in the format that the `Accept` header prefers."""
        encode, content_type = choose_encoder(accept)
        return encode(self), content_type


def _add(families: dict[str, Metric], replica: str, metrics: Iterable[Metric]) -> None:
    for metric in metrics:
        family = families.setdefault(metric.name, Metric(metric.name, metric.documentation, metric.type))
        for sample in metric.samples:
            if not sample.name.endswith("_created"):
                labels = {**sample.labels, LABEL: replica}
                family.add_sample(sample.name, labels, sample.value, sample.timestamp, sample.exemplar)
