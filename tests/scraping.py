"""Reads what a gateway shows to Prometheus, with prometheus_client's own parser."""

from __future__ import annotations

import httpx
from prometheus_client.parser import text_string_to_metric_families


def families_of(text):
    """The metric families of a scrape."""
    return list(text_string_to_metric_families(text))


def values_of(text):
    """Value by (name, labels as a frozen set of pairs)."""
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in families_of(text)
        for sample in family.samples
    }


class Scrape:
    """One scrape of `url`."""

    def __init__(self, url):
        answer = httpx.get(url, trust_env=False, timeout=60)
        answer.raise_for_status()
        self.text = answer.text
        self.values = values_of(answer.text)

    def __call__(self, name, **labels):
        """One value; 0.0 where there is none yet."""
        return self.values.get((name, frozenset(labels.items())), 0.0)

    def labels(self, name, label):
        """The values of one label of a metric."""
        return {dict(labels)[label] for found, labels in self.values if found == name}
