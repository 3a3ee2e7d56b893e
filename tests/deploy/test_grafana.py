"""deploy/grafana: Grafana's own model of a dashboard takes it, and a running gateway shows what it queries.

Grafana itself is in no registry that this project uses; its Foundation SDK, which is made from Grafana's schemas, is.
"""

from __future__ import annotations

import json
import re
import textwrap
from pathlib import Path

import httpx
import numpy as np
import promql_parser
import pytest
import yaml

from edvit.runtime.http.body import NPY, to_npy
from edvit.runtime.local import serve_locally
from edvit.runtime.watching.watching import MetricsAt
from scraping import Scrape, families_of
from tiny_bundle import write_tiny_bundle
from waiting import eventually

FILE = Path(__file__).parents[2] / "deploy" / "grafana" / "edvit-gateway.json"
DASHBOARD = json.loads(FILE.read_text(encoding="utf-8"))
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
QUERIES = [
    pytest.param(target["expr"], id=f"{panel['title']} {target['refId']}")
    for panel in PANELS
    for target in panel["targets"]
]
WIDTH = 24
GUIDE = (Path(__file__).parents[2] / "docs" / "guide" / "watching.md").read_text(encoding="utf-8")


def as_asked(query):
    """The query as Grafana sends it to Prometheus."""
    return query.replace("$__rate_interval", "5m").replace("$job", ".*")


def selectors(query):
    """Name and labels, by the matcher's operator and value, of every metric in a query."""
    found = []

    def walk(node):
        if isinstance(node, promql_parser.VectorSelector):
            matchers = {one.name: (str(one.op), one.value) for one in node.matchers.matchers}
            found.append((node.name, matchers))
        for part in ("expr", "lhs", "rhs", "vector_selector", "param"):
            child = getattr(node, part, None)
            if isinstance(child, promql_parser.Expr):
                walk(child)
        for child in getattr(node, "args", None) or ():
            walk(child)

    walk(promql_parser.parse(as_asked(query)))
    return found


def labels_of_grouping(query):
    """Labels that a query groups by, or that a legend may show."""
    return {name.strip() for names in re.findall(r"by \(([^)]*)\)", query) for name in names.split(",")}


def lost(given, kept, where="$"):
    """What of one JSON value is not in another."""
    if isinstance(given, dict):
        kept = kept if isinstance(kept, dict) else {}
        return [path for key in given for path in lost(given[key], kept.get(key, ...), f"{where}.{key}")]
    if isinstance(given, list):
        if not isinstance(kept, list) or len(kept) != len(given):
            return [where]
        return [path for i, one in enumerate(given) for path in lost(one, kept[i], f"{where}[{i}]")]
    return [] if given == kept else [where]


@pytest.fixture(scope="module")
def scrape(tmp_path_factory):
    """What a gateway shows once it has answered, refused and failed."""
    bundle = write_tiny_bundle(tmp_path_factory.mktemp("grafana") / "bundle", submodels=2, classes=4)
    body = to_npy(np.zeros((3, 16, 16), np.uint8))
    with serve_locally(bundle, metrics=MetricsAt(route=True), deadline_s=60.0) as service:

        def ask(content):
            headers = {"content-type": NPY}
            return httpx.post(f"{service.url}/predict", content=content, headers=headers, trust_env=False, timeout=60)

        assert ask(body).status_code == 200
        assert ask(b"no array").status_code == 400
        with pytest.raises(Exception, match="shape"):
            service.gateway.predict(np.zeros((1, 3, 8, 8), np.uint8))
        url = f"{service.url}/metrics"
        eventually(lambda: Scrape(url)("edvit_http_requests_total", route="/predict", status="4xx") == 1, 60)
        yield Scrape(url)


