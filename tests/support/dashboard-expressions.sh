#!/bin/sh
# dashboard-expressions.sh: lets promtool (on the PATH, or in target/tools/bin) parse every
# expression of the dashboard, as rules of a file made for it.
set -eu

cd "$(dirname "$0")/../.."
target=${CARGO_TARGET_DIR:-target}
PATH=$PATH:$target/tools/bin:$target/tools
mkdir -p "$target"
python3 - deploy/grafana/dashboard.json "$target/dashboard-rules.yml" <<'PY'
import json
import sys

dashboard, rules = sys.argv[1:]
with open(dashboard, encoding="utf-8") as file:
    panels = json.load(file)["panels"]
expressions = [target["expr"] for panel in panels for target in panel.get("targets", [])]
assert len(expressions) > 20, "too few expressions"
# JSON is YAML; the interval is Grafana's.
named = [
    {"record": f"dashboard:{number}", "expr": text.replace("$__rate_interval", "5m")}
    for number, text in enumerate(expressions)
]
with open(rules, "w", encoding="utf-8") as file:
    json.dump({"groups": [{"name": "dashboard", "rules": named}]}, file)
PY
promtool check rules --lint=none "$target/dashboard-rules.yml"