def test_the_model_of_grafana_takes_it_and_keeps_all_of_it():
    pytest.importorskip("grafana_foundation_sdk", reason="Grafana's Foundation SDK needs Python 3.11")
    from grafana_foundation_sdk.cog.encoder import JSONEncoder
    from grafana_foundation_sdk.cog.plugins import register_default_plugins
    from grafana_foundation_sdk.models.dashboard import Dashboard

    register_default_plugins()
    kept = json.loads(json.dumps(Dashboard.from_json(DASHBOARD), cls=JSONEncoder))
    assert lost(DASHBOARD, kept) == []


@pytest.mark.parametrize("query", QUERIES)
def test_a_query_is_promql_over_metrics_and_labels_that_a_gateway_shows(scrape, query):
    asked = selectors(query)
    assert asked
    shown = {}
    for family in families_of(scrape.text):
        for sample in family.samples:
            shown.setdefault(sample.name, []).append(sample.labels)
    for name, matchers in asked:
        assert name in shown, f"no gateway shows {name}"
        assert set(matchers) <= {"job", *shown[name][0]}, name
        for label, (operator, value) in matchers.items():
            if label != "job" and operator.endswith("Equal") and "Not" not in operator:
                assert value in {labels[label] for labels in shown[name]}, f"{name} has no {label}={value}"
        assert labels_of_grouping(query) <= set().union(*(shown[name][0] for name, _ in asked))


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel["title"])
def test_a_legend_names_labels_that_are_left(scrape, panel):
    for target in panel["targets"]:
        named = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
        grouped = labels_of_grouping(target["expr"])
        if grouped:
            assert named <= grouped
        else:
            names = {name for name, _ in selectors(target["expr"])}
            labels = [dict(labels) for name, labels in scrape.values if name in names]
            assert all(named <= set(one) for one in labels)


def test_every_metric_of_a_gateway_is_on_it(scrape):
    """Also those that are new: a metric that nobody looks at is not worth its cost."""
    queried = {name for parameter in QUERIES for name, _ in selectors(parameter.values[0])}
    parts = ("_bucket", "_total", "_created", "_sum", "_count")
    bare = {re.sub(f"({'|'.join(parts)})$", "", name) for name in queried}
    families = {family.name for family in families_of(scrape.text) if family.name.startswith("edvit_")}
    assert {name for name in families if not name.endswith("_created")} <= bare


def test_the_guide_names_every_metric_and_no_other(scrape):
    families = {family.name for family in families_of(scrape.text) if family.name.startswith("edvit_")}
    table = "\n".join(line.split(" | ")[0] for line in GUIDE.splitlines() if line.startswith("| `edvit_"))
    named = set(re.findall(r"`(edvit_\w+)`", table))
    assert named == {name for name in families if not name.endswith("_created")}


def test_the_alerts_of_the_guide_are_promql_over_what_is_shown(scrape):
    alerts = re.findall(r"^    ((?:edvit_|rate\().*)$", GUIDE, re.MULTILINE)
    assert len(alerts) == 3
    names = {name for name, _ in scrape.values}
    for alert in alerts:
        assert {name for name, _ in selectors(alert)} <= names


def test_the_scrape_of_the_guide_is_a_configuration():
    block = re.search(r"^    scrape_configs:\n(?:    .*\n)+", GUIDE, re.MULTILINE)[0]
    (job,) = yaml.safe_load(textwrap.dedent(block))["scrape_configs"]
    assert set(job) == {"job_name", "scheme", "authorization", "tls_config", "static_configs"}
    assert job["static_configs"][0]["targets"][0].endswith(":8080")


def test_no_two_panels_cover_each_other_and_every_id_is_used_once():
    covered = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= WIDTH
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & covered, panel["title"]
        covered |= cells
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(ids) == len(set(ids))


def test_it_names_no_data_source_of_ours():
    """It is imported into somebody else's Grafana."""
    sources = {json.dumps(panel["datasource"]) for panel in PANELS}
    assert sources == {'{"type": "prometheus", "uid": "${datasource}"}'}
    assert {one["name"] for one in DASHBOARD["templating"]["list"]} == {"datasource", "job"}
    assert "id" not in DASHBOARD
